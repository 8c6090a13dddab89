"""The backend as workers see it: the real memory backend on its own clock, behind a faulty network.

Requests and replies are lost, late, doubled and reordered; the backend is down for a while; its clock jumps. The real
``MemoryBackend`` executes what arrives, so that only the network is simulated.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from open_idempotency.backend import (
    AsyncBackend,
    Backend,
    Claim,
    ClaimResult,
    Complete,
    Completed,
    Fail,
    Get,
    Record,
    Release,
    Renew,
    Renewal,
    SaveStage,
    StageSaved,
    Wait,
    Withdraw,
)
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.exceptions import BackendUnavailable
from tests.simulation.loop import Future, Loop, Process, Task

#: a call's timeout in seconds; two of them are the slowest call
TIMEOUT = 1.0
EPOCH = 1_800_000_000.0
#: seconds for which a lock may hold a command
LONGEST_HOLD = 3.0
#: what a process without threads, file descriptors or memory raises
LOCAL: tuple[Callable[[], Exception], ...] = (
    lambda: RuntimeError("can't start new thread"),
    lambda: OSError(errno.EMFILE, "Too many open files"),
    MemoryError,
)
CarryOut = Callable[[Process, str, Any, float], Any]
LOCAL_KINDS = (RuntimeError, OSError, MemoryError)


@dataclass
class Weather:
    """The frequency of each fault, as a probability for one message."""

    lost_request: float = 0.0
    lost_reply: float = 0.0
    doubled: float = 0.0
    late: float = 0.0
    slow: float = 0.0
    #: a command waits for a lock of the backend
    held: float = 0.0
    #: a call fails in the process that makes it
    local: float = 0.0
    #: whether the driver retries a call without a reply, as client libraries do
    driver_retries: bool = True


class Memory(MemoryBackend):
    """The real backend, on a clock that jumps; the oracle uses ``look``, and the faults use ``lose``."""

    def __init__(self, loop: Loop) -> None:
        self.jumped = 0.0
        #: when it jumped last, in the loop's seconds
        self.jumped_at = -inf
        self._loop = loop
        super().__init__(clock=self.time)

    def time(self) -> float:
        """Seconds on the backend's clock."""
        return EPOCH + self._loop.now + self.jumped

    def jump(self, seconds: float) -> None:
        """Set the clock forward."""
        self.jumped += seconds
        self.jumped_at = self._loop.now

    def look(self, record_id: bytes) -> Record | None:
        """A copy of the record, if it is live."""
        return self._table.live(record_id)

    def forget_withdrawals(self) -> None:
        """Forget all withdrawals, for a missing guard."""
        self._table._withdrawn.clear()

    def record_ids(self) -> list[bytes]:
        """All ids, in the order of creation."""
        return list(self._table.records)


