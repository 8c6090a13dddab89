"""A runner that ends while a request has code in a thread: it cancels its tasks after the event loop has stopped."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.starlette import IdempotencyMiddleware
from tests.unit.asgi.test_asgi import Exchange, new_key

PATIENCE = 10.0


def test_a_runner_that_ends_its_tasks_waits_for_their_threads() -> None:
    """L-09: as with ``asyncio.run``; the response is recorded, and the other tasks are cancelled as well."""
    arrived, gate = threading.Event(), threading.Event()
    charges: list[str] = []
    others: list[str] = []
    key = new_key()

    def charge(request: Request) -> JSONResponse:
        arrived.set()
        assert gate.wait(PATIENCE)
        charges.append("charged")
        return JSONResponse({}, 201)

    app = Starlette(routes=[Route("/charges", charge, methods=["POST"])])
    protected = IdempotencyMiddleware(app, MemoryBackend())

    async def other() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            others.append("ended")

    async def main() -> list[asyncio.Future[Any]]:
        tasks = [asyncio.ensure_future(Exchange(key=key).through(protected)), asyncio.ensure_future(other())]
        assert await asyncio.to_thread(arrived.wait, PATIENCE)
        return tasks

    threading.Timer(0.5, gate.set).start()
    asyncio.run(main())
    assert (charges, others) == (["charged"], ["ended"])
    again = asyncio.run(Exchange(key=key).through(protected))
    assert (again.status, again.replayed, len(charges)) == (201, True, 1)
