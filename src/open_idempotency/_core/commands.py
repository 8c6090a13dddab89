"""The commands of the core, and the two drivers that carry them out, sync and async.

The order of operations is written once, as generators. A generator yields a command and is resumed with its result; an
error of the command is thrown into it where it was yielded. So one function shows both the order and what happens on a
failure. Never ``close()`` a suspended generator: throw into it, so that its cleanup commands run.

A command is carried out by a verb of the backend, by the adapter or by the performer. It is also the argument of the
backend's verb of the same name, so a backend, a wrapper and a test all see the same value. ``Command[R]`` carries the
type of its result.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import inf, isinf
from typing import Any, Generic, Protocol, TypeVar

from open_idempotency._core.attempt import Attempt
from open_idempotency._core.models import (
    ClaimResult,
    Completed,
    Freed,
    Lease,
    Ledger,
    Record,
    Renewal,
    Request,
    ReserveResult,
    Stage,
    StageSaved,
    Status,
)
from open_idempotency.events import Event, Listener

R_co = TypeVar("R_co", covariant=True)


class Command(Generic[R_co]):
    """Something to carry out; the engine is resumed with an ``R_co``."""

    __slots__ = ()


class AtOnce(Command[R_co]):
    """A command that needs no waiting: an async performer calls what carries it out, and awaits nothing."""

    __slots__ = ()


@dataclass(slots=True)
class Claim(Command[ClaimResult]):
    """Take the record if it is free, else report its state.

    ``owner``: 16 random bytes, made once for each request. ``lease``, ``ttl``: seconds. The next three say which
    takeovers the caller wants; the result is ``Refused`` for one that it does not want. ``about``: at most
    ``MOST_ABOUT`` bytes for operators, stored with the record by a claim that is leased. ``asked``: not for backends.
    """

    record_id: bytes
    fingerprint: bytes
    owner: bytes
    lease: float
    ttl: float
    resume_failed: bool = True
    resume_abandoned: bool = True
    max_attempts: int | None = None
    about: bytes = b""
    #: on the clock of ``Now``; set by the driver where it is not set
    asked: float = field(default=inf, compare=False)


@dataclass(slots=True)
class Renew(Command[Sequence[Renewal]]):
    """Extend many leases by their duration in one call; one result for each, in order."""

    leases: Sequence[Lease]


@dataclass(slots=True)
class SaveStage(Command[StageSaved]):
    """Append a stage unless (name, key) is there already; a saved value never changes."""

    lease: Lease
    stage: Stage


@dataclass(slots=True)
class Complete(Command[Completed]):
    """Make the response durable; the record is final until its TTL, which starts now, ends.

    The TTL is that of the command's lease. It may be shorter than the claim's, and replaces it in the record.
    ``asked``: not for backends.
    """

    lease: Lease
    response: bytes
    #: when it was first sent, on the clock of ``Now``; the driver sets it, and until then it is long ago
    asked: float = field(default=-inf, compare=False)


@dataclass(slots=True)
class Fail(Command[None]):
    """End the attempt without a result; stages stay. ``final`` admits no further attempt."""

    lease: Lease
    final: bool = False
    response: bytes | None = None


@dataclass(slots=True)
class Release(Command[None]):
    """Give the claim back as if it had not been made; stages stay, the attempt does not count."""

    lease: Lease


@dataclass(slots=True)
class Withdraw(Command[None]):
    """Take ``claim`` back if it was made, and refuse it if it arrives later: its caller no longer waits for the reply.

    Sent once the claim's caller was cancelled, so its owner runs nothing. This changes the record as ``Release``
    by that owner would, and not at all if another owner has it.
    """

    claim: Claim


@dataclass(slots=True)
class Get(Command[Record | None]):
    """Read a record; changes and extends nothing."""

    record_id: bytes


@dataclass(slots=True)
class Forget(Command[bool]):
    """Delete a record in any state. The result is whether there was one. Compares no token: the engine has checked."""

    record_id: bytes


@dataclass(slots=True)
class Free(Command[Freed]):
    """An operator frees a key, if its record is still the one that was seen.

    ``token``, ``status``: of the record that was seen. ``keep_stages``: the attempt ends, its owner is fenced off, the
    stages stay, and the next claim is admitted whatever its policy says of failed or abandoned attempts; a completed
    record is ``CHANGED``. Otherwise the record is deleted. ``alive``: also while its lease lasts.
    """

    record_id: bytes
    token: int
    status: Status
    keep_stages: bool = False
    alive: bool = False


@dataclass(slots=True)
class Reserve(Command[ReserveResult]):
    """Count a key towards its caller's quota, unless ``limit`` others count already. Comes before the claim.

    ``scope_id``: the digest that stands for the caller. ``lease``, ``ttl``: seconds, those of the claim.
    """

    scope_id: bytes
    record_id: bytes
    limit: int
    lease: float
    ttl: float


@dataclass(slots=True)
class Unreserve(Command[None]):
    """Stop counting a key towards its caller's quota, since its record is gone."""

    scope_id: bytes
    record_id: bytes


@dataclass(slots=True)
class Wait(Command[None]):
    """Let time pass until the attempt that holds the record may have ended, and ``seconds`` at most.

    ``pause``: seconds after which a backend that cannot be notified of an end is to return. The engine claims again
    after each wait, and lets the pause grow from one to the next.
    """

    record_id: bytes
    seconds: float
    pause: float


