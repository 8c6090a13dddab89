"""B-10b: random interleavings search for two leading threads, lost replies and calls without a reply."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

import pytest

from open_idempotency.backends._shared import coalescing
from open_idempotency.backends._shared.coalescing import NOT_ALONE, Limits, LoopCoalescer, ThreadCoalescer
from open_idempotency.exceptions import BackendUnavailable
from tests.effort import times
from tests.unit.backends.interleaved import Alarm, World, may_raise_at

_SECONDS = 1.0
_SLOWEST = 6.0


class _Store:
    """A server that doubles numbers, one batch at a time; sometimes it pauses for longer than every timeout."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._busy: list[Sequence[int]] = []
        self.carried: list[int] = []

    def carry_out(self, numbers: Sequence[int]) -> list[int | Exception]:
        assert not self._busy, f"two at once: {self._busy[0]} and {numbers}"
        self._busy.append(numbers)
        try:
            self.carried += numbers
            self._world.sleep(self._world.random.choice((0.0, 0.01, 0.4, 1.03, _SLOWEST)))
            return [2 * number for number in numbers]
        finally:
            self._busy.clear()

    def alone(self, number: int) -> int:
        (result,) = self.carry_out((number,))
        assert isinstance(result, int)
        return result


class _Asker:
    """A thread that makes one call after the other; a refused call is repeated with another number."""

    def __init__(self, world: World, store: _Store, coalescer: ThreadCoalescer[int, int], first: int) -> None:
        self._world = world
        self._store = store
        self._coalescer = coalescer
        self._number = first
        self.refused: list[int] = []

    def work(self) -> None:
        for _ in range(2):
            try:
                while not self._asked():
                    pass
            except Alarm:
                pass

    def _asked(self) -> bool:
        self._number += 2
        number = self._number
        ask: Callable[[int], bool] = self._world.random.choice((self._one, self._several, self._alone))
        before = self._world.waited
        try:
            return ask(number)
        except BackendUnavailable as error:
            if "no further calls" in str(error):
                self.refused.append(number)
            return False
        finally:
            # In the queue, on its way, and its own batch: bounded, whatever the others do.
            assert self._world.waited - before <= 4 * _SECONDS + _SLOWEST + 0.001

    def is_served_at_once(self, number: int) -> None:
        assert self._one(number)
        assert self._world.waited <= _SLOWEST + 0.001

    def _one(self, number: int) -> bool:
        assert self._coalescer.ask(number) == 2 * number
        return True

    def _several(self, number: int) -> bool:
        results = self._coalescer.ask_all(((number, 0), (number + 1, 0)))
        for result in results:
            if isinstance(result, Exception):
                raise result
        assert results == [2 * number, 2 * number + 2]
        return True

    def _alone(self, number: int) -> bool:
        result: Any = self._coalescer.alone(self._store.alone, number)
        return result is NOT_ALONE or result == 2 * number


