"""Threads and shielded cleanup on asyncio and trio, under cancellation."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import pytest

from open_idempotency._runtime import loops, on_asyncio
from open_idempotency._runtime.processes import PerProcess

pytestmark = pytest.mark.anyio


async def test_the_running_library_is_known(anyio_backend: str) -> None:
    """asyncio or trio in a task; none in a thread."""
    assert loops.current_library() == anyio_backend
    assert await loops.in_thread(loops.current_library) is None


async def test_a_thread_returns_or_raises() -> None:
    """``in_thread`` calls the function, in a thread."""
    assert await loops.in_thread(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await loops.in_thread(divmod, 7, 0)


async def test_a_cancelled_thread_is_waited_for(anyio_backend: str) -> None:
    """The thread is not abandoned: its effect has happened when the cancellation continues."""
    began, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        assert go_on.wait(20)
        ended.set()

    went_past = False

    async def call() -> None:
        nonlocal went_past
        try:
            await loops.in_thread(work)
            went_past = True
        finally:
            assert ended.is_set()

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(call)
            while not began.is_set():
                await anyio.sleep(0.001)
            group.cancel_scope.cancel()
            go_on.set()
    # trio delivers the cancellation at the next checkpoint, asyncio at this one.
    assert went_past == (anyio_backend == "trio")


async def test_sleep_lets_others_run() -> None:
    """It does not block the loop."""
    order: list[str] = []

    async def other() -> None:
        order.append("other")

    async with anyio.create_task_group() as group:
        group.start_soon(other)
        await loops.sleep(0.01)
        order.append("slept")
    assert order == ["other", "slept"]


async def test_a_cleanup_ends_although_its_task_is_being_cancelled() -> None:
    """L-04: also where the cancellation is delivered again and again, as anyio's scopes do."""
    steps: list[str] = []

    async def cleanup() -> str:
        for step in ("one", "two", "three"):
            await anyio.sleep(0.01)
            steps.append(step)
        return "done"

    async def task() -> None:
        try:
            await anyio.sleep(60)
        finally:
            steps.append(await loops.shielded(cleanup, 20))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(task)
            await anyio.sleep(0.01)
            group.cancel_scope.cancel()
    assert steps == ["one", "two", "three", "done"]


async def test_a_cleanup_raises_what_it_raised() -> None:
    """The caller gets the error of the cleanup."""

    async def cleanup() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await loops.shielded(cleanup, 20)


async def test_a_cleanup_that_hangs_is_ended() -> None:
    """I11: TimeoutError at the deadline, and the cleanup is cancelled."""
    cancelled = anyio.Event()

    async def cleanup() -> None:
        try:
            await anyio.sleep(60)
        finally:
            cancelled.set()

    with pytest.raises(TimeoutError):
        await loops.shielded(cleanup, 0.02)
    with anyio.fail_after(20):
        await cancelled.wait()


async def test_a_cancellation_during_a_cleanup_is_not_delivered_behind_its_scope() -> None:
    """anyio delivers a cancellation repeatedly within its scope; code after the scope is not cancelled."""
    reported: list[str] = []
    scope = anyio.CancelScope()
    waiting = anyio.Event()

    async def cleanup() -> str:
        for _ in range(20):
            await anyio.sleep(0)
        return "done"

    async def task() -> None:
        with scope:
            try:
                waiting.set()
                await anyio.sleep(60)
            finally:
                reported.append(await loops.shielded(cleanup, 20))
        await anyio.sleep(0)
        reported.append("after")

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(task)
            await waiting.wait()
            scope.cancel()
    assert reported == ["done", "after"]


def _asyncio(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 30))


def test_repeated_cancellations_do_not_interrupt_a_cleanup() -> None:
    """``Task.cancel()`` is called again while the cleanup for the first call runs."""

    async def main() -> None:
        go_on = asyncio.Event()
        reported: list[str] = []

        async def cleanup() -> str:
            await go_on.wait()
            return "done"

        async def work() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                reported.append(await loops.shielded(cleanup, 20))

        task = asyncio.create_task(work())
        for _ in range(3):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert reported == ["done"]

    _asyncio(main)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout is new in Python 3.11")
