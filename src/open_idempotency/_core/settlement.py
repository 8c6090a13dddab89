"""Settlement: what a running attempt records, and how it ends.

Generators that yield commands; the order in which they do is the rule. A response is durable before its last byte
leaves, a stale owner's answer never goes out, and a cancelled attempt still finishes what it had begun to record.
"""

from __future__ import annotations

import hmac
from enum import Enum

from open_idempotency import events
from open_idempotency._core import problems
from open_idempotency._core.attempt import Attempt, Phase
from open_idempotency._core.codecs import decode_response, encode_response
from open_idempotency._core.commands import Command, Complete, Fail, Get, Now, Release, SaveStage, Sleep
from open_idempotency._core.drivers import R, Steps, ask
from open_idempotency._core.models import Lease, Stage, Status
from open_idempotency._core.rendering import render
from open_idempotency._core.replay import is_kept_status, kept
from open_idempotency._core.requests import Answer
from open_idempotency._core.telling import FIRST_PAUSE, LONGEST_PAUSE, cause, sendable, tell, warn
from open_idempotency.exceptions import BackendUnavailable, LeaseLost, RecordUnreadable
from open_idempotency.policy import IdempotencyPolicy


class Fate(Enum):
    """What became of an answer that goes out as the handler made it."""

    KEPT = "kept"
    NOT_KEPT = "not kept"
    UNRECORDED = "unrecorded"


def save_stage(attempt: Attempt, stage: Stage) -> Steps[bytes]:
    """Record a stage of a running attempt; the frame that is on record, which is the first one saved (B-06).

    Raises ``AlreadyCompleted``, ``LeaseLost``, ``BackendUnavailable`` after ``record_within`` seconds of trying.
    """
    attempt.check_running()
    lease = attempt.lease
    if lease is None:
        return stage.frame
    try:
        saved = yield from _persist(SaveStage(lease, stage), attempt, lease)
        if saved.recreated:
            yield from warn(attempt.policy, events.Recreated(events.short(lease.record_id), lease.attempt))
            yield from _save_again(attempt, lease)
    except LeaseLost:
        yield from _lost(attempt, lease)
        raise
    attempt.saved(Stage(stage.name, stage.key, saved.frame))
    return saved.frame


def _save_again(attempt: Attempt, lease: Lease) -> Steps[None]:
    """The record vanished and was made anew: the earlier stages go back into it."""
    for (name, key), frame in list(attempt.stages.items()):
        yield from _persist(SaveStage(lease, Stage(name, key, frame)), attempt, lease)


def finish(attempt: Attempt, answer: Answer) -> Steps[Fate | Answer]:
    """Settle the record of an attempt whose handler answered. To be called before the last byte leaves.

    ``answer.body`` is None where it outgrew what is kept. The result is the fate of that answer, which then goes
    out, or another answer to send instead of it, because a later attempt owns the record by now (L-03).
    """
    attempt.phase = Phase.ENDED
    lease = attempt.lease
    if lease is None:
        return Fate.NOT_KEPT
    try:
        if not attempt.lost:
            return (yield from _settle(attempt, lease, answer))
    except LeaseLost:
        yield from _lost(attempt, lease)
    return (yield from _supersede(attempt, lease))


def abort(attempt: Attempt, error: BaseException) -> Steps[Fate | Answer]:
    """Settle the record of an attempt whose handler raised or was cancelled (L-04); its stages stay.

    The result is as for ``finish``; the error itself is the adapter's to raise on.
    """
    attempt.phase = Phase.ENDED
    lease = attempt.lease
    if lease is None:
        return Fate.NOT_KEPT
    again = attempt.policy.on_failed if isinstance(error, Exception) else attempt.policy.on_abandoned
    try:
        if not attempt.lost and not isinstance(error, LeaseLost):
            return (yield from _let_go(attempt, lease, Fail(lease, final=again != "resume"), None))
    except LeaseLost:
        pass
    yield from _lost(attempt, lease)
    return (yield from _supersede(attempt, lease))


def _settle(attempt: Attempt, lease: Lease, answer: Answer) -> Steps[Fate | Answer]:
    policy, status = attempt.policy, answer.status
    if (yield from _wants_kept(attempt, lease, status)):
        return (yield from _complete(attempt, lease, answer))
    if status < 500:
        return (yield from _let_go(attempt, lease, Release(lease), status))
    frame = _frame(answer, policy)[0] if policy.on_failed == "replay" else None
    command = Fail(lease, final=policy.on_failed != "resume", response=frame)
    return (yield from _let_go(attempt, lease, command, status))