class Network:
    """The network between workers and backend. ``carry_out(process, verb, command, arrived)`` executes commands.

    ``arrived``: the time at which the command reached the backend, where it may have waited for a lock.
    ``before_sending`` is called with a process that is about to send, to kill or freeze it.
    """

    def __init__(self, loop: Loop, carry_out: CarryOut, before_sending: Callable[[Process], None]) -> None:
        self.loop = loop
        self.before_sending = before_sending
        self.weather = Weather()
        self.down_until = 0.0
        #: until then it is full: it accepts no new record, and renews existing ones
        self.full_until = 0.0
        self._carry_out = carry_out
        self._sent: dict[Task, int] = {}
        self._arrived: dict[Task, int] = {}

    async def call(self, process: Process, verb: str, command: Any) -> Any:
        """One call with its timeout, and the driver's own retry.

        It may have to wait for a connection first; cancelled there, nothing is sent.
        """
        self._fail_here(verb)
        if self.loop.random.random() < 0.5:
            await self.loop.sleep(self.loop.random.uniform(0.0, 0.02))
        try:
            result = await self._send(process, verb, command)
        except BackendUnavailable:
            if not self.weather.driver_retries:
                raise
            result = await self._send(process, verb, command)
        self._fail_here(verb)
        return result

    def _fail_here(self, verb: str) -> None:
        """Raise the error of a process without threads, files or memory, at the call or at its reply."""
        random = self.loop.random
        if self.weather.local and random.random() < self.weather.local:
            _excuse(None if self.loop.current is None else self.loop.current.root, f"{verb} failed locally")
            raise random.choice(LOCAL)()

    def fail_to_start(self) -> None:
        """Raise the error of a process that cannot start a thread."""
        if self.weather.local and self.loop.random.random() < 10 * self.weather.local:
            raise RuntimeError("can't start new thread")

    def call_at_once(self, process: Process, verb: str, command: Any) -> Any:
        """A call from a thread, which takes no time; it may be lost in either direction."""
        random, weather = self.loop.random, self.weather
        try:
            self._fail_here(verb)
            if self._refuses(command) or random.random() < weather.lost_request:
                raise BackendUnavailable("no connection")
            result = self._carry_out(process, verb, command, self.loop.now)
            if random.random() < weather.lost_reply:
                raise BackendUnavailable("no reply")
        except (BackendUnavailable, *LOCAL_KINDS):
            if verb == "renew":
                process.missed_at = self.loop.now
            raise
        return result

    def _refuses(self, command: Any) -> bool:
        now = self.loop.now
        return now < self.down_until or (now < self.full_until and isinstance(command, Complete | SaveStage))

    def _send(self, process: Process, verb: str, command: Any) -> Future:
        loop, random, weather = self.loop, self.loop.random, self.weather
        reply, task = Future(), loop.current
        root = None if task is None else task.root
        if root is not None and isinstance(command, Claim):
            root.claimed = command.record_id, command.owner
        self.before_sending(process)
        number = self._number(root)
        loop.after(TIMEOUT, lambda: self._time_out(reply, root), process)
        travel = random.uniform(0.0005, 0.02)
        if random.random() < weather.slow:
            travel += random.uniform(0.0, 1.5)
        if random.random() < weather.late:
            _excuse(root, f"{verb} late")
            travel += random.uniform(0.0, 25.0)
        if random.random() < weather.doubled:
            _excuse(root, f"{verb} doubled")
            loop.after(travel + random.uniform(0.0, 15.0), lambda: self._again(process, verb, command))
        if random.random() < weather.lost_request:
            _excuse(root, f"{verb} lost")
            return reply
        lose_reply = random.random() < weather.lost_reply
        if lose_reply:
            _excuse(root, f"reply to {verb} lost")
        loop.after(
            travel, lambda: self._arrive(process, verb, command, Future() if lose_reply else reply, root, number)
        )
        return reply

    def _time_out(self, reply: Future, root: Task | None) -> None:
        if not reply.done:
            _excuse(root, "timeout")
            reply.fail(BackendUnavailable("timeout"))

    def _number(self, root: Task | None) -> int:
        if root is None:
            return 0
        self._sent[root] = number = self._sent.get(root, 0) + 1
        return number

    def _arrive(self, process: Process, verb: str, command: Any, reply: Future, root: Task | None, number: int) -> None:
        if root is not None:
            if self._arrived.get(root, 0) > number:
                _excuse(root, "overtaken")
            self._arrived[root] = max(number, self._arrived.get(root, 0))
        random = self.loop.random
        if self.weather.held and random.random() < self.weather.held:
            _excuse(root, f"{verb} held")
            arrived = self.loop.now
            held = random.uniform(0.0, LONGEST_HOLD)
            self.loop.after(held, lambda: self._carry(process, verb, command, reply, root, arrived))
        else:
            self._carry(process, verb, command, reply, root, self.loop.now)

    def _carry(
        self, process: Process, verb: str, command: Any, reply: Future, root: Task | None, arrived: float
    ) -> None:
        if self._refuses(command):
            _excuse(root, "down")
            result: Any = BackendUnavailable("refused")
        else:
            result = self._outcome(process, verb, command, arrived)
        respond = reply.fail if isinstance(result, BaseException) else reply.set
        self.loop.after(self.loop.random.uniform(0.0005, 0.02), lambda: respond(result))

    def _again(self, process: Process, verb: str, command: Any) -> None:
        if not self._refuses(command):
            self._outcome(process, verb, command, self.loop.now)

    def _outcome(self, process: Process, verb: str, command: Any, arrived: float) -> Any:
        try:
            return self._carry_out(process, verb, command, arrived)
        except Exception as error:
            return error


