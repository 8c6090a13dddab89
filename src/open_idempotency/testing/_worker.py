"""The parts that replace those of an engine while a kit is in use: backend, performers, heartbeat, stages."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from open_idempotency._core.attempt import Attempt, Phase, StageId
from open_idempotency._core.commands import KeepAlive, RecordLater, Sleep, Steps
from open_idempotency._core.models import ClaimResult
from open_idempotency._engine.engine import AsyncPerformer, Performer, running
from open_idempotency._engine.heartbeat import Heartbeat
from open_idempotency._runtime import clocks, loops
from open_idempotency._stages.stages import PLAIN, StageUse, Terms
from open_idempotency.backend import (
    Claim,
    Complete,
    Completed,
    Fail,
    Get,
    Record,
    Release,
    Renew,
    Renewal,
    Reserve,
    ReserveResult,
    SaveStage,
    StageSaved,
    Unreserve,
    Wait,
    Withdraw,
)
from open_idempotency.backends.memory import AsyncMemoryBackend, MemoryBackend
from open_idempotency.ledger.transactions import alook, look
from open_idempotency.testing._script import Killed, Nested, NoResponse, Script

T = TypeVar("T")

# The backend


class KitBackend(MemoryBackend):
    """Records in memory, on the test's clock, which fail as the script says."""

    #: false, so that no warning asks for a shared backend: these records belong to one test
    in_memory = False

    def __init__(self, script: Script) -> None:
        super().__init__(clock=script.clock)
        self.script = script
        self._async = AsyncKitBackend(self)

    def claim_only(self, c: Claim) -> tuple[ClaimResult, Nested | None]:
        """Claim. Returns the result, and the request to send before the caller continues."""
        self.script.ask("claim")
        result = super().claim(c)
        return result, self.script.claimed(c.record_id, result)

    def claim(self, c: Claim, /) -> ClaimResult:
        """See ``Backend.claim``."""
        result, nested = self.claim_only(c)
        if nested is not None:
            _send_beside(self.script, nested)
        return result

    def renew(self, c: Renew, /) -> Sequence[Renewal]:
        """See ``Backend.renew``."""
        self.script.ask("renew")
        return super().renew(c)

    def save_stage(self, c: SaveStage, /) -> StageSaved:
        """See ``Backend.save_stage``."""
        self.script.ask("save_stage", c.lease.owner)
        return super().save_stage(c)

    def complete(self, c: Complete, /) -> Completed:
        """See ``Backend.complete``."""
        self.script.ask("complete", c.lease.owner)
        self.script.ending("complete", c.lease, c.response)
        done = super().complete(c)
        self.script.ended("complete", c.lease)
        return done

    def fail(self, c: Fail, /) -> None:
        """See ``Backend.fail``."""
        self.script.ask("fail", c.lease.owner)
        self.script.ending("fail", c.lease, c.response)
        super().fail(c)
        self.script.ended("fail", c.lease)

    def release(self, c: Release, /) -> None:
        """See ``Backend.release``."""
        self.script.ask("release", c.lease.owner)
        self.script.ending("release", c.lease, None)
        super().release(c)
        self.script.ended("release", c.lease)

    def withdraw(self, c: Withdraw, /) -> None:
        """See ``Backend.withdraw``."""
        self.script.ask("withdraw")
        super().withdraw(c)

    def get(self, c: Get, /) -> Record | None:
        """See ``Backend.get``."""
        self.script.ask("get")
        return super().get(c)

    def reserve(self, c: Reserve, /) -> ReserveResult:
        """See ``Backend.reserve``."""
        self.script.ask("reserve")
        return super().reserve(c)

    def unreserve(self, c: Unreserve, /) -> None:
        """See ``Backend.unreserve``."""
        self.script.ask("unreserve")
        super().unreserve(c)

    def wait(self, c: Wait, /) -> None:
        """See ``Backend.wait``. A request that is sent while another one is held waits only on the test's clock."""
        if self.script.nesting:
            pass_time(self, c.seconds)
        else:
            super().wait(c)


class AsyncKitBackend(AsyncMemoryBackend):
    """The async front over the same records."""

    def __init__(self, over: KitBackend) -> None:
        super().__init__(over=over)
        self._over = over

    async def claim(self, c: Claim, /) -> ClaimResult:
        """See ``Backend.claim``."""
        result, nested = self._over.claim_only(c)
        if nested is not None:
            await _asend_beside(self._over.script, nested)
        return result

    async def wait(self, c: Wait, /) -> None:
        """See ``KitBackend.wait``."""
        if self._over.script.nesting:
            pass_time(self._over, c.seconds)
        else:
            await super().wait(c)


def pass_time(backend: KitBackend, seconds: float, *, frozen: bool = False) -> None:
    """Move the clock. Living workers renew their leases meanwhile, unless they are ``frozen``."""
    script = backend.script
    script.clock.move(seconds)
    if frozen or "renew" in script.down:
        return
    for lease, attempt in script.living():
        (found,) = MemoryBackend.renew(backend, Renew([lease]))
        if found is Renewal.OWNED and attempt is not None and attempt.lease is not None:
            attempt.confirmed(clocks.elapsed())


# Requests that are sent while another one is held


def _send_beside(script: Script, nested: Nested) -> None:
    script.nesting += 1
    try:
        if nested.send is not None:
            _apart(nested.send)
        elif nested.asend is not None:
            _send_from_sync(nested.asend)
    finally:
        script.nesting -= 1


