"""Settlement: how an attempt ends, before its handler starts or after it has ended.

The generators yield commands, and the order of the commands is the rule. A response is durable before its last byte
leaves, a stale owner's response is never sent, and a cancelled attempt still finishes what it had begun to record.
"""

from __future__ import annotations

import hmac
from dataclasses import replace
from enum import Enum

from open_idempotency import events
from open_idempotency._core import problems, recording
from open_idempotency._core.attempt import Attempt, LedgerState
from open_idempotency._core.commands import (
    Call,
    Command,
    Complete,
    Fail,
    Forget,
    Get,
    Now,
    Release,
    Renew,
    Sleep,
    Steps,
    ask,
)
from open_idempotency._core.models import Lease, Renewal, Response, Status
from open_idempotency._core.notify import cause, everyday_log, notify, warn
from open_idempotency._core.quotas import unreserve
from open_idempotency._core.recording import has_history, lost, surely
from open_idempotency._core.rendering import refuse, replay, sendable
from open_idempotency._core.stored_response import (
    FAILURE,
    RESPONSE,
    decode_response,
    is_stored_status,
    storable,
    stored_form,
    unseal,
)
from open_idempotency.exceptions import (
    AlreadyCommitted,
    BackendUnavailable,
    KeyReused,
    LeaseLost,
    OutcomeUnknown,
    RecordUnreadable,
)
from open_idempotency.policy import IdempotencyPolicy

#: errors of the view that another response replaces, if nothing of the view's own response has been sent yet
REPLACED = (LeaseLost, OutcomeUnknown, KeyReused, AlreadyCommitted)


# seconds between two looks at whether a thread has ended
_LOOK = 0.05


class Fate(Enum):
    """What became of a response that is sent as the handler made it."""

    KEPT = "kept"
    NOT_KEPT = "not kept"
    UNRECORDED = "unrecorded"


def begin(attempt: Attempt) -> Steps[Response | None]:
    """Ask before the handler starts whether the lease is still this attempt's, where that is no longer sure (L-10).

    It is not sure if the process stood still for a whole lease after the reply to its claim: another attempt may run
    already. None means that the handler may start, unless this reply took a whole lease too. Any other result is the
    response to send instead. Then nothing has run, and the attempt is over.
    """
    lease = attempt.lease
    assert lease is not None
    asked = yield from ask(Now())
    try:
        (found,) = yield from surely(Renew([lease]), attempt, lease, instead=Release(lease))
    except (BackendUnavailable, RecordUnreadable) as error:
        attempt.end()
        yield from warn(attempt.policy, events.BackendFailed.of(events.short(lease.record_id), "renew", error), attempt)
        yield from let_go(attempt, lease, Release(lease), None)
        attempt.forget_request()
        return (yield from _refuse(problems.backend_unavailable(), attempt, lease))
    if found is Renewal.LOST:
        attempt.end()
        yield from lost(attempt, lease)
        instead = yield from _supersede(attempt, lease, None)
        attempt.forget_request()
        assert isinstance(instead, Response)  # no response of its own could have been committed
        return instead
    attempt.confirmed(asked)
    return None


def finish(attempt: Attempt, response: Response) -> Steps[Fate | Response]:
    """Settle the record of an attempt whose handler has responded. To be called before the last byte leaves.

    ``response.body`` is None where it was too large to be stored. The result is the fate of that response, which
    is then sent, or another response to send instead of it, because a later attempt owns the record by now (L-03).
    """
    attempt.end()
    lease = attempt.lease
    if lease is None:
        return Fate.NOT_KEPT
    try:
        try:
            if not attempt.lost:
                return (yield from _settle(attempt, lease, response))
        except LeaseLost:
            attempt.record(False)
            yield from lost(attempt, lease)
        return (yield from _supersede(attempt, lease, response))
    finally:
        if attempt.hook_request is not None:
            attempt.forget_request()


def abort(attempt: Attempt, error: BaseException) -> Steps[Fate | Response]:
    """Settle the record of an attempt whose handler raised or was cancelled (L-04); its stages stay.

    The result is as for ``finish``. The adapter raises the error again, unless it is one of ``REPLACED``.
    """
    attempt.end()
    lease = attempt.lease
    if lease is None:
        return Fate.NOT_KEPT
    again = attempt.policy.on_failed if isinstance(error, Exception) else attempt.policy.on_abandoned
    try:
        try:
            if not attempt.lost and not isinstance(error, LeaseLost):
                if attempt.interrupted is not None:  # whatever the view, or a task group, made of that error
                    return (yield from _stop(attempt, lease, attempt.interrupted, None))
                return (yield from let_go(attempt, lease, Fail(lease, final=again != "resume"), None))
        except LeaseLost:
            pass
        yield from lost(attempt, lease)
        return (yield from _supersede(attempt, lease, None))
    finally:
        if attempt.hook_request is not None:
            attempt.forget_request()


