"""The oracle: what was promised about each key, and whether everything that follows keeps the promise.

It sees commands when they arrive at the backend, effects when they happen, and responses when they are sent. It uses
neither the engine nor the decision table: it states the invariants I1 to I13 independently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from open_idempotency._core.stored_response import decode_response
from open_idempotency.backend import (
    Busy,
    Claim,
    Complete,
    Fail,
    Lease,
    Leased,
    Record,
    Release,
    Renew,
    Renewal,
    SaveStage,
    Status,
    Withdraw,
)
from tests.simulation.loop import Loop, Process, Task
from tests.simulation.network import Memory


@dataclass
class Promise:
    """A response that a client has received, and the token of its attempt."""

    status: int
    body: bytes
    token: int


@dataclass
class Owed:
    """A response that a client has received before it was on record: its process has to record it (L-08)."""

    token: int
    status: int
    body: bytes
    process: Process


@dataclass(eq=False)
class Work:
    """Running work of one attempt: its handler, or a thread that cancellation does not stop."""

    token: int
    process: Process


@dataclass
class Story:
    """One record as known outside. Times are the backend's."""

    token: int = 0
    owner: bytes = b""
    running: bool = False
    lease_end: float = 0.0
    last_token: int = 0
    completed: bytes | None = None
    completed_until: float = 0.0
    #: the stages on record, by name and key, and those that each attempt was given
    recorded: set[str] = field(default_factory=set)
    reported: dict[int, frozenset[str]] = field(default_factory=dict)
    effects: list[tuple[str, int]] = field(default_factory=list)
    #: by stage and request: after a loss another request may use the key
    downstream: dict[tuple[str, bytes], str] = field(default_factory=dict)
    bodies: set[bytes] = field(default_factory=set)
    promise: Promise | None = None
    owed: Owed | None = None
    #: the running work
    works: list[Work] = field(default_factory=list)
    #: which process runs the handler of a token
    processes: dict[int, Process] = field(default_factory=dict)
    #: in the loop's seconds, when the lease was extended last and how long it was then
    renewed_at: float = 0.0
    duration: float = 0.0
    #: the tokens whose lease ended unavoidably
    excused: set[int] = field(default_factory=set)
    #: the tokens whose lease a jump of the backend's clock has ended
    jumped: set[int] = field(default_factory=set)
    #: the owners whose claims were withdrawn
    withdrawn: set[bytes] = field(default_factory=set)
    #: how often the record was lost, which voids earlier promises
    losses: int = 0


