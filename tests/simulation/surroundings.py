"""The library's surroundings on virtual time: the clock, the functions of an event loop, threads.

While a history runs they replace the originals in the modules that use them, so simulated processes run the real code.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, TypeVar

from open_idempotency import _asgi
from open_idempotency._engine import engine, heartbeat, shutdown, thread_calls
from open_idempotency._runtime import clocks as real_clocks
from open_idempotency._runtime import loops
from open_idempotency._stages import blocks, stages
from tests.simulation.holding import VirtualHold
from tests.simulation.loop import Cancelled, Future, Loop

T = TypeVar("T")

_TIMED = (blocks, _asgi, heartbeat, engine, shutdown, stages)
_TIMED_AWAKE = (shutdown, thread_calls)


class Signal:
    """See ``loops.Signal``."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._came = Future()

    def set(self) -> None:
        """See ``loops.Signal``."""
        self._came.set(True)

    async def wait(self, seconds: float) -> bool:
        """See ``loops.Signal``."""
        self._loop.after(seconds, lambda: self._came.set(False), self._loop.process)
        came: bool = await self._came
        return came


class VirtualLoops:
    """See ``loops.Implementation``."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def Signal(self) -> Signal:  # noqa: N802 (a class elsewhere)
        """See ``loops.signal``."""
        return Signal(self._loop)

    async def sleep(self, seconds: float) -> None:
        """See ``loops.sleep``."""
        await self._loop.sleep(seconds)

    async def in_thread(self, function: Callable[..., T], args: tuple[Any, ...]) -> T:
        """Run the function directly: nothing here blocks."""
        return function(*args)

    async def shielded(self, make_awaitable: Callable[[], Awaitable[T]], seconds: float) -> T:
        """See ``loops.shielded``, as on asyncio."""
        loop, process = self._loop, self._loop.process
        assert process is not None
        cleanup = loop.spawn(process, _awaited(make_awaitable), "cleanup")
        late = Future()
        loop.after(seconds, late.set, process)
        while not cleanup.ended.done and not late.done:
            either = Future()
            cleanup.ended.when_done(either.set)
            late.when_done(either.set)
            try:
                await either
            except Cancelled:
                continue
        if not cleanup.ended.done:
            if loop.current is not None:
                loop.current.root.trouble.append("out of patience")
            cleanup.cancel(1)
            raise TimeoutError(f"the cleanup did not end within {seconds} s")
        value, error = cleanup.ended.value
        if error is not None:
            raise error
        result: T = value
        return result

    def spawn(self, make_awaitable: Callable[[], Awaitable[None]]) -> Callable[[], object]:
        """See ``loops.spawn``."""
        process = self._loop.process
        assert process is not None
        task = self._loop.spawn(process, _awaited(make_awaitable), "beside")
        return lambda: task.cancel(1)


async def _awaited(call: Callable[[], Awaitable[Any]]) -> Any:
    return await call()


class VirtualThread:
    """A ``threading.Thread`` with a target that does not block: its first turn, which plans the next.

    It may fail to start.
    """

    def __init__(self, loop: Loop, may_start: Callable[[], None], target: Callable[[], None]) -> None:
        self._loop = loop
        self._may_start = may_start
        self._target = target
        self._alive = False

    def start(self) -> None:
        """See ``threading.Thread``."""
        self._may_start()
        self._alive = True
        self._loop.soon(self._target, self._loop.process)

    def is_alive(self) -> bool:
        """See ``threading.Thread``."""
        return self._alive


@contextmanager
def surroundings(
    loop: Loop, may_start: Callable[[], None], clocks: dict[Any, Callable[[], float]], holds: bool
) -> Iterator[None]:
    """Run the library in simulated processes. ``may_start`` raises if no thread can be started.

    ``clocks``: for modules that see another time. ``holds``: whether cancellations can be delayed, as on asyncio.
    Nothing is logged: the trace has it.
    """

    def make_thread(target: Callable[[], None], **_: Any) -> VirtualThread:
        return VirtualThread(loop, may_start, target)

    def hold_for(attempt: Any) -> VirtualHold | None:
        return VirtualHold(loop, attempt) if holds else None

    implementation = VirtualLoops(loop)
    replaced: list[tuple[Any, str, Any]] = [
        *((module, "clocks", SimpleNamespace(elapsed=clocks.get(module, loop.monotonic))) for module in _TIMED),
        *((module, "time", SimpleNamespace(monotonic=clocks.get(module, loop.monotonic))) for module in _TIMED_AWAKE),
        (real_clocks, "elapsed", loop.monotonic),
        (loops, "_implementation", lambda: implementation),
        (heartbeat, "threading", SimpleNamespace(Thread=make_thread, Lock=threading.Lock)),
        (heartbeat, "enlist", lambda _: None),
        (_asgi, "hold_for", hold_for),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in replaced]
    logger = logging.getLogger("open_idempotency")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    for module, name, value in replaced:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
        logger.setLevel(level)
