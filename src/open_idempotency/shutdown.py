"""Ending a process so that retries need not wait for its leases, if its server does not do so (L-06).

``drain`` gives up running requests at once. ``DrainAtShutdown`` calls it at an ASGI server's shutdown, for an
application without a lifespan. ``drain_after_sigterm`` calls it some time after SIGTERM, for a host that kills later.
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
    """Delays its ASGI server's shutdown until all requests are settled or given up.

    Then it closes the connections of backends that were named by URL. It adds a lifespan to an application without one,
    such as Django's: ``application = DrainAtShutdown(get_asgi_application())``. Not needed around
    ``IdempotencyMiddleware`` of ``open_idempotency.asgi``, ``.starlette`` or ``.fastapi``, which does the same. Since
    0.1.
    """

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _Lifespan(receive, send).run(self.app, scope)
        else:
            await self.app(scope, receive, send)


class _Lifespan:
    """One lifespan: that of the application, or this module's own if it has none."""

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
        """Run the lifespan protocol for an application that has refused or ignored the scope."""
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
    """Call ``drain`` this many seconds after the process gets SIGTERM, if it still runs then.

    For a host that sends SIGTERM and kills some time later. ``seconds``: that time, less about two seconds for
    draining. An earlier signal handler still runs. If there was none, the process now ends as by ``sys.exit``, so that
    its exit functions run; they drain too.

    Call it once, in the main thread of the serving process (``ValueError`` elsewhere), after its server has installed
    its signal handlers: servers that handle SIGTERM replace the handler that was there. Since 0.1.
    """
    arm_sigterm(seconds, lambda: True)


def arm_sigterm(seconds: float, wanted: Callable[[], bool]) -> None:
    """``drain_after_sigterm`` with a condition. ``wanted``: called at each SIGTERM; whether a kill will follow."""
    # A SimpleQueue and a thread that waits already: the signal may interrupt code that holds the lock of another queue,
    # or of the table of threads.
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
