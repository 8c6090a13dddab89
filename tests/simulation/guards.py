"""Sites that lack one guard each. The library is not changed: its environment is made to behave without the guard."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any, cast

from open_idempotency import _asgi
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.commands import KeepAlive, RecordLater
from open_idempotency._engine.thread_calls import ThreadCalls
from open_idempotency.backend import (
    Busy,
    Claim,
    ClaimResult,
    Complete,
    Completed,
    Lease,
    Leased,
    SaveStage,
    StageSaved,
    Status,
)
from open_idempotency.exceptions import BackendUnavailable, LeaseLost
from tests.simulation.environment import VirtualHeartbeat, VirtualPerformer
from tests.simulation.loop import Process
from tests.simulation.network import EPOCH, Network, RemoteBackend
from tests.simulation.site import Site


class WithoutTokenComparison(Site):
    """The backend accepts writes of any earlier owner (B-03)."""

    def decide(self, process: Process, verb: str, command: Any) -> Any:
        """Every lease is the current one."""
        lease = getattr(command, "lease", None)
        record = self.memory.look(lease.record_id) if isinstance(lease, Lease) else None
        if isinstance(lease, Lease) and record is not None:
            command = replace(command, lease=replace(lease, token=record.token, owner=record.owner))
        return super().decide(process, verb, command)


class WithoutReentrancy(Site):
    """The backend returns Busy to an owner that claims again (B-08)."""

    def decide(self, process: Process, verb: str, command: Any) -> Any:
        """A running record is busy for every claim."""
        record = self.memory.look(command.record_id) if isinstance(command, Claim) else None
        if record is not None and record.status is Status.IN_PROGRESS and record.owner == command.owner:
            now = self.memory.time()
            if now < record.lease_end:
                return Busy(now - record.claimed_at, record.lease_end - now)
        return super().decide(process, verb, command)


class WithoutMismatchCheck(Site):
    """The backend does not compare fingerprints (O-05)."""

    def decide(self, process: Process, verb: str, command: Any) -> Any:
        """Every request has the recorded fingerprint."""
        record = self.memory.look(command.record_id) if isinstance(command, Claim) else None
        if record is not None:
            command = replace(command, fingerprint=record.fingerprint)
        return super().decide(process, verb, command)


class WithoutTheBackendsClock(Site):
    """Leases end by the clock of the worker that calls (L-07)."""

    def decide(self, process: Process, verb: str, command: Any) -> Any:
        """The time is that of the calling worker."""
        with self._clock_of(process):
            return super().decide(process, verb, command)

    @contextmanager
    def _clock_of(self, process: Process) -> Iterator[None]:
        self.memory.jumped += process.skew
        try:
            yield
        finally:
            self.memory.jumped -= process.skew


class WithoutMemoryOfWithdrawals(Site):
    """A withdrawal releases the record that it finds, and is not remembered (B-08c)."""

    def decide(self, process: Process, verb: str, command: Any) -> Any:
        """Forget all withdrawals."""
        result = super().decide(process, verb, command)
        self.memory.forget_withdrawals()
        return result


class WithoutStages(Site):
    """A new attempt does not get the stages of earlier ones (B-01)."""

    def decide(self, process: Process, verb: str, command: Any) -> Any:
        """Every claim returns no stages."""
        result = super().decide(process, verb, command)
        return replace(result, stages=()) if isinstance(result, Leased) else result


class _Unshielded(VirtualPerformer):
    async def _shield(self, call: Callable[[], Awaitable[Any]]) -> Any:
        return await call()


class WithoutShield(Site):
    """A cancellation interrupts the cleanup as well (L-04)."""

    make_performer = _Unshielded


class _SendsFirst(VirtualPerformer):
    def __init__(self, site: Site, process: Process, backend: RemoteBackend) -> None:
        super().__init__(site, process, backend)
        self._handlers = {**self._handlers, Complete: self._complete_later}

    async def _complete_later(self, c: Complete) -> Completed:
        self.site.loop.spawn(self.process, self._completed(c), "completion")
        return Completed()

    async def _completed(self, c: Complete) -> Completed:
        return await self.backend.complete(c)


class WithoutStoreBeforeSend(Site):
    """The response is sent while its completion is in flight (R-03)."""

    make_performer = _SendsFirst


class _DoesNotBeat(VirtualHeartbeat):
    def keep(self, command: KeepAlive) -> None:
        """Nothing is renewed."""


class WithoutHeartbeat(Site):
    """Leases are not renewed (L-01)."""

    make_heartbeat = _DoesNotBeat


class _DoesNotListen(VirtualPerformer):
    def __init__(self, site: Site, process: Process, backend: RemoteBackend) -> None:
        super().__init__(site, process, backend)
        self._completed = self._handlers[Complete]
        self._handlers = {**self._handlers, Complete: self._complete, SaveStage: self._save_stage}

    async def _complete(self, c: Complete) -> Completed:
        try:
            return cast(Completed, await self._completed(c))
        except LeaseLost:
            return Completed()

    async def _save_stage(self, c: SaveStage) -> StageSaved:
        try:
            return await self.backend.save_stage(c)
        except LeaseLost:
            return StageSaved(c.stage.frame)


class WithoutHeedingRefusals(Site):
    """A stale owner is refused, and its client gets its response nevertheless (L-03)."""

    make_performer = _DoesNotListen


class _RecordsNoIntent(VirtualPerformer):
    def __init__(self, site: Site, process: Process, backend: RemoteBackend) -> None:
        super().__init__(site, process, backend)
        self._handlers = {**self._handlers, SaveStage: self._save_stage}

    async def _save_stage(self, c: SaveStage) -> StageSaved:
        # The application's own stages have no key, so a stage with a key is an intent.
        return StageSaved(c.stage.frame) if c.stage.key else await self.backend.save_stage(c)


class WithoutIntents(Site):
    """An external stage records no intent before its effect (S-04)."""

    make_performer = _RecordsNoIntent


class _RunsAnyway(VirtualPerformer):
    def __init__(self, site: Site, process: Process, backend: RemoteBackend) -> None:
        super().__init__(site, process, backend)
        self._handlers = {**self._handlers, Claim: self._claim}

    async def _claim(self, c: Claim) -> ClaimResult:
        try:
            return await self.backend.claim(c)
        except BackendUnavailable:
            token = int((EPOCH + self.site.loop.now) * 1_000_000)
            return Leased(Lease(c.record_id, c.owner, token, 1, c.fingerprint, c.lease, c.ttl))


class WithoutFailingClosed(Site):
    """Without a reply from the backend the request runs (O-12)."""

    make_performer = _RunsAnyway


class WithoutClockAfterTheLock(Site):
    """The backend reads its clock before it waits for a lock (B-02)."""

    def decide(self, process: Process, verb: str, command: Any) -> Any:
        """The time is that of the command's arrival."""
        waited = self.loop.now - self.arrived
        self.memory.jumped -= waited
        try:
            return super().decide(process, verb, command)
        finally:
            self.memory.jumped += waited