def _settle(attempt: Attempt, lease: Lease, response: Response) -> Steps[Fate | Response]:
    """Decide which steps settle the response, and return them."""
    status = response.status
    # The error that interrupted the view decides. A status below 500 shows that the view caught it and made its own
    # response; frameworks make a 500 of an uncaught error. After AlreadyCommitted the view's work has not run.
    if attempt.interrupted is not None and (status >= 500 or isinstance(attempt.interrupted, AlreadyCommitted)):
        return _stop(attempt, lease, attempt.interrupted, status)
    # A response from 400 on may be sent although its rows were not committed.
    if attempt.ledger is not None and status < 400 and attempt.ledger.lacks_commit(response):
        return _uncommitted(attempt, lease)
    if attempt.unawaited and status < 400:
        return _unawaited(attempt, lease)
    if attempt.keep is None and attempt.policy.store is None:
        return _end(attempt, lease, response, is_stored_status(status))
    return _end_as_wished(attempt, lease, response)


def _end_as_wished(attempt: Attempt, lease: Lease, response: Response) -> Steps[Fate]:
    wanted = yield from wants_kept(attempt, lease, response)
    return (yield from _end(attempt, lease, response, wanted))


def _end(attempt: Attempt, lease: Lease, response: Response, wanted: bool) -> Steps[Fate]:
    if wanted:
        return complete(attempt, lease, response)
    if response.status < 500:
        return let_go(attempt, lease, Release(lease), response.status)
    return _fail(attempt, lease, response)


def _fail(attempt: Attempt, lease: Lease, response: Response) -> Steps[Fate]:
    policy = attempt.policy
    command = Fail(lease, final=policy.on_failed != "resume")
    if policy.on_failed == "replay":
        command.response, _ = yield from stored_form(response, FAILURE, lease, policy, attempt)
    return (yield from let_go(attempt, lease, command, response.status))


def _uncommitted(attempt: Attempt, lease: Lease) -> Steps[Response]:
    """The view has not committed the rows of its response. The response is not stored, and a 500 is sent (S-05)."""
    yield from warn(attempt.policy, events.Uncommitted(events.short(lease.record_id)), attempt)
    yield from let_go(attempt, lease, Fail(lease), None)
    return (yield from _refuse(problems.uncommitted(), attempt, lease))


def _unawaited(attempt: Attempt, lease: Lease) -> Steps[Response]:
    """The view has responded before its stages have begun. The response is not stored, and a 500 is sent (O-36)."""
    yield from warn(attempt.policy, events.NotAwaited(events.short(lease.record_id), attempt.unawaited[0]), attempt)
    yield from let_go(attempt, lease, Fail(lease), None)
    return (yield from _refuse(problems.not_awaited(), attempt, lease))


def _stop(
    attempt: Attempt, lease: Lease, error: OutcomeUnknown | KeyReused | AlreadyCommitted, status: int | None
) -> Steps[Response]:
    """End an attempt that went no further; the response says why (S-04, S-06)."""
    if isinstance(error, AlreadyCommitted):
        # The attempt has met its own response, in the transaction in which it was written (S-06a).
        if is_in_ledger(attempt) and (yield from find_committed(attempt, lease)) is None:
            return (yield from _uncommitted(attempt, lease))
        return (yield from _respond_again(attempt, lease, error.frame))
    if isinstance(error, KeyReused):
        yield from forget(attempt, lease, status)
        return (yield from _refuse(problems.key_reused(not attempt.policy.application), attempt, lease))
    # Never for good: a later attempt may ask again.
    yield from let_go(attempt, lease, Fail(lease), status)
    return (yield from _refuse(problems.stage_in_doubt(error.retryable), attempt, lease))


def _respond_again(attempt: Attempt, lease: Lease, frame: bytes) -> Steps[Response]:
    """Record and send a response that the ledger has although its record was lost (S-06)."""
    policy, record = attempt.policy, events.short(lease.record_id)
    try:
        stored = decode_response(unseal(frame, RESPONSE, lease, policy))
    except RecordUnreadable as error:
        yield from warn(policy, events.BackendFailed.of(record, "ledger", error), attempt)
        yield from let_go(attempt, lease, Release(lease), None)
        return (yield from _refuse(problems.record_unreadable(), attempt, lease))
    try:
        yield from recording.complete(Complete(lease, frame), attempt, lease, stored.status)
    except BackendUnavailable:  # the recording goes on in the background, and the ledger still has the response
        pass
    except RecordUnreadable as error:
        yield from warn(policy, events.BackendFailed.of(record, "complete", error), attempt)
    yield from notify(policy, events.Replayed, lease.record_id, stored.status, stored.first_trace, of=attempt)
    return (yield from replay(stored, attempt.request_headers, lease.record_id, attempt.instance, policy, attempt))


