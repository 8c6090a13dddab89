"""Serves the FastAPI example behind a layer that drops the key, as a misconfigured proxy may; the demo must fail."""

from __future__ import annotations

from typing import Any

from examples.payments_fastapi import app
from examples.serving import serve_asgi


async def keyless(scope: Any, receive: Any, send: Any) -> None:
    """The example application, which never gets a key."""
    if scope["type"] == "http":
        scope["headers"] = [field for field in scope["headers"] if field[0] != b"idempotency-key"]
    await app(scope, receive, send)


if __name__ == "__main__":
    serve_asgi(keyless)