async def _asend_beside(script: Script, nested: Nested) -> None:
    script.nesting += 1
    try:
        if nested.send is not None:
            await loops.in_thread(_apart, nested.send)
        elif nested.asend is not None and loops.current_library() == "asyncio":
            await asyncio.ensure_future(nested.asend())  # a task has a context of its own
        elif nested.asend is not None:
            await nested.asend()
    finally:
        script.nesting -= 1


def _apart(send: Callable[[], Any]) -> None:
    """Call it in a context in which no request runs."""
    context = contextvars.copy_context()
    context.run(running.set, None)
    context.run(send)


def _send_from_sync(asend: Callable[[], Awaitable[Any]]) -> None:
    """Send by an async client from sync code, such as a sync middleware of a Django project under ASGI."""

    async def send() -> None:
        await asend()

    asgiref = sys.modules.get("asgiref.sync")
    if asgiref is not None:  # it knows which loop the code came from, and which thread that loop needs
        asgiref.async_to_sync(send)()
        return
    thread = threading.Thread(target=lambda: asyncio.run(send()), name="open-idempotency-duplicate")
    thread.start()
    thread.join()


# The performers


def _settled(steps: Steps[Any]) -> tuple[Attempt | None, bool]:
    """The attempt that the steps settle, and whether its view has responded; None for other steps.

    ``finish`` and ``abort`` of ``_core.settlement`` are known by their names, and by that of their first argument.
    """
    name = getattr(steps, "__name__", "")
    frame = getattr(steps, "gi_frame", None)
    if name not in ("finish", "abort") or frame is None:
        return None, False
    attempt = frame.f_locals.get("attempt")
    return (attempt if isinstance(attempt, Attempt) else None), name == "finish"


class KitPerformer(Performer):
    """Carries commands out on a kit's backend."""

    def __init__(self, backend: KitBackend, heartbeat: Heartbeat) -> None:
        super().__init__(backend, heartbeat, look)
        self._script = backend.script
        self._backend = backend
        self._heartbeat = heartbeat
        self._plain_sleep = self._handlers[Sleep]
        self._handlers = {**self._handlers, Sleep: self._sleep}

    def for_coroutines(self) -> AsyncPerformer:
        """See ``Performer.for_coroutines``; the records are in memory, which every event loop reaches."""
        return AsyncKitPerformer(self._backend, self._heartbeat)

    def run(self, steps: Steps[T]) -> T:
        """See ``Driver.run``. An attempt that has died leaves as ``NoResponse``, which servers survive."""
        attempt, responded = _settled(steps)
        try:
            result = super().run(steps)
        except Killed as error:
            if attempt is None:
                raise
            raise NoResponse(str(error)) from None
        if attempt is not None:
            self._script.check_alive(attempt, responded)
        return result

    def _sleep(self, command: Sleep) -> None:
        if self._script.down and command.seconds:
            pass_time(self._backend, command.seconds)
        else:
            self._plain_sleep(command)


class AsyncKitPerformer(AsyncPerformer):
    """``KitPerformer``, async."""

    def __init__(self, backend: KitBackend, heartbeat: Heartbeat) -> None:
        super().__init__(backend.to_async(), heartbeat, alook)
        self._script = backend.script
        self._over = backend
        self._plain_sleep = self._handlers[Sleep]
        self._handlers = {**self._handlers, Sleep: self._sleep}

    async def run(self, steps: Steps[T], *, guarded: bool = False) -> T:
        """See ``AsyncDriver.run``."""
        attempt, responded = _settled(steps)
        try:
            result = await super().run(steps, guarded=guarded)
        except Killed as error:
            if attempt is None:
                raise
            raise NoResponse(str(error)) from None
        if attempt is not None:
            self._script.check_alive(attempt, responded)
        return result

    async def _sleep(self, command: Sleep) -> None:
        if self._script.down and command.seconds:
            pass_time(self._over, command.seconds)
        else:
            await self._plain_sleep(command)


class KitHeartbeat(Heartbeat):
    """Knows which attempts run. It has no thread: on a clock that stands still no lease ends by itself."""

    def __init__(self, backend: KitBackend) -> None:
        super().__init__(backend)
        self._script = backend.script
        self._later: list[RecordLater] = []

    def keep(self, command: KeepAlive) -> None:
        """See ``Heartbeat.keep``."""
        if command.attempt.lease is not None:
            self._script.watch(command.attempt)

    def forget(self, attempt: Attempt) -> None:
        """See ``Heartbeat.forget``."""
        if attempt.lease is not None and all(later.attempt is not attempt for later in self._later):
            self._script.forget(attempt.lease.owner)

    def record(self, command: RecordLater) -> bool:
        """Keep the steps until the backend is up again."""
        self._later.append(command)
        return True

    def catch_up(self, performer: Performer) -> None:
        """Record what was delayed, since the backend is up again."""
        later, self._later = self._later, []
        for command in later:
            performer.run(command.steps)


# Stages


class WatchedStage(StageUse):
    """A stage that reports each point that it reaches, while a kit is in use."""

    __slots__ = ()
    script: Script | None = None

    def __init__(
        self, attempt: Attempt, stage: StageId, terms: Terms = PLAIN, function: Callable[..., Any] | None = None
    ) -> None:
        if self.script is not None and attempt.phase is Phase.RUNNING:
            self.script.reach(attempt, stage, "before")
        super().__init__(attempt, stage, terms, function)

    def _save(self, frame: bytes, value: object = None, raised: bool = False) -> Steps[None]:
        script = self.script
        if script is not None:
            script.reach(self._attempt, self.id, "unrecorded")
        yield from super()._save(frame, value, raised)
        if script is not None:
            script.reach(self._attempt, self.id, "after")