def _search(seed: int, monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
    world = World(seed, coalescing, coalescing, **more)
    with monkeypatch.context() as patched:
        patched.setattr(coalescing, "threading", world.threading)
        patched.setattr(coalescing, "time", world.time)
        store = _Store(world)
        coalescer: ThreadCoalescer[int, int] = ThreadCoalescer(store.carry_out, Limits(_SECONDS, most=3))
        askers = [_Asker(world, store, coalescer, 1000 * (1 + thread)) for thread in range(4)]
        for asker in askers:
            world.start(asker.work)
        world.run()
        # Nothing is left: the next goes at once, and alone.
        late = _Asker(world, store, coalescer, 9000)
        world.start(lambda: late.is_served_at_once(9001), spared=True)
        world.run()
        assert store.carried[-1] == 9001
    refused = {number for asker in askers for number in asker.refused}
    assert len(store.carried) == len(set(store.carried))
    assert not refused & set(store.carried)


@pytest.mark.parametrize("block", range(10))
@pytest.mark.parametrize(
    "more",
    [{}, {"pauses": (1.5, 5.0, 30.0)}, {"alarms": True}, {"alarms": True, "pauses": (1.5, 30.0)}],
    ids=["plain", "pauses", "alarms", "both"],
)
def test_the_lead_has_one_owner_whatever_the_order(
    block: int, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-10b: never two batches at once, no error but ``BackendUnavailable``, no call sent after it was refused, every
    wait bounded, no thread stranded; with servers that pause, processes that pause, and handlers that raise.
    """
    many = times(2)
    for seed in range(block * many, (block + 1) * many):
        try:
            _search(seed, monkeypatch, **more)
        except BaseException as error:
            raise AssertionError(f"seed {seed}") from error


class _Alarms:
    """Raises once, at the line of this number in the modules that carry a loop's batches."""

    def __init__(self, line: int) -> None:
        self._left = line
        self._files = {coalescing.__file__, coalescing.__file__}

    @property
    def came(self) -> bool:
        return self._left < 0

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        """See ``sys.settrace``."""
        if frame.f_code.co_filename not in self._files:
            return None
        if event == "line" and not self.came and (self._left > 0 or may_raise_at(frame)):
            self._left -= 1
            if self.came:
                raise Alarm
        return self.trace


class _AwaitedStore:
    """The async form of ``_Store``."""

    def __init__(self) -> None:
        self.busy = False

    async def carry_out(self, numbers: Sequence[int]) -> list[int | Exception]:
        assert not self.busy
        self.busy = True
        try:
            for _ in range(3):
                await asyncio.sleep(0)
            return [2 * number for number in numbers]
        finally:
            self.busy = False


async def _all_are_done(alarms: _Alarms) -> None:
    coalescer: LoopCoalescer[int, int] = LoopCoalescer(_AwaitedStore().carry_out, Limits(0.01, most=3))

    async def asks(number: int) -> None:
        for more in range(3):
            with suppress(Alarm, BackendUnavailable):
                assert await coalescer.ask(number + more) == 2 * (number + more)

    before = sys.gettrace()
    sys.settrace(alarms.trace)
    try:
        await asyncio.wait_for(asyncio.gather(*(asks(10 * number) for number in range(1, 6))), 20)
    finally:
        sys.settrace(before)
    assert await asyncio.wait_for(_served(coalescer, 7), 20) == 14


async def _served(coalescer: LoopCoalescer[int, int], number: int) -> int:
    while True:
        while coalescer.busy:
            await asyncio.sleep(0)
        with suppress(BackendUnavailable):  # on a busy machine
            return await coalescer.ask(number)


def test_no_task_is_stranded_wherever_a_handler_raises() -> None:
    """B-10b: on event loops: a handler raises once, at each line in turn. All waiting tasks get a result, and the next
    call goes at once.
    """
    line = 0
    while True:
        alarms = _Alarms(line)
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_: None)  # where it raises in a callback
        try:
            loop.run_until_complete(_all_are_done(alarms))
        except BaseException as error:
            raise AssertionError(f"line {line}") from error
        finally:
            loop.close()
        if not alarms.came:
            return
        line += 1


def test_time_in_which_the_loop_stands_still_is_not_the_stores() -> None:
    """B-27: a view blocks the loop for longer than any call may wait; the waiting calls are sent after it."""
    sent: list[int] = []

    async def test() -> None:
        may_end = asyncio.Event()

        async def carry_out(numbers: Sequence[int]) -> list[int | Exception]:
            sent.extend(numbers)
            await may_end.wait()
            return [2 * number for number in numbers]

        coalescer: LoopCoalescer[int, int] = LoopCoalescer(carry_out, Limits(0.05))
        tasks = [asyncio.ensure_future(coalescer.ask(number)) for number in (1, 2, 3)]
        await asyncio.sleep(0)
        for _ in range(2):
            time.sleep(0.1)
            await asyncio.sleep(0)
        may_end.set()
        assert await asyncio.gather(*tasks) == [2, 4, 6]

    asyncio.run(asyncio.wait_for(test(), 20))
    assert sent == [1, 2, 3]


def test_a_request_that_was_refused_is_never_sent() -> None:
    """B-10b: the server accepted nothing while the loop ran, then the loop was blocked, then the server was available
    again.
    """
    sent: list[int] = []

    async def test() -> None:
        may_end = asyncio.Event()

        async def carry_out(numbers: Sequence[int]) -> list[int | Exception]:
            sent.extend(numbers)
            await may_end.wait()
            return [2 * number for number in numbers]

        coalescer: LoopCoalescer[int, int] = LoopCoalescer(carry_out, Limits(0.02))
        first, second = (asyncio.ensure_future(coalescer.ask(number)) for number in (1, 2))
        with pytest.raises(BackendUnavailable, match="no further calls"):
            await second
        time.sleep(0.05)
        may_end.set()
        assert await first == 2
        assert await coalescer.ask(3) == 6

    asyncio.run(asyncio.wait_for(test(), 20))
    assert sent == [1, 3]


def test_a_store_that_stands_still_keeps_no_task_for_ever() -> None:
    """B-10b: a call that was not sent in time is refused while the batch is in flight; a call that was sent is refused
    after a longer time.
    """

    async def test() -> None:
        away = asyncio.Event()

        async def carry_out(numbers: Sequence[int]) -> list[int | Exception]:
            if 1 not in numbers:
                away.set()
                await asyncio.Event().wait()
            await asyncio.sleep(0)
            return [2 * number for number in numbers]

        coalescer: LoopCoalescer[int, int] = LoopCoalescer(carry_out, Limits(0.02))
        first, sent = (asyncio.ensure_future(coalescer.ask(number)) for number in (1, 2))
        assert await first == 2
        await away.wait()
        waiting_ones = [asyncio.ensure_future(coalescer.ask(number)) for number in (3, 4)]
        for task in waiting_ones:
            with pytest.raises(BackendUnavailable, match="no further calls"):
                await task
        with pytest.raises(BackendUnavailable, match="no response in time"):
            await sent

    asyncio.run(asyncio.wait_for(test(), 20))
