"""The applications of the HTTP suite with the shop's endpoints, on a backend that can stop requests.

``tests.wire.serving`` makes them by their dotted names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from open_idempotency import open_backend
from tests.faults.apps.shop import ENDPOINTS
from tests.faults.apps.stopping import Stop, StoppingBackend, stopping
from tests.http.behaviours import SCRIPTS, Script
from tests.wire.endpoints import journal_of
from tests.wire.serving import maker_of

SCRIPTS.update({name: Script(behaviour) for name, behaviour in ENDPOINTS.items()})

Maker = Callable[[str, dict[str, Any]], Any]


def _stop(point: str | None, query: str) -> Stop | None:
    return None if point is None else Stop(journal_of(query), point)


def _on_asgi(adapter: str) -> Maker:
    def make(backend: str, fields: dict[str, Any]) -> Any:
        inner = maker_of(adapter)(StoppingBackend(open_backend(backend)), fields)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                point = dict(scope["headers"]).get(b"x-stop")
                stopping.set(_stop(point and point.decode(), scope["query_string"].decode()))
            await inner(scope, receive, send)

        return app

    return make


def _on_wsgi(adapter: str) -> Maker:
    def make(backend: str, fields: dict[str, Any]) -> Any:
        inner = maker_of(adapter)(StoppingBackend(open_backend(backend)), fields)

        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            # Set by each request and never reset: the server reads the response after this function has returned.
            stopping.set(_stop(environ.get("HTTP_X_STOP"), environ["QUERY_STRING"]))
            response: Iterable[bytes] = inner(environ, start_response)
            return response

        return app

    return make


asgi = _on_asgi("asgi")
fastapi = _on_asgi("fastapi")
django_asgi = _on_asgi("django-asgi")
wsgi = _on_wsgi("wsgi")
flask = _on_wsgi("flask")