def _wants_kept(attempt: Attempt, lease: Lease, status: int) -> Steps[bool]:
    """The view's wish, then the policy's ``store=``, then the status."""
    if attempt.keep is not None:
        return attempt.keep
    wish = None
    if attempt.policy.store is not None:
        try:
            wish = attempt.policy.store(status)
        except Exception as error:
            # The handler has run: its outcome must not be lost to a faulty hook.
            yield from warn(attempt.policy, events.HookFailed(events.short(lease.record_id), "store", cause(error)))
    return is_kept_status(status) if wish is None else wish


def _frame(answer: Answer, policy: IdempotencyPolicy) -> tuple[bytes, bool]:
    """What is stored of an answer, and whether its body is in it."""
    small = kept(answer, policy.max_response_bytes)
    try:
        return encode_response(small), small.body is not None
    except ValueError:
        # An answer that no server would send either. The work is done all the same, so a tombstone stands for it.
        status = answer.status if 200 <= answer.status <= 999 else 500
        return encode_response(Answer(status, (), None)), False


def _complete(attempt: Attempt, lease: Lease, answer: Answer) -> Steps[Fate]:
    policy, record = attempt.policy, events.short(lease.record_id)
    frame, stored = _frame(answer, policy)
    try:
        done = yield from _persist(Complete(lease, frame), attempt, lease)
    except (BackendUnavailable, RecordUnreadable):
        # L-08: the client gets its answer, marked; the record stays as it is, so nothing runs before the lease ends.
        yield from warn(policy, events.Unrecorded(record, answer.status))
        return Fate.UNRECORDED
    if done.recreated:
        yield from warn(policy, events.Recreated(record, lease.attempt))
    yield from tell(policy, events.Completed, record, answer.status, stored)
    return Fate.KEPT


def _let_go(attempt: Attempt, lease: Lease, command: Fail | Release, status: int | None) -> Steps[Fate]:
    """End an attempt whose answer is not kept. If the backend is down the lease ends by itself."""
    record = events.short(lease.record_id)
    try:
        yield from _surely(command, attempt, lease)
    except (BackendUnavailable, RecordUnreadable) as error:
        yield from warn(attempt.policy, events.BackendFailed(record, type(command).__name__.lower(), cause(error)))
        return Fate.NOT_KEPT
    told = events.Failed if isinstance(command, Fail) else events.Released
    yield from tell(attempt.policy, told, record, status)
    return Fate.NOT_KEPT


def _persist(command: Command[R], attempt: Attempt, lease: Lease) -> Steps[R]:
    """Carry out a write that must not be lost: try again while the backend is down, for ``record_within`` seconds."""
    policy = attempt.policy
    within = policy.lease if policy.record_within is None else policy.record_within
    pause, deadline = FIRST_PAUSE, None
    while True:
        try:
            return (yield from _surely(command, attempt, lease))
        except BackendUnavailable as error:
            verb = type(command).__name__.lower()
            yield from warn(policy, events.BackendFailed(events.short(lease.record_id), verb, cause(error)))
            now = yield from ask(Now())
            deadline = now + within if deadline is None else deadline
            if now + pause > deadline:
                raise
        yield from _surely(Sleep(pause), attempt, lease, instead=command)
        pause = min(pause * 2, LONGEST_PAUSE)


def _surely(command: Command[R], attempt: Attempt, lease: Lease, instead: Command[object] | None = None) -> Steps[R]:
    """Carry out a command; cancelled in the middle, send it (or ``instead``) once more, shielded, then be cancelled.

    Sent twice by one owner a write succeeds (B-08), so it does not matter whether the first one arrived.
    """
    try:
        return (yield from ask(command))
    except (Exception, GeneratorExit):  # a suspended engine that is thrown away can ask nothing more
        raise
    except BaseException:
        try:
            yield from ask(instead or command)
        except Exception as error:
            record = events.short(lease.record_id)
            yield from warn(attempt.policy, events.BackendFailed(record, "cancelled", cause(error)))
        raise


def _supersede(attempt: Attempt, lease: Lease) -> Steps[Answer]:
    """What the client of a superseded attempt gets: the new owner's answer when there is one, else 409 (L-03)."""
    policy = attempt.policy
    try:
        record = yield from ask(Get(lease.record_id))
        if record and record.status is Status.COMPLETED and record.response is not None:
            if hmac.compare_digest(record.fingerprint, lease.fingerprint):
                return sendable(decode_response(record.response), attempt.instance, policy)
    except (BackendUnavailable, RecordUnreadable) as error:
        yield from warn(policy, events.BackendFailed(events.short(lease.record_id), "get", cause(error)))
        return render(problems.backend_unavailable(), policy, attempt.instance)
    return render(problems.superseded(), policy, attempt.instance)


def _lost(attempt: Attempt, lease: Lease) -> Steps[None]:
    if attempt.lost:
        return  # the heartbeat or an earlier verb has told it
    attempt.lost = True
    yield from warn(attempt.policy, events.OwnershipLost(events.short(lease.record_id), lease.attempt))
