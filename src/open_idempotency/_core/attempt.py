"""One attempt at one request: its lease, the stages known so far, and what became of it.

Shared by the adapter that runs the request, the helper ``idem`` and the heartbeat. It performs nothing.
"""

from __future__ import annotations

from enum import Enum

from open_idempotency._core.models import Lease, Stage
from open_idempotency.exceptions import AlreadyCompleted, LeaseLost, StageConflict
from open_idempotency.policy import IdempotencyPolicy

StageId = tuple[str, str]


class Phase(Enum):
    """Where an attempt stands."""

    RUNNING = "running"
    ENDED = "ended"


class Attempt:
    """A running request. Without a lease it is a covered request without a key: stages run plainly."""

    __slots__ = ("_used", "instance", "keep", "lease", "lost", "phase", "policy", "seed", "stages")

    def __init__(
        self,
        policy: IdempotencyPolicy,
        lease: Lease | None = None,
        stages: tuple[Stage, ...] = (),
        instance: str = "",
    ) -> None:
        self.policy = policy
        self.lease = lease
        #: the request's path, for problems
        self.instance = instance
        #: frames by (name, key), in the order in which they were saved
        self.stages: dict[StageId, bytes] = {(s.name, s.key): s.frame for s in stages}
        self._used: set[StageId] = set()
        #: what downstream keys derive from; random, and made when it is asked for, where there is no lease
        self.seed = lease.record_id + lease.fingerprint if lease else b""
        self.phase = Phase.RUNNING
        #: set by the heartbeat or a refused verb: another attempt owns the record
        self.lost = False
        #: the view's wish: True to store the answer, False to discard it, None for the policy's rule
        self.keep: bool | None = None

    def check_running(self) -> None:
        """Every stage boundary notices that the attempt ended (ERR_COMPLETED) or lost its lease (S-07)."""
        if self.phase is Phase.ENDED:
            raise AlreadyCompleted("the response is recorded already; stages belong before it")
        if self.lost:
            raise LeaseLost("another attempt has taken this request over; stop here")

    def enter(self, stage: StageId) -> None:
        """Note that this attempt runs a stage. Twice is a conflict: which of the two would a retry mean?"""
        if stage in self._used:
            name, key = stage
            where = f"stage {name!r} with key {key!r}" if key else f"stage {name!r}"
            raise StageConflict(f"{where} was used already in this attempt; give each use its own key=")
        self._used.add(stage)

    def leave(self, stage: StageId) -> None:
        """Take ``enter`` back: the stage failed and may be run again within this attempt."""
        self._used.discard(stage)
