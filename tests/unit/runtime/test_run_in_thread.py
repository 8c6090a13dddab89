"""``run_in_thread``: sync calls of an asyncio loop in threads that are reused."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from open_idempotency._runtime.processes import PerProcess
from open_idempotency.backends.sqlite import backend as loop_threads
from open_idempotency.backends.sqlite.backend import run_in_thread

_SECONDS = 20.0


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The list of idle threads, empty at first."""
    idle: PerProcess[list[Any]] = PerProcess(list)
    monkeypatch.setattr(loop_threads, "_idle", idle)
    return idle.get()


def on_a_loop(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 2 * _SECONDS))


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def fail(message: str) -> None:
    raise ValueError(message)


def test_a_call_in_a_thread_gets_its_result() -> None:
    """The caller gets the result, or the error."""

    async def test() -> None:
        result, thread = await run_in_thread(lambda number: (2 * number, threading.get_ident()), 21)
        assert result == 42
        assert thread != threading.get_ident()
        with pytest.raises(ValueError, match="wrong"):
            await run_in_thread(fail, "wrong")

    on_a_loop(test())


def test_a_thread_is_used_again(threads: list[Any]) -> None:
    """LIMITS: consecutive calls share one thread, which is free before its caller continues."""

    async def test() -> None:
        assert len({await run_in_thread(lambda _: threading.get_ident(), None) for _ in range(20)}) == 1
        assert len(threads) == 1

    on_a_loop(test())


def test_a_thread_that_blocks_holds_up_nobody() -> None:
    """I11: each concurrent call has a thread."""
    barrier = threading.Barrier(5, timeout=_SECONDS)

    async def test() -> None:
        await asyncio.gather(*(run_in_thread(lambda _: barrier.wait(), None) for _ in range(5)))

    on_a_loop(test())


def test_a_cancelled_call_is_waited_for() -> None:
    """L-04: however often it is cancelled, a call that has begun ends before the cancellation continues."""
    begun, release, ended = threading.Event(), threading.Event(), threading.Event()

    def call(_: None) -> None:
        begun.set()
        assert release.wait(_SECONDS)
        ended.set()

    async def test() -> None:
        task = asyncio.create_task(run_in_thread(call, None))
        await asyncio.to_thread(begun.wait, _SECONDS)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
            assert not task.done()
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    on_a_loop(test())


def test_a_loop_that_is_gone_is_not_notified(threads: list[Any]) -> None:
    """B-11: the thread continues to serve other loops."""
    begun, release = threading.Event(), threading.Event()

    def call(_: None) -> None:
        begun.set()
        assert release.wait(_SECONDS)

    async def begin() -> asyncio.Task[None]:
        task = asyncio.create_task(run_in_thread(call, None))
        await asyncio.to_thread(begun.wait, _SECONDS)
        return task

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)
    task = loop.run_until_complete(begin())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    release.set()
    until(lambda: len(threads) == 1)
    on_a_loop(run_in_thread(lambda _: None, None))
    task.get_coro().close()


def test_an_idle_thread_ends(threads: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """I11: threads do not accumulate."""
    monkeypatch.setattr(loop_threads, "_IDLE", 0.01)

    async def test() -> None:
        await run_in_thread(lambda _: None, None)

    on_a_loop(test())
    until(lambda: not threads)