def test_a_timeout_with_a_cleanup_inside_still_strikes() -> None:
    """asyncio counts cancellations; the count stays right."""

    async def main() -> None:
        async def cleanup() -> None:
            await asyncio.sleep(0.01)

        async def in_time() -> None:
            async with asyncio.timeout(0.01):
                try:
                    await asyncio.sleep(60)
                finally:
                    await loops.shielded(cleanup, 20)

        with pytest.raises(TimeoutError):
            await in_time()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    _asyncio(main)


def test_outside_of_a_loop_there_is_no_library() -> None:
    """The result is None, and no library is imported."""
    assert loops.current_library() is None


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """An executor with at most two threads."""
    monkeypatch.setattr(on_asyncio, "_executors", PerProcess(lambda: ThreadPoolExecutor(2)))


class _NoThreads:
    """``threading.Thread.start`` in a process that may start no more threads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], object] = lambda: None) -> None:
        self._patch = monkeypatch
        self._meanwhile = meanwhile

    def __enter__(self) -> None:
        def start(_: threading.Thread) -> None:
            self._meanwhile()
            raise RuntimeError("can't start new thread")

        self._patch.setattr(threading.Thread, "start", start)

    def __exit__(self, *_: object) -> None:
        self._patch.undo()


def test_a_call_that_was_refused_for_want_of_a_thread_is_not_made_later(
    two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-10a: the executor keeps the call, and would make it when a thread is free: a late claim."""
    go_on, made = threading.Event(), threading.Event()

    async def test() -> None:
        busy = asyncio.ensure_future(loops.in_thread(go_on.wait, 20))
        await asyncio.sleep(0)
        with monkeypatch.context() as patch, _NoThreads(patch), pytest.raises(RuntimeError, match="new thread"):
            await loops.in_thread(made.set)
        go_on.set()
        assert await busy
        await loops.in_thread(int)  # by the thread that was busy, after whatever came before
        assert not made.is_set()

    asyncio.run(asyncio.wait_for(test(), 20))


def test_a_call_that_another_thread_has_begun_gets_its_result(
    two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-10a: it was refused by then, and is made only once."""
    go_on, began, made = threading.Event(), threading.Event(), []

    def work() -> int:
        began.set()
        made.append(1)
        return 42

    def meanwhile() -> None:
        go_on.set()
        assert began.wait(20)

    async def test() -> None:
        busy = asyncio.ensure_future(loops.in_thread(go_on.wait, 20))
        await asyncio.sleep(0)
        with monkeypatch.context() as patch, _NoThreads(patch, meanwhile):
            assert await loops.in_thread(work) == 42
        assert await busy
        assert made == [1]

    asyncio.run(asyncio.wait_for(test(), 20))


_AFTER_THE_MAIN_THREAD = """
import asyncio, os, sys, threading
from open_idempotency.backend import Claim, Complete
from open_idempotency.backends.sqlite import SqliteBackend

async def serve():
    backend = SqliteBackend(sys.argv[1], coalesce=False).to_async()
    result = await backend.claim(Claim(os.urandom(32), b"fingerprint", os.urandom(16), 30.0, 600.0))
    claimed.set()
    threading.main_thread().join()
    print(await backend.complete(Complete(result.lease, b"response")), flush=True)

claimed = threading.Event()
threading.Thread(target=lambda: asyncio.run(serve())).start()
claimed.wait(20)
"""


@pytest.mark.skipif((3, 12) <= sys.version_info < (3, 12, 2), reason="there no thread can be started at that time")
def test_a_server_in_a_thread_completes_after_the_main_thread_has_ended(tmp_path: Path) -> None:
    """B-10a: executors take no more calls from then on."""
    command = [sys.executable, "-c", _AFTER_THE_MAIN_THREAD, str(tmp_path / "records.db")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.stdout == "Completed(recreated=False)\n", ended.stderr
