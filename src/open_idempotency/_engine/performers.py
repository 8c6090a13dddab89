"""The two performers: which callable carries out which command, sync and async."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable
from operator import methodcaller
from typing import Any, Protocol

from open_idempotency._core.attempt import Attempt
from open_idempotency._core.commands import (
    Call,
    Claim,
    Command,
    Complete,
    DrawReference,
    Emit,
    Fail,
    Forget,
    Get,
    KeepAlive,
    Look,
    Now,
    RecordLater,
    Release,
    Renew,
    Reserve,
    SaveStage,
    Sleep,
    TakeSlot,
    Unreserve,
    Wait,
    Withdraw,
)
from open_idempotency._core.drivers import AsyncDriver, Driver
from open_idempotency._engine.event_log import draw_reference, report
from open_idempotency._runtime import clocks, loops
from open_idempotency._runtime.processes import PerProcess
from open_idempotency.backend import AsyncBackend, Backend, ClaimResult, Leased
from open_idempotency.exceptions import BackendUnavailable


class Slots:
    """The slots in which requests of one process may wait. Nothing here waits itself.

    ``affordable``: how many slots there are where a command does not say; None for no limit."""

    def __init__(self, affordable: int | None) -> None:
        self._affordable = affordable
        self._taken = PerProcess(_Count)

    def take(self, command: TakeSlot) -> Callable[[], None] | None:
        """The function that frees the slot, to be called once; None where all slots are taken."""
        limit = self._affordable if command.slots is None else command.slots
        taken = self._taken.get()
        return taken.subtract if taken.add(limit) else None


class _Count:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._number = 0

    def add(self, limit: int | None) -> bool:
        with self._lock:
            if limit is not None and self._number >= limit:
                return False
            self._number += 1
        return True

    def subtract(self) -> None:
        with self._lock:
            self._number -= 1


# A request that waits on a thread keeps it from other requests, and no performer knows how many threads there are.
_SLOTS_ON_THREADS = 2


class Keeper(Protocol):
    """Keeps the leases of running attempts: the heartbeat."""

    def watch(self, attempt: Attempt) -> None:
        """Renew the attempt's lease from now on; ``BackendUnavailable`` where nobody can."""

    def record(self, command: RecordLater) -> bool:
        """Carry the steps out in the background; false where there is no room for them."""
        ...


class _Nobody:
    """Keeps no lease: for steps that are carried out without an engine, and run no handler."""

    def watch(self, attempt: Attempt) -> None:
        """The lease ends by itself."""

    def record(self, command: RecordLater) -> bool:
        return False


_NOBODY = _Nobody()


def _at_once(keeper: Keeper, slots: Slots) -> dict[type[Command[Any]], Callable[[Any], Any]]:
    """What carries the commands out that need no waiting, the same for both performers."""
    return {
        KeepAlive: lambda command: keeper.watch(command.attempt),
        RecordLater: keeper.record,
        TakeSlot: slots.take,
        Now: lambda _: clocks.elapsed(),
        DrawReference: draw_reference,
        Emit: report,
    }


#: calls the adapter's function of a ``Call``
_call = methodcaller("function")


class Performer(Driver):
    """Carries out commands on a sync ``Backend``. ``keeper``: the heartbeat on the same backend.

    ``look``: what looks for a response in a ledger.
    """

    def __init__(
        self, backend: Backend, keeper: Keeper = _NOBODY, look: Callable[[Look], bytes | None] | None = None
    ) -> None:
        self.backend = backend
        handlers: dict[type[Command[Any]], Callable[[Any], Any]] = {
            **_at_once(keeper, Slots(_SLOTS_ON_THREADS)),
            Reserve: backend.reserve,
            Unreserve: backend.unreserve,
            Claim: self._claim,
            Renew: backend.renew,
            SaveStage: backend.save_stage,
            Complete: backend.complete,
            Fail: backend.fail,
            Release: backend.release,
            Withdraw: backend.withdraw,
            Get: backend.get,
            Forget: lambda command: backend.delete(command.record_id),
            Wait: backend.wait,
            Call: _call,
            Sleep: lambda command: time.sleep(command.seconds),
        }
        if look is not None:
            handlers[Look] = look
        super().__init__(handlers)

    def _claim(self, command: Claim) -> ClaimResult:
        asked = clocks.elapsed()
        result = self.backend.claim(command)
        if isinstance(result, Leased):
            result.asked = asked
        return result


class AsyncPerformer(AsyncDriver):
    """Carries out commands on an ``AsyncBackend``."""

    def __init__(
        self,
        backend: AsyncBackend,
        keeper: Keeper = _NOBODY,
        look: Callable[[Look], Awaitable[bytes | None]] | None = None,
    ) -> None:
        self.backend = backend
        # Cleanup after a cancellation may cost two calls; it is bounded, since shutdown waits for it.
        #: seconds that a cleanup may take
        self.patience = 2 * backend.call_timeout + 1.0
        handlers: dict[type[Command[Any]], Callable[[Any], Any]] = {
            **_at_once(keeper, Slots(None)),
            Reserve: backend.reserve,
            Unreserve: backend.unreserve,
            Claim: self._claim,
            Renew: backend.renew,
            SaveStage: backend.save_stage,
            Complete: backend.complete,
            Fail: backend.fail,
            Release: backend.release,
            Withdraw: backend.withdraw,
            Get: backend.get,
            Forget: lambda command: backend.delete(command.record_id),
            Wait: backend.wait,
            Call: _call,
            Sleep: lambda command: loops.sleep(command.seconds),
        }
        if look is not None:
            handlers[Look] = look
        super().__init__(handlers)

    async def _claim(self, command: Claim) -> ClaimResult:
        asked = clocks.elapsed()
        result = await self.backend.claim(command)
        if isinstance(result, Leased):
            result.asked = asked
        return result

    async def _shield(self, call: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await loops.shielded(call, self.patience)
        except TimeoutError as error:
            raise BackendUnavailable("a backend call during cleanup did not end in time") from error
