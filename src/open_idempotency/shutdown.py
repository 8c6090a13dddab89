"""Ending a process without a wait for its leases, where its server does not see to it (L-06).

``drain`` gives up what runs, at once. The other names call it at the right moment: at an ASGI server's shutdown, for an
application without a lifespan of its own; and some time after SIGTERM, for a host that kills a while later.
"""

from __future__ import annotations

import queue
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from types import FrameType
from typing import Any

from open_idempotency._engine.engine import aclose_all
from open_idempotency._engine.shutdown import drain, settle

__all__ = ["DrainAtShutdown", "drain", "drain_after_sigterm"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class DrainAtShutdown:
    """An ASGI application that holds its server's shutdown back until all requests are settled or given up, and the
    connections of backends that were named by URL are closed.

    For an application that has no lifespan, such as Django's, which gets one here; one that it has is kept:
    ``application = DrainAtShutdown(get_asgi_application())``. Not needed around ``IdempotencyMiddleware`` of
    ``open_idempotency.asgi``, ``.starlette`` or ``.fastapi``, which does the same. Since 0.1.
    """

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _Lifespan(receive, send).run(self.app, scope)
        else:
            await self.app(scope, receive, send)


class _Lifespan:
    """One lifespan: the application's, or ours where it has none."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._source = receive
        self._outlet = send
        self._heard = False

    async def run(self, app: App, scope: Scope) -> None:
        try:
            await app(scope, self._receive, self._send)
        except Exception:
            if self._heard:
                raise
        if not self._heard:
            await self._live()

    async def _live(self) -> None:
        """The application has refused the scope, or ignored it, without a look at what the server says."""
        for _ in range(2):
            message = await self._source()
            await self._send({"type": f"{message['type']}.complete"})

    async def _receive(self) -> Message:
        self._heard = True
        return await self._source()

    async def _send(self, message: Message) -> None:
        if message["type"].startswith("lifespan.shutdown"):
            await settle()
            await aclose_all()
        await self._outlet(message)


def drain_after_sigterm(seconds: float) -> None:
    """Call ``drain`` this many seconds after the process got SIGTERM, if it still runs by then.

    For a host that sends SIGTERM and kills a while later; ``seconds`` is that while, less the two or so that draining
    may take. Whatever handled the signal before does so as before. Where nothing did, the process now ends as by
    ``sys.exit``, so that its exit functions run; they drain too.

    To be called once, in the main thread of the process that serves (``ValueError`` elsewhere), after its server has
    put its own signal handlers: servers that handle SIGTERM replace what was there. Since 0.1.
    """
    arm_sigterm(seconds, lambda: True)


def arm_sigterm(seconds: float, wanted: Callable[[], bool]) -> None:
    """``drain_after_sigterm``, which looks each time whether this SIGTERM is one that a kill follows."""
    # A SimpleQueue and a thread that waits already, since a signal may interrupt whoever holds the lock of another
    # queue, or of the table of threads.
    signals: queue.SimpleQueue[None] = queue.SimpleQueue()
    previous = signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: FrameType | None) -> None:
        if wanted():
            signals.put(None)
        if callable(previous):
            previous(number, frame)
        elif previous == signal.SIG_DFL:
            sys.exit(128 + number)

    def wait() -> None:
        signals.get()
        time.sleep(seconds)
        drain()

    signal.signal(signal.SIGTERM, handle)
    threading.Thread(target=wait, name="open-idempotency-drain", daemon=True).start()