def _excuse(root: Task | None, trouble: str) -> None:
    if root is not None:
        root.trouble.append(trouble)


class RemoteBackend(AsyncBackend):
    """The backend of one worker's engine."""

    call_timeout = 2 * TIMEOUT

    def __init__(self, network: Network, process: Process) -> None:
        self._network = network
        self._process = process
        self._sync = _Beating(network, process, self)

    async def _call(self, verb: str, command: Any) -> Any:
        return await self._network.call(self._process, verb, command)

    async def claim(self, c: Claim, /) -> ClaimResult:
        """See ``Backend.claim``."""
        result: ClaimResult = await self._call("claim", c)
        return result

    async def renew(self, c: Renew, /) -> Sequence[Renewal]:
        """See ``Backend.renew``."""
        result: Sequence[Renewal] = await self._call("renew", c)
        return result

    async def save_stage(self, c: SaveStage, /) -> StageSaved:
        """See ``Backend.save_stage``."""
        result: StageSaved = await self._call("save_stage", c)
        return result

    async def complete(self, c: Complete, /) -> Completed:
        """See ``Backend.complete``."""
        result: Completed = await self._call("complete", c)
        return result

    async def fail(self, c: Fail, /) -> None:
        """See ``Backend.fail``."""
        await self._call("fail", c)

    async def release(self, c: Release, /) -> None:
        """See ``Backend.release``."""
        await self._call("release", c)

    async def withdraw(self, c: Withdraw, /) -> None:
        """See ``Backend.withdraw``."""
        await self._call("withdraw", c)

    async def get(self, c: Get, /) -> Record | None:
        """See ``Backend.get``."""
        result: Record | None = await self._call("get", c)
        return result

    async def delete(self, record_id: bytes, /) -> bool:
        """Operators do not come through here."""
        raise NotImplementedError

    def scan(self) -> AsyncIterator[Record]:
        """Operators do not come through here."""
        raise NotImplementedError

    async def purge(self, limit: int = 1000) -> int:
        """Operators do not come through here."""
        raise NotImplementedError

    async def wait(self, c: Wait, /) -> None:
        """Poll, as the default does."""
        await self._network.loop.sleep(min(c.seconds, c.pause))

    def to_sync(self) -> Backend:
        """The heartbeat's backend."""
        return self._sync


class _Beating(Backend):
    """The sync mode, with which the heartbeat renews and records."""

    call_timeout = 2 * TIMEOUT

    def __init__(self, network: Network, process: Process, remote: RemoteBackend) -> None:
        self._network = network
        self._process = process
        self._remote = remote

    def _call(self, verb: str, command: Any) -> Any:
        return self._network.call_at_once(self._process, verb, command)

    def renew(self, c: Renew, /) -> Sequence[Renewal]:
        """See ``Backend.renew``."""
        result: Sequence[Renewal] = self._call("renew", c)
        return result

    def complete(self, c: Complete, /) -> Completed:
        """See ``Backend.complete``."""
        result: Completed = self._call("complete", c)
        return result

    def fail(self, c: Fail, /) -> None:
        """See ``Backend.fail``."""
        self._call("fail", c)

    def release(self, c: Release, /) -> None:
        """See ``Backend.release``."""
        self._call("release", c)

    def to_async(self) -> AsyncBackend:
        """The requests' backend."""
        return self._remote

    def _unused(self, *_: Any) -> Any:
        raise NotImplementedError

    def scan(self) -> Iterator[Record]:
        """Operators do not come through here."""
        raise NotImplementedError

    claim = save_stage = withdraw = get = delete = purge = _unused
