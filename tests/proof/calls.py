"""One request to an application in this process, as a server makes it; and a client that retries.

A trap is outside of the application: before the claim, and before the response is sent.
"""

from __future__ import annotations

import io
import sys
from typing import Any

from tests.proof.traps import AFTER_COMPLETION, BEFORE_CLAIM, Trap

BODY = b'{"amount": 5}'


def call_wsgi(app: Any, trap: Trap, key: str) -> tuple[int, bytes]:
    """A POST to a WSGI application."""
    trap.at(BEFORE_CLAIM)
    environ = {
        "REQUEST_METHOD": "POST", "SCRIPT_NAME": "", "PATH_INFO": "/", "QUERY_STRING": "",
        "SERVER_NAME": "127.0.0.1", "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1",
        "CONTENT_TYPE": "application/json", "CONTENT_LENGTH": str(len(BODY)), "HTTP_IDEMPOTENCY_KEY": key,
        "wsgi.version": (1, 0), "wsgi.url_scheme": "http", "wsgi.input": io.BytesIO(BODY), "wsgi.errors": sys.stderr,
        "wsgi.multithread": True, "wsgi.multiprocess": True, "wsgi.run_once": False,
    }  # fmt: skip
    statuses: list[str] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        statuses.append(status)
        return lambda data: None

    result = app(environ, start_response)
    try:
        body = b"".join(result)
        trap.at(AFTER_COMPLETION)
    finally:
        if hasattr(result, "close"):
            result.close()
    return int(statuses[-1][:3]), body


async def call_asgi(app: Any, trap: Trap, key: str) -> tuple[int, bytes]:
    """A POST to an ASGI application."""
    await trap.aat(BEFORE_CLAIM)
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": "/", "raw_path": b"/", "query_string": b"", "root_path": "", "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 1), "state": {},
        "headers": [
            (b"host", b"127.0.0.1"), (b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY)),
            (b"idempotency-key", key.encode()),
        ],
    }  # fmt: skip
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": BODY, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if not sent:
            await trap.aat(AFTER_COMPLETION)
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)