class _Untranslated(RemoteBackend):
    """A backend whose verbs raise the process's own errors."""

    def __init__(self, network: Network, process: Process) -> None:
        super().__init__(network, process)
        for verb in ("claim", "renew", "save_stage", "complete", "fail", "release", "withdraw", "get"):
            setattr(self, verb, partial(self._call, verb))


class WithoutLocalFailures(Site):
    """A failure in the calling process does not count as a failed backend (B-10a)."""

    make_backend = _Untranslated


class _Unseen(ThreadCalls):
    left_behind = False


class WithoutWaitingForThreads(Site):
    """A cancelled request ends at once, even if its threads still run (L-09)."""

    def watch_threads(self, attempt: Attempt) -> None:
        """Threads that are left behind are not watched."""
        if attempt.threads is None:
            attempt.threads = _Unseen(attempt.policy.max_run)


class WithoutHoldingBack(Site):
    """A cancellation is raised at once, even if a thread runs (L-09)."""

    holds = False


class WithoutAskingBeforeTheHandler(Site):
    """A handler begins, however long the claim's reply took (L-10)."""

    def clocks(self) -> dict[Any, Callable[[], float]]:
        """The middleware knows of no time."""
        return {_asgi: lambda: -inf}


class _StartsAnyway(VirtualHeartbeat):
    def keep(self, command: KeepAlive) -> None:
        with suppress(BackendUnavailable):
            super().keep(command)


class WithoutRefusingUnrenewable(Site):
    """A request runs although its lease cannot be renewed (L-11)."""

    make_heartbeat = _StartsAnyway


class _DropsRecordings(VirtualHeartbeat):
    def record(self, command: RecordLater) -> bool:
        return True


class WithoutRecordingThatGoesOn(Site):
    """After the client has its response, recording stops (L-08)."""

    make_heartbeat = _DropsRecordings


class _ForgetsAtOnce(VirtualHeartbeat):
    def record(self, command: RecordLater) -> bool:
        taken = super().record(command)
        self.beats._watched.clear()
        return taken


class WithoutRenewingWhileRecording(Site):
    """Leases are not renewed while responses are recorded in the background (L-08)."""

    make_heartbeat = _ForgetsAtOnce


WITHOUT: dict[str, type[Site]] = {
    "token-comparison": WithoutTokenComparison,
    "re-entrancy": WithoutReentrancy,
    "mismatch-check": WithoutMismatchCheck,
    "backends-clock": WithoutTheBackendsClock,
    "stages": WithoutStages,
    "memory-of-withdrawals": WithoutMemoryOfWithdrawals,
    "shield": WithoutShield,
    "store-before-send": WithoutStoreBeforeSend,
    "heartbeat": WithoutHeartbeat,
    "heeding-refusals": WithoutHeedingRefusals,
    "intents": WithoutIntents,
    "failing-closed": WithoutFailingClosed,
    "clock-after-lock": WithoutClockAfterTheLock,
    "local-failures": WithoutLocalFailures,
    "waiting-for-threads": WithoutWaitingForThreads,
    "holding-back": WithoutHoldingBack,
    "lease-before-handler": WithoutAskingBeforeTheHandler,
    "renewable-or-refused": WithoutRefusingUnrenewable,
    "recording-goes-on": WithoutRecordingThatGoesOn,
    "renewed-while-recording": WithoutRenewingWhileRecording,
}