@dataclass(slots=True)
class TakeSlot(AtOnce[Callable[[], None] | None]):
    """Take one of the slots in which requests of this process may wait.

    The result is the function that frees the slot, or None where all slots are taken. ``slots``: how many there are;
    None for as many as the performer can afford.
    """

    slots: int | None


@dataclass(slots=True)
class KeepAlive(AtOnce[None]):
    """Renew the attempt's lease from now on, until the adapter forgets the attempt.

    Raises ``BackendUnavailable`` where it cannot be renewed.
    """

    attempt: Attempt


@dataclass(slots=True)
class RecordLater(AtOnce[bool]):
    """Carry out ``steps`` in the background, and renew the attempt's lease until they have ended.

    False where there is no room for them. ``size``: bytes that they keep in memory. ``until``: seconds on the
    monotonic clock at which they give up by themselves. ``lost``: what to report where the process ends before them.
    """

    attempt: Attempt
    steps: Generator[Command[Any], Any, None]
    size: int
    until: float
    lost: Event | None = None


@dataclass(slots=True)
class Sleep(Command[None]):
    """Let ``seconds`` pass."""

    seconds: float


@dataclass(slots=True)
class Now(AtOnce[float]):
    """Seconds on a clock that only grows, and goes on while the machine sleeps (``_runtime.clocks``).

    For the engine's own deadlines, and for how long a lease lasts at least. No backend sees it.
    """


@dataclass(slots=True)
class Look(Command[bytes | None]):
    """Look for the response of a request in the ledger that its policy names; the sealed frame, None without one.

    ``ledger``: as in the policy.
    """

    ledger: Ledger
    record_id: bytes
    fingerprint: bytes


@dataclass(slots=True)
class Call(Command[R_co]):
    """Call a function of the adapter's, sync or async, such as the one that reads the body or identifies the user."""

    function: Callable[[], R_co | Awaitable[R_co]]


@dataclass(slots=True)
class DrawReference(AtOnce[str]):
    """Draw a random id, by which a problem is found in the log (O-32)."""


@dataclass(slots=True)
class Emit(AtOnce[None]):
    """Log an event, and call the policy's listener, if it has one. ``of``: the request that the event is about."""

    event: Event
    listener: Listener | None
    of: Request | Attempt | None = field(default=None, compare=False)


# The drivers

T = TypeVar("T")
R = TypeVar("R")

Steps = Generator[Command[Any], Any, T]
Handlers = Mapping[type[Command[Any]], Callable[[Any], Any]]


def ask(command: Command[R]) -> Generator[Command[Any], Any, R]:
    """Yield one command; ``yield from ask(...)`` has the command's result and its type."""
    result: R = yield command
    return result


class Clock(Protocol):
    """Has the time. ``elapsed`` is looked up at each call, since the test kit replaces it."""

    @property
    def elapsed(self) -> Callable[[], float]:
        """Returns seconds on a clock that only grows."""
        ...


class Driver:
    """Runs engines sync. ``handlers``: what carries each kind of command out.

    ``clock``: that of ``Now``. A claim or completion notes when it was asked for, right before the call. The backend
    counts from a later moment, so no lease ends sooner than expected here.
    """

    def __init__(self, handlers: Handlers, clock: Clock | None = None) -> None:
        self._handlers = handlers
        self._clock = clock

    def run(self, steps: Steps[T]) -> T:
        """Run an engine to its end; returns or raises what it does."""
        handlers = self._handlers
        try:
            command = next(steps)
            while True:
                try:
                    if isinstance(command, Claim | Complete) and isinf(command.asked) and self._clock is not None:
                        command.asked = self._clock.elapsed()
                    reply = handlers[type(command)](command)
                except BaseException as error:
                    command = steps.throw(self._meant(command, error))
                else:
                    command = steps.send(reply)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _meant(self, command: Command[Any], error: BaseException) -> BaseException:
        """The error to throw into the engine for an error of a command: by default the same one."""
        return error


class AsyncDriver:
    """Runs engines async. What the handlers return is awaited, except for commands that are ``AtOnce``."""

    def __init__(self, handlers: Handlers, clock: Clock | None = None) -> None:
        self._handlers = handlers
        self._clock = clock

    async def run(self, steps: Steps[T], *, guarded: bool = False) -> T:
        """Run an engine to its end. After a cancellation the rest, its cleanup, is carried out under ``_shield``.

        ``guarded``: shield from the start, for the end of a request that is being cancelled already.
        """
        handlers = self._handlers
        try:
            command = next(steps)
            while True:
                try:
                    handler = handlers[type(command)]
                    if isinstance(command, Claim | Complete) and isinf(command.asked) and self._clock is not None:
                        command.asked = self._clock.elapsed()
                    if isinstance(command, AtOnce):
                        reply = handler(command)
                    elif guarded:
                        reply = await self._shield(partial(handler, command))
                    else:
                        reply = await handler(command)
                except BaseException as error:
                    guarded = guarded or not isinstance(error, Exception)
                    command = steps.throw(self._meant(command, error))
                else:
                    command = steps.send(reply)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _meant(self, command: Command[Any], error: BaseException) -> BaseException:
        """See ``Driver``."""
        return error

    async def _shield(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Carry out a call although this task is being cancelled. A subclass protects the call; this class does not."""
        return await call()