def wants_kept(attempt: Attempt, lease: Lease, response: Response) -> Steps[bool]:
    """Whether to store a response: by the view's wish, else by the policy's ``store=``, else by the status."""
    policy = attempt.policy
    if attempt.keep is not None:
        return attempt.keep
    wish = None
    if attempt.stored is not None and _is_same(attempt.stored[0], response, policy):  # offered to the ledger before
        wish = attempt.stored[1]
    elif policy.store is not None:
        # A copy, so that the hook can change neither the response that is sent nor the one that is stored.
        asked = Response(response.status, list(response.headers), response.body)
        try:
            wish = policy.store(asked)
            if wish is not None and not isinstance(wish, bool):
                raise TypeError(f"store= returned {type(wish).__name__}, not True, False or None")
        except Exception as error:
            # The handler has run: its outcome must not be lost to a faulty hook.
            wish = None
            yield from warn(policy, events.HookFailed(events.short(lease.record_id), "store", cause(error)), attempt)
        attempt.hear_store(response, wish)
    return is_stored_status(response.status) if wish is None else wish


def _is_same(one: Response, other: Response, policy: IdempotencyPolicy) -> bool:
    """Whether two live responses differ in nothing that is stored, such as a date that a server adds."""
    return one is other or storable(one, policy) == storable(other, policy)


def _form_in_ledger(ledger: LedgerState, response: Response, policy: IdempotencyPolicy) -> tuple[bytes, bool] | None:
    """The stored form of a response that is in the ledger, so that hooks run once; None if it is not there."""
    stored = ledger.stored
    if stored is None:
        return None
    small = storable(response, policy)
    same = small == stored.response and small.note == stored.response.note
    return (stored.frame, stored.whole) if same else None


def complete(attempt: Attempt, lease: Lease, response: Response) -> Steps[Fate]:
    """Record the response. Raises ``LeaseLost``. If the backend is down, the recording goes on in the background."""
    policy = attempt.policy
    attempt.record()
    form = None if attempt.ledger is None else _form_in_ledger(attempt.ledger, response, policy)
    if form is None:
        form = yield from stored_form(response, RESPONSE, lease, policy, attempt)
    frame, stored = form
    kept = lease if response.status < 400 else _of_error(attempt, lease, response.status)
    command = Complete(kept, frame)
    try:
        try:
            done = yield from surely(command, attempt, lease)
        except BackendUnavailable as error:
            done = yield from recording.complete_after(error, command, attempt, lease, response.status)
    except BackendUnavailable:
        # L-08: the client gets its response, marked; the recording goes on, and until then the lease is renewed.
        return Fate.UNRECORDED
    except RecordUnreadable:
        yield from warn(policy, events.Unrecorded(events.short(lease.record_id), response.status), attempt)
        yield from warn(
            policy, events.RecordingLost(events.short(lease.record_id), response.status, "unreadable"), attempt
        )
        return Fate.UNRECORDED
    if done.recreated:
        yield from warn(policy, events.Recreated(events.short(lease.record_id), lease.attempt), attempt)
    if policy.on_event is not None or everyday_log.on():
        stored = stored and command.response is frame  # else its size was refused
        yield from notify(policy, events.Completed, lease.record_id, response.status, stored, of=attempt)
    return Fate.KEPT


def _of_error(attempt: Attempt, lease: Lease, status: int) -> Lease:
    """The lease with the time for which a response from 400 on is stored.

    An error is kept as long as a success if another run would repeat an effect (B-26): if it left stages or committed
    rows, or if its status is stored only because the view or ``store=`` says so.
    """
    if not is_stored_status(status) or has_history(attempt, lease) or attempt.ledger is not None:
        return lease
    return replace(lease, ttl=min(lease.ttl, attempt.policy.ttl_of_errors))


def let_go(attempt: Attempt, lease: Lease, command: Fail | Release, status: int | None) -> Steps[Fate]:
    """End an attempt whose response is not stored. It does not wait for a backend that is down."""
    cancelled = yield from _threads_end(attempt)
    fate = yield from _record_end(attempt, lease, command, status)
    if cancelled is not None:
        raise cancelled
    return fate


