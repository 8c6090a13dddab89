"""Requests with a key to an application of a framework, in this process."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

#: the key of every request here
KEY = {"Idempotency-Key": "0190d3c4-7a51-7c2e-9d3e-2f7d1c4b5a60"}
REPLAYED = "idempotent-replayed"


def posted(app: Any, *requests: tuple[str, dict[str, str]]) -> list[httpx.Response]:
    """The responses to these POSTs, each a path and its headers, in turn with the same key."""

    async def post() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
            return [await client.post(path, json={}, headers={**KEY, **fields}) for path, fields in requests]

    return asyncio.run(post())


async def start(app: Any) -> list[str]:
    """Start and stop an application as a server does; the types of its lifespan messages."""
    inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    for moment in ("startup", "shutdown"):
        inbox.put_nowait({"type": f"lifespan.{moment}"})
    said: list[str] = []

    async def send(message: Any) -> None:
        said.append(message["type"])

    scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
    await asyncio.wait_for(app(scope, inbox.get, send), 20)
    return said
