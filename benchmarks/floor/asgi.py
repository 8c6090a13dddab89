"""The floor as ASGI middleware."""

from __future__ import annotations

import os
from typing import Any

from benchmarks.floor.calls import AsyncCalls, fingerprint_of, framed, record_id_of, unframed
from benchmarks.interface import App


class FloorMiddleware:
    """Does for one ``POST`` with a key the least that has to be done, and passes everything else on."""

    def __init__(self, app: App, calls: AsyncCalls) -> None:
        self.app = app
        self.calls = calls

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            for name, value in scope["headers"]:
                if name == b"idempotency-key":
                    await self._protect(value, scope, receive, send)
                    return
        await self.app(scope, receive, send)

    async def _protect(self, key: bytes, scope: Any, receive: Any, send: Any) -> None:
        body = await _read(receive)
        record_id, owner = record_id_of(key), os.urandom(16)
        found = await self.calls.claim(record_id, fingerprint_of(scope["method"], scope["path"], body), owner)
        if found is None:
            status, headers, response = await self._captured(scope, body, receive)
            await self.calls.complete(record_id, owner, framed(status, headers, response))
        elif isinstance(found, int):
            status, headers, response = found, [(b"content-length", b"0")], b""
        else:
            status, headers, response = unframed(found)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": response})

    async def _captured(self, scope: Any, body: bytes, live: Any) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        start: dict[str, Any] = {}
        chunks: list[bytes] = []
        unread = True

        async def receive() -> Any:
            nonlocal unread
            if not unread:
                return await live()
            unread = False
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            else:
                chunks.append(message.get("body", b""))

        await self.app(scope, receive, send)
        return start["status"], start["headers"], b"".join(chunks)


async def _read(receive: Any) -> bytes:
    chunks = []
    more = True
    while more:
        message = await receive()
        chunks.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(chunks)
