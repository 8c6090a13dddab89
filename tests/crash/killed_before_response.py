"""Serves an example, and dies when its server would send the first byte of a response to a POST.

``python -m tests.crash.killed_before_response examples.payments_flask``: the arguments are those of ``python -m`` for
the example. The middleware has recorded the response by then.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from examples import serving


def die() -> None:
    """End this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def asgi(app: Any) -> Any:
    """An ASGI application that dies instead of responding to a POST."""

    async def dying(scope: Any, receive: Any, send: Any) -> None:
        async def send_nothing(message: Any) -> None:
            die()

        posts = scope["type"] == "http" and scope["method"] == "POST"
        await app(scope, receive, send_nothing if posts else send)

    return dying


def wsgi(app: Any) -> Any:
    """A WSGI application that dies when it has the first bytes of the response to a POST."""

    def dying(environ: Any, start_response: Any) -> Iterator[bytes]:
        for chunk in app(environ, start_response):
            if chunk and environ["REQUEST_METHOD"] == "POST":
                die()
            yield chunk

    return dying


if __name__ == "__main__":
    module = import_module(sys.argv[1])
    if "--asgi" in sys.argv:
        serving.serve_asgi(asgi(module.asgi_application))
    elif hasattr(module, "wsgi_application"):
        serving.serve_wsgi(wsgi(module.wsgi_application))
    elif hasattr(module.app, "wsgi_app"):
        serving.serve_wsgi(wsgi(module.app))
    else:
        serving.serve_asgi(asgi(module.app))