class Oracle:
    """Gets every event; calls ``loop.fail`` at the first violation."""

    def __init__(self, loop: Loop, memory: Memory, away_until: Callable[[], float]) -> None:
        self._loop = loop
        self._memory = memory
        self._away_until = away_until
        self.stories: dict[bytes, Story] = {}
        #: effects and responses, for the caller's own counts
        self.results = 0

    def story(self, record_id: bytes) -> Story:
        """The story of a record."""
        return self.stories.setdefault(record_id, Story())

    def vanished(self, record_id: bytes) -> None:
        """The backend has lost the record: earlier promises are void, but tokens still grow."""
        old = self.story(record_id)
        self.stories[record_id] = Story(
            last_token=old.last_token,
            withdrawn=old.withdrawn,
            effects=old.effects,
            downstream=old.downstream,
            losses=old.losses + 1,
        )

    # Where commands arrive

    def arrived(self, command: Any, before: Record | None, after: Record | None, outcome: Any) -> None:
        """A command was executed; ``before`` and ``after``: the record."""
        lease = getattr(command, "lease", None)
        if isinstance(lease, Lease):
            self._check_stale(lease, type(command).__name__, before, after)
        if not isinstance(outcome, BaseException):
            _SEEN[type(command)](self, command, outcome)
        if before is not None and after is None:
            self.story(before.record_id).bodies.clear()  # released, so any request may use the key

    def renewed(self, lease: Lease, before: Record | None, after: Record | None, result: Renewal) -> None:
        """One lease of a heartbeat was renewed."""
        self._check_stale(lease, "Renew", before, after)
        story = self.story(lease.record_id)
        if result is Renewal.OWNED and story.token == lease.token:
            self._extended(story, lease)

    def _extended(self, story: Story, lease: Lease) -> None:
        story.lease_end = self._memory.time() + lease.duration
        story.renewed_at, story.duration = self._loop.now, lease.duration

    def _check_stale(self, lease: Lease, verb: str, before: Record | None, after: Record | None) -> None:
        owns = before is None or (before.token, before.owner) == (lease.token, lease.owner)
        if not owns and after != before:
            self._loop.fail(f"I3: {verb} of the superseded token {lease.token} has changed the record")

    def _claimed(self, c: Claim, result: Any) -> None:
        story, now = self.story(c.record_id), self._memory.time()
        alive = story.running and now < story.lease_end
        if isinstance(result, Busy):
            if story.running and story.owner == c.owner:
                self._loop.fail("I6: an owner got Busy for its own lease")
            elif not alive:
                self._loop.fail("I5: Busy, although no attempt runs")
        elif isinstance(result, Leased):
            lease = result.lease
            if c.owner in story.withdrawn:
                self._loop.fail("B-08c: a claim was leased after its withdrawal")
            if lease.token != story.token or not story.running:
                self._check_new_owner(story, c, result, alive)
                story.reported[lease.token] = frozenset(story.recorded)
            story.token, story.owner, story.running = lease.token, lease.owner, True
            story.last_token = max(story.last_token, lease.token)
            self._extended(story, lease)

    def _check_new_owner(self, story: Story, c: Claim, result: Leased, alive: bool) -> None:
        if alive and story.owner != c.owner:
            self._loop.fail(f"I1: claimed while token {story.token} has an unexpired lease")
        if story.completed is not None and self._memory.time() < story.completed_until:
            self._loop.fail("I2: a completed key was claimed again within its TTL")
        if result.lease.token <= story.last_token:
            self._loop.fail("B-02: the token has not grown")
        missing = story.recorded - {stage.name + stage.key for stage in result.stages}
        if missing:
            self._loop.fail(f"I5: the new attempt did not get {sorted(missing)}")
        owner = story.processes.get(story.token)
        if story.running and not (owner is not None and self._could_renew(story, owner)):
            story.excused.add(story.token)
        if self._memory.jumped_at >= story.renewed_at:
            story.jumped.add(story.token)

    def _could_renew(self, story: Story, owner: Process) -> bool:
        """Whether the process could renew its lease during the last third of it, when that is due."""
        if owner.dead or self._memory.jumped_at >= story.renewed_at:
            return False
        last_trouble = max(owner.paused_until, owner.missed_at, self._away_until())
        return last_trouble <= story.renewed_at + story.duration * 2 / 3

    def _stage_saved(self, c: SaveStage, result: Any) -> None:
        story = self.story(c.lease.record_id)
        if result.recreated:
            self._taken(story, c.lease)
        elif c.stage.name + c.stage.key not in story.recorded:
            self._extended(story, c.lease)
        story.recorded.add(c.stage.name + c.stage.key)

    def _taken(self, story: Story, lease: Lease) -> None:
        story.token, story.owner, story.running = lease.token, lease.owner, True
        self._extended(story, lease)
        story.last_token = max(story.last_token, lease.token)

    def _completed(self, c: Complete, result: Any) -> None:
        story = self.story(c.lease.record_id)
        if result.recreated:
            self._taken(story, c.lease)
        if story.completed is None:
            story.completed, story.completed_until = c.response, self._memory.time() + c.lease.ttl
            self._pay(story, c)
        story.running = False

    def _pay(self, story: Story, c: Complete) -> None:
        """An owed response is on record: retries get exactly that."""
        owed = story.owed
        if owed is None or owed.token != c.lease.token:
            return
        if not _is(c.response, owed.status, owed.body):
            self._loop.fail("I13: another response was recorded than the client had got")
        story.promise, story.owed = Promise(owed.status, owed.body, owed.token), None

    def _ended(self, c: Fail | Release, _: Any) -> None:
        story = self.story(c.lease.record_id)
        if story.token == c.lease.token:
            story.running = False

    def _withdrawn(self, c: Withdraw, _: Any) -> None:
        story = self.story(c.claim.record_id)
        story.withdrawn.add(c.claim.owner)
        if story.owner == c.claim.owner:
            story.running = False

    # Where effects happen

    def started(self, record_id: bytes, lease: Lease | None, body: bytes, process: Process) -> None:
        """A handler begins."""
        story = self.story(record_id)
        if lease is None:
            self._loop.fail("I8: a handler runs without a lease")
            return
        if lease.token not in story.reported:
            self._loop.fail("I8: a handler runs on a lease that the backend has not given")
        story.bodies.add(body)
        if len(story.bodies) > 1:
            self._loop.fail("I7: one key ran for two requests")
        if story.promise is not None and lease.token > story.promise.token:
            self._loop.fail("I4: ran again after its response had been received")
        story.processes[lease.token] = process
        self._check_alone(story, lease)

    def _check_alone(self, story: Story, lease: Lease) -> None:
        """Check that a handler may begin now, by time, threads and processes."""
        if story.losses:
            return
        owns = story.token == lease.token
        jumped = self._memory.jumped_at >= story.renewed_at if owns else lease.token in story.jumped
        if not jumped and not (owns and self._memory.time() <= story.lease_end):
            self._loop.fail("L-10: a handler begins under a lease that has ended")
        for work in story.works:
            if self._holds(story, work.token, work.process, lease):
                self._loop.fail(f"I12: begins beside work of token {work.token}, whose lease could be renewed")
        owed = story.owed
        if owed is not None and self._holds(story, owed.token, owed.process, lease):
            self._loop.fail("I13: ran again after its response was received, while that was being recorded")

    def _holds(self, story: Story, token: int, process: Process, lease: Lease) -> bool:
        return token < lease.token and not process.dead and token not in story.excused

    def running(self, record_id: bytes, lease: Lease, process: Process) -> Callable[[], None]:
        """A handler, or its work in a thread, runs until the returned function is called."""
        story, work = self.story(record_id), Work(lease.token, process)
        story.works.append(work)
        return lambda: story.works.remove(work)

    def effect(self, record_id: bytes, stage: str, lease: Lease, body: bytes, downstream: str, external: bool) -> None:
        """A handler has had an irreversible effect. ``external``: its intent was recorded before (S-04)."""
        story = self.story(record_id)
        if external and not story.losses and any(stage == done for done, _ in story.effects):
            self._loop.fail(f"I9: the external {stage} happened twice")
        if (stage, lease.token) in story.effects:
            self._loop.fail(f"I9: {stage} happened twice in one attempt")
        if stage in story.reported.get(lease.token, ()):
            self._loop.fail(f"I5: {stage} was on record, and was done again")
        if story.downstream.setdefault((stage, body), downstream) != downstream:
            self._loop.fail(f"I9: {stage} was given two downstream keys")
        story.effects.append((stage, lease.token))

    # Where responses leave

    def responded(self, record_id: bytes, status: int, body: bytes, unrecorded: tuple[int, Process] | None) -> None:
        """The last byte of a handler's response, or of a replay, was sent.

        ``unrecorded``: token and process, if it is marked so.
        """
        self.results += 1
        story = self.story(record_id)
        if unrecorded is not None:
            if story.completed is None and story.token == unrecorded[0] and not story.losses:
                story.owed = Owed(unrecorded[0], status, body, unrecorded[1])
            return
        if story.promise is not None:
            if (story.promise.status, story.promise.body) != (status, body):
                self._loop.fail("I4: two different responses to one request")
        elif story.completed is not None and _is(story.completed, status, body):
            story.promise = Promise(status, body, story.last_token)
        elif not story.losses:
            self._loop.fail("I4: a response was sent before it was durable (R-03)")

    def refused_as_reused(self, record_id: bytes, body: bytes) -> None:
        """A 422 was sent."""
        story = self.story(record_id)
        if story.bodies == {body} and not story.losses and self._memory.look(record_id) is not None:
            self._loop.fail("I7: a request was taken for another one")

    def rested(self) -> None:
        """Everything is over, and the backend has been available for long."""
        for story in self.stories.values():
            owed = story.owed
            if owed is None or owed.process.dead or owed.token in story.excused or story.token != owed.token:
                continue
            self._loop.fail("I13: a response that its client has received was never recorded")

    def ended(self, task: Task) -> None:
        """A request has ended."""
        if task.claimed is None or task.trouble or task.process.dead:
            return
        record_id, owner = task.claimed
        record = self._memory.look(record_id)
        if record is not None and record.owner == owner and record.status is Status.IN_PROGRESS:
            self._loop.fail(f"L-04: {task.name} ended, and its claim still stands")


_SEEN: dict[type, Any] = {
    Claim: Oracle._claimed,
    SaveStage: Oracle._stage_saved,
    Complete: Oracle._completed,
    Fail: Oracle._ended,
    Release: Oracle._ended,
    Withdraw: Oracle._withdrawn,
}

__all__ = ["Oracle", "Promise", "Renew", "Story"]


def _is(frame: bytes, status: int, body: bytes) -> bool:
    stored = decode_response(frame)
    return (stored.status, stored.body) == (status, body)