def _record_end(attempt: Attempt, lease: Lease, command: Fail | Release, status: int | None) -> Steps[Fate]:
    if attempt.ledger is not None:
        if attempt.policy.refuses_retries:
            committed = yield from find_committed(attempt, lease, command)
        else:
            committed = attempt.ledger.committed_response()
        if committed is not None:  # it went wrong after the COMMIT: a retry gets the committed response (S-06b)
            yield from complete(attempt, lease, committed)
            return Fate.NOT_KEPT
    try:
        yield from recording.let_go(command, attempt, lease, status)
    except BackendUnavailable:
        return Fate.NOT_KEPT
    except RecordUnreadable as error:
        record = events.short(lease.record_id)
        yield from warn(attempt.policy, events.BackendFailed.of(record, type(command).__name__.lower(), error), attempt)
        return Fate.NOT_KEPT
    yield from recording.ended(command, attempt, lease, status)
    return Fate.NOT_KEPT


def _threads_end(attempt: Attempt) -> Steps[BaseException | None]:
    """Wait for threads that a cancellation has left running: no retry may begin while they run (L-09).

    Returns the last cancellation that arrived meanwhile, or None. It is raised when the end is on record.
    """
    cancelled: BaseException | None = None
    while attempt.threads is not None and attempt.threads.left_behind:
        try:
            yield from ask(Sleep(_LOOK))
        except GeneratorExit:
            raise
        except BaseException as error:
            if not isinstance(error, Exception):  # an Exception is a shield that timed out, not the end of the thread
                cancelled = error
    return cancelled


def forget(attempt: Attempt, lease: Lease, status: int | None) -> Steps[None]:
    """Delete the record of a request that used another request's key: its fingerprint would refuse the right one."""
    if not has_history(attempt, lease):
        yield from let_go(attempt, lease, Release(lease), status)
        return
    record = events.short(lease.record_id)
    try:
        # The deletion compares no token. This renewal ensures that no other attempt is admitted for one lease.
        (found,) = yield from surely(Renew([lease]), attempt, lease, instead=Release(lease))
        if found is Renewal.LOST:
            raise LeaseLost("another attempt has taken this request over")
        yield from surely(Forget(lease.record_id), attempt, lease)
    except (BackendUnavailable, RecordUnreadable) as error:
        yield from warn(attempt.policy, events.BackendFailed.of(record, "delete", error), attempt)
        return
    if attempt.scope_id is not None:
        yield from unreserve(attempt, lease, attempt.scope_id)
    yield from notify(attempt.policy, events.Released, lease.record_id, status, of=attempt)


def _supersede(attempt: Attempt, lease: Lease, response: Response | None) -> Steps[Fate | Response]:
    """The response to the client of a superseded attempt: the new owner's if there is one, else a 409 (L-03).

    If its own response was committed, that is sent: the new owner will find it in the ledger, and replay it (S-06c).
    """
    policy, asked = attempt.policy, attempt.request_headers
    problem = problems.superseded()
    try:
        record = yield from ask(Get(lease.record_id))
        if record and record.status is Status.COMPLETED and record.response is not None:
            if hmac.compare_digest(record.fingerprint, lease.fingerprint):
                frame = unseal(record.response, RESPONSE, lease, policy)
                stored = decode_response(frame)
                return (yield from replay(stored, asked, lease.record_id, attempt.instance, policy, attempt))
    except (BackendUnavailable, RecordUnreadable) as error:
        yield from warn(policy, events.BackendFailed.of(events.short(lease.record_id), "get", error), attempt)
        problem = problems.response_unreachable()
    if response is not None and attempt.ledger is not None and attempt.ledger.counts(response):
        return Fate.KEPT
    committed = yield from find_committed(attempt, lease)
    if committed is not None:
        return (yield from sendable(committed, asked, lease.record_id, attempt.instance, policy, attempt))
    return (yield from _refuse(problem, attempt, lease))


def _refuse(problem: problems.Problem, attempt: Attempt, lease: Lease) -> Steps[Response]:
    return refuse(problem, attempt.policy, attempt.instance, lease.record_id, lease.attempt, attempt)


def find_committed(attempt: Attempt, lease: Lease, instead: Command[object] | None = None) -> Steps[Response | None]:
    """The committed response of this attempt, or None. The database is asked if the client library does not know.

    ``instead``: the command to send if this is cancelled.
    """
    ledger = attempt.ledger
    if ledger is None:
        return None
    proof = ledger.missing_proof()
    if proof is None:
        return ledger.committed_response()
    try:
        found = yield from surely(Call(proof), attempt, lease, instead=instead)
    except Exception as error:  # the database failed, so it is not known
        yield from warn(
            attempt.policy, events.BackendFailed.of(events.short(lease.record_id), "ledger", error), attempt
        )
        return None
    if found:  # it is asked once
        ledger.prove_commit()
    return ledger.committed_response()


def is_in_ledger(attempt: Attempt) -> bool:
    """Whether the attempt has put its response into a ledger, committed or not."""
    return attempt.ledger is not None and attempt.ledger.stored is not None
