"""The application in plain ASGI."""

from __future__ import annotations

import asyncio
from typing import Any

from open_idempotency.asgi import App, IdempotencyMiddleware, Receive, Scope, Send
from open_idempotency.backend import Backend
from tests.http.behaviours import Reply, achunks, call_of, header_pairs, perform, perform_async


def make(backend: Backend | str, fields: dict[str, Any]) -> App:
    """The application behind the middleware."""
    return IdempotencyMiddleware(_app, backend, **fields)


async def _app(scope: Scope, receive: Receive, send: Send) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    headers = dict(scope["headers"])
    query = scope["query_string"].decode()
    call = call_of(scope["method"], scope["path"], query, body, headers[b"x-script"].decode())
    if call.path.startswith("/sync/"):
        reply = await asyncio.to_thread(perform, call)
    else:
        reply = await perform_async(call)
    await _respond(reply, send)
    if reply.background is not None:
        await asyncio.to_thread(reply.background)


async def _respond(reply: Reply, send: Send) -> None:
    await send({"type": "http.response.start", "status": reply.status, "headers": header_pairs(reply)})
    if isinstance(reply.body, bytes):
        await send({"type": "http.response.body", "body": reply.body})
        return
    async for chunk in achunks(reply.body):
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
