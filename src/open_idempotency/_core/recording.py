"""Recording: how a running attempt writes, and how a write that must not be lost is tried again (L-08).

There are two limits. The client waits for ``respond_within`` seconds at most. The recording goes on in the background,
where leases are renewed, until it succeeds, until a later attempt owns the record, or until ``record_within`` is over.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from open_idempotency import events
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.commands import (
    Command,
    Complete,
    Fail,
    Now,
    R,
    RecordLater,
    Release,
    Renew,
    SaveStage,
    Sleep,
    Steps,
    TakeSlot,
    ask,
)
from open_idempotency._core.models import Completed, Lease, Renewal, Stage, StageSaved
from open_idempotency._core.notify import FIRST_PAUSE, LONGEST_PAUSE, cause, notify, warn
from open_idempotency._core.quotas import unreserve
from open_idempotency._core.stored_response import FAILURE, RESPONSE, seal_stage, smaller, unseal_stage
from open_idempotency.exceptions import BackendUnavailable, LeaseLost, RecordTooLarge, RecordUnreadable
from open_idempotency.policy import IdempotencyPolicy

Write = Complete | Fail | Release

#: seconds that a response may wait to be recorded while it occupies a thread that other requests need
BRIEF = 1.0


def save_stage(attempt: Attempt, stage: Stage, done: bytes | None = None) -> Steps[bytes]:
    """Record a stage of a running attempt. Returns the frame on record, which is the first one saved (B-06).

    ``done``: a frame without the value, recorded unsealed if the value cannot be sealed (S-02a).
    Raises ``AlreadyCompleted``, ``LeaseLost``, and ``BackendUnavailable`` once the lease may have ended.
    """
    attempt.check_running()
    lease = attempt.lease
    if lease is None:
        return stage.frame
    try:
        try:
            sealed = seal_stage(stage, lease, attempt.policy)
        except BackendUnavailable as error:
            if done is None:
                raise
            yield from warn(
                attempt.policy, events.HookFailed(events.short(lease.record_id), "encryption", cause(error)), attempt
            )
            # The effect has happened, and a retry must know that: the stage is stored without its value.
            sealed = stage = Stage(stage.name, stage.key, done)
        saved = yield from save(SaveStage(lease, sealed), attempt, lease)
        if saved.recreated:
            yield from warn(attempt.policy, events.Recreated(events.short(lease.record_id), lease.attempt), attempt)
            yield from _save_again(attempt, lease)
    except LeaseLost:
        yield from lost(attempt, lease)
        raise
    if saved.frame != sealed.frame:  # another value was first
        stage = unseal_stage(Stage(stage.name, stage.key, saved.frame), lease, attempt.policy)
    attempt.saved(stage)
    return stage.frame


def _save_again(attempt: Attempt, lease: Lease) -> Steps[None]:
    """Save the earlier stages again: the record has vanished and was made anew."""
    for (name, key), frame in list(attempt.stages.items()):
        sealed = seal_stage(Stage(name, key, frame), lease, attempt.policy)
        yield from save(SaveStage(lease, sealed), attempt, lease)


def make_sure(attempt: Attempt) -> Steps[None]:
    """Ask before an effect whether the lease is still this attempt's, where that is no longer sure (S-07, L-03).

    It is not sure if the process stood still, or the backend was down, for a whole lease. The heartbeat may not have
    noticed that yet. Raises ``LeaseLost``, ``BackendUnavailable`` after ``respond_within`` seconds of trying.
    """
    lease = attempt.lease
    assert lease is not None
    asked = yield from ask(Now())
    found = yield from ask_whose(attempt, lease)
    if found is Renewal.LOST:
        yield from lost(attempt, lease)
        raise LeaseLost("another attempt has taken this request over; stop here")
    attempt.confirmed(asked)


def save(command: SaveStage, attempt: Attempt, lease: Lease) -> Steps[StageSaved]:
    """Record a stage whose effect has happened. Tries as long as the lease may last.

    That is one lease from the first failure, or from the last renewal. Raises ``BackendUnavailable`` after that, or
    earlier if the server is known to end the request before; ``RecordTooLarge`` at once.
    """

    def until(first: float) -> float:
        alive = max(attempt.sure_until, first + lease.duration)
        return min(alive, first + _total(attempt.policy, inf), attempt.ends_at)

    return (yield from _persist(command, attempt, lease, until))


def ask_whose(attempt: Attempt, lease: Lease) -> Steps[Renewal]:
    """Whether the lease is still this attempt's, before an effect.

    Raises ``BackendUnavailable`` after ``respond_within`` seconds.
    """
    within = _client_waits(attempt.policy)
    (found,) = yield from _persist(Renew([lease]), attempt, lease, lambda first: min(first + within, attempt.ends_at))
    return found


def complete(write: Complete, attempt: Attempt, lease: Lease, status: int) -> Steps[Completed]:
    """Make the response durable while the client waits for it, for ``respond_within`` seconds at most.

    Raises ``BackendUnavailable`` after that. Then the response is sent, and the recording goes on in the background.
    """
    try:
        return (yield from surely(write, attempt, lease))
    except BackendUnavailable as error:
        return (yield from complete_after(error, write, attempt, lease, status))


def complete_after(
    error: BackendUnavailable, write: Complete, attempt: Attempt, lease: Lease, status: int
) -> Steps[Completed]:
    """The tries after the first one, which has failed with ``error``. Raises as ``complete`` does."""
    # Counted from before the first try, which may have taken as long as the slowest call.
    began = write.asked
    until = min(began + _client_waits(attempt.policy), attempt.ends_at)
    try:
        return (yield from _again(error, write, attempt, lease, lambda _: until, began))
    except BackendUnavailable:
        yield from warn(attempt.policy, events.Unrecorded(events.short(lease.record_id), status), attempt)
        yield from _hand_over(write, attempt, lease, status, began)
        raise


def let_go(write: Fail | Release, attempt: Attempt, lease: Lease, status: int | None) -> Steps[None]:
    """End an attempt whose response is not stored, in one try. After ``BackendUnavailable`` the background goes on."""
    try:
        yield from surely(write, attempt, lease)
    except BackendUnavailable as error:
        yield from _failed(write, attempt, lease, error)
        yield from _hand_over(write, attempt, lease, status, (yield from ask(Now())))
        raise


def surely(command: Command[R], attempt: Attempt, lease: Lease, instead: Command[object] | None = None) -> Steps[R]:
    """Carry out a command. If cancelled meanwhile, send it or ``instead`` once more, shielded; then raise.

    A write that its owner sends twice succeeds (B-08), so it does not matter whether the first one arrived. If the
    second one fails, the recording goes on in the background.
    """
    try:
        reply: R = yield command
        return reply
    except RecordTooLarge as error:
        if not (yield from _reduce(command, attempt, lease, error)):
            if isinstance(command, SaveStage):
                raise
            raise BackendUnavailable(str(error)) from error
        return (yield from surely(command, attempt, lease, instead))
    except (Exception, GeneratorExit):  # GeneratorExit: a discarded generator can yield no further command
        raise
    except BaseException:
        if attempt.lost:  # the record is another attempt's: this one may neither write it nor make it anew
            raise
        # The cancelled call may have arrived or not. To send it again is safe, and then the outcome is known.
        again = instead or command
        try:
            yield from ask(again)
        except Exception as error:
            record = events.short(lease.record_id)
            yield from warn(attempt.policy, events.BackendFailed.of(record, "cancelled", error), attempt)
            if isinstance(error, BackendUnavailable | RecordTooLarge) and isinstance(again, Write):
                yield from _hand_over(again, attempt, lease, None, (yield from ask(Now())))
        raise


def _reduce(command: Command[object], attempt: Attempt, lease: Lease, error: RecordTooLarge) -> Steps[bool]:
    """Replace a response that the backend refuses for its size by a tombstone (O-11). False if none is smaller.

    A response that is too large can never be recorded, so without this each retry would run again.
    """
    yield from _failed(command, attempt, lease, error)
    if not isinstance(command, Complete | Fail) or command.response is None:
        return False
    kind = RESPONSE if isinstance(command, Complete) else FAILURE
    found = smaller(command.response, kind, lease, attempt.policy)
    if found is not None:
        command.response = found
    return found is not None


def lost(attempt: Attempt, lease: Lease) -> Steps[None]:
    """Note that a later attempt owns the record, and report it once."""
    if attempt.lose():  # else the heartbeat or an earlier verb has reported it
        yield from warn(attempt.policy, events.OwnershipLost(events.short(lease.record_id), lease.attempt), attempt)


def has_history(attempt: Attempt, lease: Lease) -> bool:
    """Whether a released record stays: stages and earlier attempts keep it."""
    return lease.attempt > 1 or bool(attempt.stages)


def _client_waits(policy: IdempotencyPolicy) -> float:
    return policy.respond_within if policy.record_within is None else min(policy.respond_within, policy.record_within)


def _total(policy: IdempotencyPolicy, default: float) -> float:
    return default if policy.record_within is None else policy.record_within


def _persist(command: Command[R], attempt: Attempt, lease: Lease, until: Callable[[float], float]) -> Steps[R]:
    """Carry a command out, and try again while the backend is down. ``until``: see ``_again``."""
    try:
        return (yield from surely(command, attempt, lease))
    except BackendUnavailable as error:
        return (yield from _again(error, command, attempt, lease, until))


def _again(
    error: BackendUnavailable,
    command: Command[R],
    attempt: Attempt,
    lease: Lease,
    until: Callable[[float], float],
    began: float | None = None,
) -> Steps[R]:
    """After a try that failed, try again while the backend is down.

    ``until``: returns when to give up, from the time of the first failure. No try is made that would end later if it
    took as long as the one before. ``began``: when a client began to wait. If the request finds no slot, that wait is
    short, since it occupies a thread that other requests need.
    """
    pause, first, leave = FIRST_PAUSE, None, None
    asked = began
    try:
        while True:
            yield from _failed(command, attempt, lease, error)
            now = yield from ask(Now())
            first = now if first is None else first
            end = now + pause if asked is None else now + pause + (now - asked)
            if end > until(first):
                raise error
            if began is not None and leave is None:
                leave = yield from ask(TakeSlot(0 if attempt.alone else None))
                if leave is None and end > began + BRIEF:
                    raise error
            asked = now + pause
            yield from surely(Sleep(pause), attempt, lease, instead=command)
            pause = min(pause * 2, LONGEST_PAUSE)
            try:
                return (yield from surely(command, attempt, lease))
            except BackendUnavailable as another:
                error = another
    finally:
        del error  # its traceback holds this frame
        if leave is not None:
            leave()


def _failed(command: Command[object], attempt: Attempt, lease: Lease, error: Exception) -> Steps[None]:
    verb = type(command).__name__.lower()
    yield from warn(attempt.policy, events.BackendFailed.of(events.short(lease.record_id), verb, error), attempt)


# What goes on in the background


def _hand_over(write: Write, attempt: Attempt, lease: Lease, status: int | None, began: float) -> Steps[None]:
    """Let a write go on in the background. Report it if that is impossible."""
    now = yield from ask(Now())
    until = began + _total(attempt.policy, min(attempt.policy.max_run, attempt.policy.ttl))
    if now >= until:
        yield from _give_up(write, attempt, lease, status, "time")
        return
    # The recording outlives the request, to which the transactions of its ledger belong.
    attempt.leave_ledger()
    # What waits takes memory, so it counts towards a limit of the process.
    size = len(write.response or b"") if isinstance(write, Complete | Fail) else 0
    size += sum(map(len, attempt.stages.values()))
    steps = _go_on(write, attempt, lease, status, until)
    lost = events.RecordingLost(events.short(lease.record_id), status, "exit") if _matters(write) else None
    if not (yield from ask(RecordLater(attempt, steps, size, until, lost))):
        yield from _give_up(write, attempt, lease, status, "room")


def _go_on(write: Write, attempt: Attempt, lease: Lease, status: int | None, until: float) -> Steps[None]:
    """Try a write again and again. The lease is renewed meanwhile, so no other attempt takes over."""
    pause, reported = FIRST_PAUSE, False
    while True:
        yield from ask(Sleep(pause))
        if attempt.lost:
            yield from _give_up(write, attempt, lease, status, "superseded")
            return
        try:
            reply = yield from ask(write)
        except LeaseLost:
            yield from lost(attempt, lease)
            yield from _give_up(write, attempt, lease, status, "superseded")
            return
        except RecordTooLarge as error:
            if not (yield from _reduce(write, attempt, lease, error)):
                yield from _give_up(write, attempt, lease, status, "size")
                return
        except RecordUnreadable as error:
            yield from _failed(write, attempt, lease, error)
            yield from _give_up(write, attempt, lease, status, "unreadable")
            return
        except Exception as error:  # whatever a backend raises, the work is done, and nobody else can record it
            if not (reported or isinstance(error, BackendUnavailable)):
                reported = True
                yield from _failed(write, attempt, lease, error)
            if (yield from ask(Now())) + pause > until:
                yield from _give_up(write, attempt, lease, status, "time")
                return
            pause = min(pause * 2, LONGEST_PAUSE)
        else:
            yield from _recorded_late(write, attempt, lease, status, reply)
            return


def _recorded_late(write: Write, attempt: Attempt, lease: Lease, status: int | None, reply: object) -> Steps[None]:
    policy = attempt.policy
    if isinstance(write, Complete):
        if isinstance(reply, Completed) and reply.recreated:
            yield from warn(policy, events.Recreated(events.short(lease.record_id), lease.attempt), attempt)
        yield from warn(policy, events.RecordedLate(events.short(lease.record_id), status), attempt)
        return
    yield from ended(write, attempt, lease, status)


def ended(write: Fail | Release, attempt: Attempt, lease: Lease, status: int | None) -> Steps[None]:
    """The steps after the end of an attempt without a stored response is on record: its quota, and an event."""
    if attempt.scope_id is not None and isinstance(write, Release) and not has_history(attempt, lease):
        yield from unreserve(attempt, lease, attempt.scope_id)
    event = events.Failed if isinstance(write, Fail) else events.Released
    yield from notify(attempt.policy, event, lease.record_id, status, of=attempt)


def _matters(write: Write) -> bool:
    """Whether a retry would differ without this write. A claim that is to be released ends by itself."""
    return isinstance(write, Complete) or (isinstance(write, Fail) and write.final)


def _give_up(write: Write, attempt: Attempt, lease: Lease, status: int | None, reason: str) -> Steps[None]:
    if _matters(write):
        record = events.short(lease.record_id)
        yield from warn(attempt.policy, events.RecordingLost(record, status, reason), attempt)
