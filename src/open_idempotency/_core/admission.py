"""Admission: a request with a key becomes an attempt to run, or gets a response instead.

The generators yield commands, and the order of the commands is the rule. A malformed key is refused before anything is
read. The body is read whole before the claim is made. Nothing runs before the result of the claim is known.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from math import inf

from open_idempotency import events
from open_idempotency._core import key_sources, problems, quotas
from open_idempotency._core.attempt import Attempt, NotRenewable
from open_idempotency._core.caller_changes import Session, find_record
from open_idempotency._core.commands import (
    Call,
    Claim,
    Get,
    KeepAlive,
    Look,
    Now,
    Release,
    Steps,
    TakeSlot,
    Wait,
    Withdraw,
    ask,
)
from open_idempotency._core.fingerprint import fingerprint_steps
from open_idempotency._core.identity import ScopeRefused, cookie_names, entry_names
from open_idempotency._core.keys import (
    Caller,
    about_request,
    by_credentials,
    caller_scope,
    echo_of,
    host_of,
    is_anonymous,
    owner_at_host,
    parse_key,
    record_id,
    with_echo,
)
from open_idempotency._core.models import (
    Body,
    Busy,
    ClaimResult,
    Finished,
    Headers,
    Identity,
    Lease,
    Leased,
    Mismatch,
    Refused,
    Request,
    Response,
    Stage,
)
from open_idempotency._core.notify import FIRST_PAUSE, LONGEST_PAUSE, Advice, everyday_log, notify, warn
from open_idempotency._core.rendering import refuse, replay
from open_idempotency._core.stored_response import (
    FAILURE,
    RESPONSE,
    decode_response,
    decode_stage,
    unseal,
    unseal_stage,
)
from open_idempotency.exceptions import (
    BackendUnavailable,
    BodyTooLarge,
    BodyUnreadable,
    ConfigurationError,
    KeyRejected,
    KeyRequired,
    RecordUnreadable,
)
from open_idempotency.policy import ANONYMOUS, IdempotencyPolicy

#: seconds after which a waiting duplicate claims again without a notification, from the first pause to the longest
FIRST_LOOK, LONGEST_LOOK = 1.0, 5.0

# No real Content-Length has more digits, and Python refuses to convert very long numbers.
_MOST_DIGITS = 20
_PREFER_WAIT = re.compile(rb"(?:^|[,;])\s*wait\s*=\s*\"?(\d{1,6})\"?\s*(?:$|[,;])", re.IGNORECASE)


Identified = Identity | str | None


@dataclass(slots=True, frozen=True)
class Patience:
    """How long a duplicate waits, in seconds, and whether its client asked for that time."""

    seconds: float
    preferred: bool = False


def _renders_none(error: Exception) -> bool:
    return False


@dataclass(slots=True)
class Intake:
    """What an adapter passes to ``admit``. Both callables may be sync or async, as the adapter is.

    ``identify`` returns the framework's verified user, None without one, or an ``Identity`` if the user belongs to a
    tenant or a session may name the caller. ``receive`` reads the whole body and raises ``BodyTooLarge``. ``owner``: 16
    random bytes. ``advice``: the engine's, shared by all its requests. ``session``: finds the record of a request that
    began under another caller (O-14), for adapters that know sessions. ``renders``: whether the framework turns the
    given exception of ``scope=`` into a response; if so, ``admit`` raises that exception (O-20). ``holder``: this
    worker, as ``processes.name`` has it.
    """

    request: Request
    key_headers: Headers
    owner: bytes
    identify: Callable[[], Identified | Awaitable[Identified]]
    receive: Callable[[], Body | Awaitable[Body]]
    advice: Advice = field(default_factory=Advice)
    session: Session | None = None
    renders: Callable[[Exception], bool] = _renders_none
    holder: str = ""


def admit(intake: Intake, policy: IdempotencyPolicy) -> Steps[Attempt | Response]:
    """Decide what happens to a covered request: return an attempt to run, or the response to send instead.

    The attempt has no lease if the request has no key, or if the backend is down and the policy fails open. Raises
    ``ScopeUnknown``, ``KeyUnknown``, errors of the adapter's callables, and a refusal of ``scope=`` that is rendered.
    """
    request, key = intake.request, None
    try:
        key = parse_key(intake.key_headers, policy) if policy.key is None else (yield from _made_key(intake, policy))
        if key is None:
            return Attempt(policy) if policy.key is None else Attempt.without_key(policy)
        found: Identified = yield Call(intake.identify)
        identity = found if isinstance(found, Identity) else Identity(found)
        scope = caller_scope(request, identity, key, policy)
        # The body comes last: if the key or the caller is refused, it is never read.
        if policy.key is None or request.body is None:
            request.body = yield Call(intake.receive)
    except (KeyRejected, BodyTooLarge, ScopeRefused) as error:
        return (yield from _refuse_error(error, key, intake, policy))
    fingerprint = yield from fingerprint_steps(request, policy)
    owner = owner_at_host(intake.owner, request, policy)
    claim = Claim(
        record_id(scope, key, request, policy),
        fingerprint,
        owner,
        policy.lease,
        policy.ttl,
        policy.on_failed == "resume",
        policy.on_abandoned == "resume",
        policy.max_attempts,
        about_request(request, scope, key, owner, intake.holder, policy),
    )
    caller = None
    if intake.session is not None and policy.scope != ANONYMOUS:
        caller = Caller(request, key, policy, identity, claim.record_id)
        if (instead := (yield from _find_earlier(claim, caller, intake.session, policy))) is not None:
            return _echoing(instead, key, intake, policy)
    if (advice := _advice(claim, scope, identity, intake, policy)) is not None:
        yield from warn(policy, advice, request)
    # A generator that has not started: a reservation, if the policy has a quota, comes before the claim.
    steps = _begin(claim, intake, policy)
    if policy.max_live_keys is not None:
        steps = _counted(steps, claim, scope, intake, policy)
    try:
        admission = yield from steps
    except NotRenewable:
        admission = yield from _unprotected(claim, request, policy)
    if caller is not None and isinstance(admission, Attempt):
        admission.sent_by(caller)
    return _echoing(admission, key, intake, policy) if policy.echo_key else admission


def _find_earlier(
    claim: Claim, caller: Caller, session: Session, policy: IdempotencyPolicy
) -> Steps[Attempt | Response | None]:
    """Claim the record of the caller under whom the request began, if there is one (O-14).

    The retry of a login or logout comes from another caller, and so with another record id. If the record cannot be
    looked up, the result is what to return instead of making the claim; otherwise None.
    """
    try:
        claim.record_id = (yield from find_record(caller, session)) or claim.record_id
    except (BackendUnavailable, RecordUnreadable) as error:
        return (yield from _without_backend(error, "get", claim, caller.request, policy))
    return None


def _made_key(intake: Intake, policy: IdempotencyPolicy) -> Steps[str | None]:
    """The steps that find the key by ``key=``."""
    return key_sources.find_key(intake.request, intake.receive, policy)


def _echoing(
    admission: Attempt | Response, key: str | None, intake: Intake, policy: IdempotencyPolicy
) -> Attempt | Response:
    """The response with the client's key, or the attempt that will send it back, if the policy says so (H-21)."""
    if key is None or not policy.echo_key:
        return admission
    echo = echo_of(key, intake.key_headers, policy)
    if isinstance(admission, Response):
        return with_echo(admission, echo)
    admission.send_back(echo)
    return admission


def _refuse_error(
    error: KeyRejected | BodyTooLarge | ScopeRefused, key: str | None, intake: Intake, policy: IdempotencyPolicy
) -> Steps[Attempt | Response]:
    """The response to a request that is wrong in itself, or that ``scope=`` refuses. A refused key is not sent back."""
    request = intake.request
    if isinstance(error, BodyTooLarge):
        refused = yield from _refuse(problems.body_too_large(policy.max_request_bytes), request, policy)
    elif isinstance(error, ScopeRefused):
        refused = yield from _refuse_scope(error, intake, policy)
    else:
        missing = isinstance(error, KeyRequired | BodyUnreadable)
        problem = problems.key_missing if missing else problems.key_malformed
        return (yield from _refuse(problem(str(error)), request, policy))
    return _echoing(refused, key, intake, policy)


def _refuse_scope(refused: ScopeRefused, intake: Intake, policy: IdempotencyPolicy) -> Steps[Response]:
    """The response to a request that ``scope=`` refuses (O-20). Raises its error if the framework renders it."""
    problem = refused.problem()
    if intake.renders(refused.error):
        yield from notify(policy, events.RefusedByScope, b"", problem.status, of=intake.request)
        raise refused.error from None
    return (yield from _refuse(problem, intake.request, policy))


def _advice(
    claim: Claim, scope: str, identity: Identity, intake: Intake, policy: IdempotencyPolicy
) -> events.Event | None:
    """The advice to report once: callers are known by credentials alone, or callers with cookies are anonymous."""
    advice = intake.advice
    if by_credentials(scope):
        return events.CredentialScoped(events.short(claim.record_id)) if advice.due(events.CredentialScoped) else None
    if policy.scope is not None or not is_anonymous(scope):
        return None
    sent = intake.request.header(b"cookie")
    if not (sent or identity.session) or advice.is_given(events.CallerUnidentified):
        return None
    cookies, entries = cookie_names(sent), entry_names(identity.session)
    if (cookies or entries) and advice.due(events.CallerUnidentified):
        return events.CallerUnidentified.of(events.short(claim.record_id), cookies, entries)
    return None


def refuse_ahead(request: Request, key_headers: Headers, policy: IdempotencyPolicy) -> problems.Problem | None:
    """Check what is known of a covered request before its body and caller are: the key, and the declared length.

    Returns the problem to refuse the request with, or None. For adapters that admit a request only after the
    application has read the body. A missing key is left to ``admit``.
    """
    try:
        if policy.key is None:
            parse_key(key_headers, policy)
    except KeyRequired:
        return None
    except KeyRejected as error:
        return problems.key_malformed(str(error))
    for value in request.header(b"content-length") if key_headers or (policy.key and policy.required) else ():
        if value.isdigit() and (len(value) > _MOST_DIGITS or int(value) > policy.max_request_bytes):
            return problems.body_too_large(policy.max_request_bytes)
    return None


def _begin(claim: Claim, intake: Intake, policy: IdempotencyPolicy) -> Steps[Attempt | Response]:
    """Claim the record. Returns an attempt whose lease is kept alive, or the response to send instead."""
    request = intake.request
    patience: Patience | None = None
    try:
        result = yield from make_claim(claim, policy, request)
        if isinstance(result, Busy):
            wanted = _patience(request, policy)
            awaited = yield from wait_in_slot(claim, result, wanted.seconds, policy, request)
            if awaited is not None:
                result, patience = awaited, wanted
        # Only a refused request pays for this look: its key may have been passed on by another service (O-22).
        if isinstance(result, Busy | Mismatch):
            yield from _look_for_another_service(claim, request, intake.advice, policy)
        if not isinstance(result, Leased):
            response = yield from _respond(result, claim, request, policy)
            return response if patience is None else _preference_applied(response, patience)
        lease, stages = result.lease, result.stages
        if stages:
            stages = yield from readable_stages(stages, lease, policy, request)
        attempt = Attempt.of(
            lease,
            stages,
            policy,
            request.path.decode("latin-1"),
            method=request.method,
            route=request.route,
            alone=request.alone,
            asked=claim.asked,
            request_headers=request.headers,
        )
        if policy.on_replay is not None:
            attempt.know_request(request)
        yield from keep_alive(attempt, lease)
        return attempt
    except (BackendUnavailable, RecordUnreadable) as error:
        return (yield from _without_backend(error, "claim", claim, request, policy))


def _look_for_another_service(claim: Claim, request: Request, advice: Advice, policy: IdempotencyPolicy) -> Steps[None]:
    """Report, once, that the key of a refused request is held by a request to another host (O-22). Raises nothing.

    Two services may store their keys under one application name on one backend. If one of them passes its caller's key
    and credentials on to the other, both requests lead to one record, and the second is refused on every try.
    ``application=`` separates the services. The look costs one read of the record, when a key is refused for the third
    time, and at most once in ten seconds.
    """
    mine = host_of(claim.owner)
    if mine is None or not advice.may_look(claim.record_id, (yield from ask(Now()))):
        return
    try:
        record = yield from ask(Get(claim.record_id))
    except (BackendUnavailable, RecordUnreadable) as error:
        yield from warn(policy, events.BackendFailed.of(events.short(claim.record_id), "get", error), request)
        return
    if record is not None and host_of(record.owner) not in (None, mine):
        advice.has_found()
        event = events.NameShared.of(events.short(claim.record_id), request.method, request.path.decode("latin-1"))
        yield from warn(policy, event, request)


def _counted(
    begin: Steps[Attempt | Response], claim: Claim, scope: str, intake: Intake, policy: IdempotencyPolicy
) -> Steps[Attempt | Response]:
    """Run the steps ``begin`` for a key that counts towards its caller's quota. A caller over it creates no record."""
    try:
        admission = yield from quotas.within_quota(begin, claim, scope, policy, intake.request)
    except (BackendUnavailable, RecordUnreadable) as error:  # the reservation's: errors of the claim became responses
        return (yield from _without_backend(error, "reserve", claim, intake.request, policy))
    if isinstance(admission, problems.Problem):
        return (yield from _refuse(admission, intake.request, policy, claim.record_id))
    return admission


def _without_backend(
    error: BackendUnavailable | RecordUnreadable, verb: str, claim: Claim, request: Request, policy: IdempotencyPolicy
) -> Steps[Attempt | Response]:
    record = events.short(claim.record_id)
    yield from warn(policy, events.BackendFailed.of(record, verb, error), request)
    if isinstance(error, RecordUnreadable):
        return (yield from _refuse(problems.record_unreadable(), request, policy, claim.record_id))
    return (yield from _unprotected(claim, request, policy))


def _unprotected(claim: Claim, request: Request, policy: IdempotencyPolicy) -> Steps[Attempt | Response]:
    """A request that cannot be protected: 503, or an attempt without a lease if the policy fails open."""
    if not policy.fail_open:
        return (yield from _refuse(problems.backend_unavailable(), request, policy, claim.record_id))
    yield from warn(policy, events.FailedOpen(events.short(claim.record_id)), request)
    return Attempt(policy)


def _respond(
    result: Finished | Busy | Mismatch | Refused, claim: Claim, request: Request, policy: IdempotencyPolicy
) -> Steps[Response]:
    """The response to a request whose claim was not granted."""
    match result:
        case Finished(frame):
            return (yield from _replay(frame, RESPONSE, claim, request, policy))
        case Busy() as busy:
            yield from notify(policy, events.Conflicted, claim.record_id, busy.remaining, of=request)
            problem = problems.in_progress(busy, unnamed=not policy.application)
            return (yield from _refuse(problem, request, policy, claim.record_id))
        case Mismatch():
            yield from notify(policy, events.KeyReused, claim.record_id, of=request)
            problem = problems.key_reused(unnamed=not policy.application)
            return (yield from _refuse(problem, request, policy, claim.record_id))
        case Refused() as refused:
            return (yield from _no_further_attempt(refused, claim, request, policy))


def keep_alive(attempt: Attempt, lease: Lease) -> Steps[None]:
    """Have the lease of a claimed attempt renewed from now on. Raises ``NotRenewable`` where that is impossible."""
    policy = attempt.policy
    try:
        yield KeepAlive(attempt)
        if policy.on_event is not None or everyday_log.on():
            yield from notify(policy, events.Claimed, lease.record_id, lease.attempt, of=attempt)
    except GeneratorExit:
        raise
    except BackendUnavailable as error:
        raise (yield from _not_renewable(attempt, lease, error)) from error
    except BaseException:  # such as a time limit of gevent's, or a listener that ends the process
        attempt.lose()  # no handler will run, so the lease is not renewed
        yield from _give_back(lease, policy, attempt)
        raise


def _no_further_attempt(refused: Refused, claim: Claim, request: Request, policy: IdempotencyPolicy) -> Steps[Response]:
    """Refuse a request that the policy does not run again, unless the ledger has its response (S-06b).

    An earlier attempt may have committed its response together with its rows, and then have failed or died.
    """
    if policy.ledger is not None:
        try:
            known = yield from ask(Look(policy.ledger, claim.record_id, claim.fingerprint))
        except ConfigurationError:
            raise
        except Exception as error:  # the database failed, so a later retry has to find out
            yield from warn(policy, events.BackendFailed.of(events.short(claim.record_id), "ledger", error), request)
            return (yield from _refuse(problems.ledger_unreachable(), request, policy, claim.record_id))
        if known is not None:
            return (yield from _replay(known, RESPONSE, claim, request, policy))
    if refused.response is not None and policy.on_failed == "replay":
        return (yield from _replay(refused.response, FAILURE, claim, request, policy))
    yield from notify(policy, events.Rejected, claim.record_id, refused.reason.value, of=request)
    problem = problems.outcome_unknown(refused.reason)
    return (yield from _refuse(problem, request, policy, claim.record_id, refused.attempt))


def _not_renewable(attempt: Attempt, lease: Lease, error: BackendUnavailable) -> Steps[NotRenewable]:
    """Release a claim whose lease cannot be renewed, so that nothing runs (L-11). Returns the error to raise."""
    yield from warn(attempt.policy, events.NotRenewable.of(events.short(lease.record_id), error), attempt)
    yield from _give_back(lease, attempt.policy, attempt)
    return NotRenewable(lease.attempt == 1 and not attempt.stages)


def readable_stages(
    stages: tuple[Stage, ...], lease: Lease, policy: IdempotencyPolicy, of: Request | None = None
) -> Steps[tuple[Stage, ...]]:
    """The stages, decrypted. An unreadable stage raises here, before the view runs, not in the middle of it (B-08b)."""
    try:
        plain = tuple([unseal_stage(stage, lease, policy) for stage in stages])
        for stage in plain:
            decode_stage(stage.frame)
    except RecordUnreadable:
        yield from _give_back(lease, policy, of)
        raise
    return plain


def _replay(frame: bytes, kind: bytes, claim: Claim, request: Request, policy: IdempotencyPolicy) -> Steps[Response]:
    stored = decode_response(unseal(frame, kind, claim, policy))
    if policy.on_event is not None or everyday_log.on():
        yield from notify(policy, events.Replayed, claim.record_id, stored.status, stored.first_trace, of=request)
    return (
        yield from replay(stored, request.headers, claim.record_id, request.path.decode("latin-1"), policy, request)
    )


def wait_in_slot(
    claim: Claim, busy: Busy, patience: float, policy: IdempotencyPolicy, of: Request | None = None
) -> Steps[ClaimResult | None]:
    """Repeat a refused claim for ``patience`` seconds (O-04). Returns the last result, or None if it may not wait."""
    if patience <= 0:
        return None
    leave = yield from ask(TakeSlot(policy.max_waiting))
    if leave is None:
        return None
    try:
        return (yield from _claim_patiently(claim, busy, patience, policy, of))
    finally:
        leave()


def _claim_patiently(
    claim: Claim, busy: Busy, patience: float, policy: IdempotencyPolicy, of: Request | None
) -> Steps[ClaimResult]:
    result: ClaimResult = busy
    deadline = (yield from ask(Now())) + patience
    look, pause = FIRST_LOOK, FIRST_PAUSE
    while isinstance(result, Busy):
        left = deadline - (yield from ask(Now()))
        if left <= 0:
            break
        # The end of a lease is not notified, and a notification may get lost.
        seconds = min(left, look, max(result.remaining, FIRST_PAUSE))
        yield from ask(Wait(claim.record_id, seconds, min(pause, seconds)))
        look, pause = min(look * 1.5, LONGEST_LOOK), min(pause * 1.5, LONGEST_PAUSE)
        result = yield from make_claim(claim, policy, of)
    return result


def make_claim(claim: Claim, policy: IdempotencyPolicy, of: Request | None = None) -> Steps[ClaimResult]:
    """Send a claim, and withdraw it if the caller is cancelled before the reply arrives (B-08c)."""
    claim.asked = inf  # a lease counts from the claim that has led to it
    try:
        result: ClaimResult = yield claim
        return result
    except (Exception, GeneratorExit):  # GeneratorExit: a discarded generator can yield no further command
        raise
    except BaseException:
        # Cancelled before the reply arrived: the claim may stand, or still be on its way (B-08c).
        yield from _withdraw(claim, policy, of)
        raise


def _withdraw(claim: Claim, policy: IdempotencyPolicy, of: Request | None) -> Steps[None]:
    try:
        try:
            yield from ask(Withdraw(claim))
        except BackendUnavailable:  # perhaps only the claim's own connection hangs; the next try uses another one
            yield from ask(Withdraw(claim))
    except Exception as error:
        yield from warn(policy, events.BackendFailed.of(events.short(claim.record_id), "withdraw", error), of)


def _give_back(lease: Lease, policy: IdempotencyPolicy, of: Request | Attempt | None) -> Steps[None]:
    try:
        yield from _release(lease, policy, of)
    except (Exception, GeneratorExit):  # GeneratorExit: a discarded generator can yield no further command
        raise
    except BaseException:
        # Cancelled before it is known whether it has arrived. Sent twice it succeeds (B-08).
        yield from _release(lease, policy, of)
        raise


def _release(lease: Lease, policy: IdempotencyPolicy, of: Request | Attempt | None) -> Steps[None]:
    try:
        yield from ask(Release(lease))
    except Exception as error:  # a claim that stays ends with its lease; the response is the same
        yield from warn(policy, events.BackendFailed.of(events.short(lease.record_id), "release", error), of)


def _patience(request: Request, policy: IdempotencyPolicy) -> Patience:
    """How long this duplicate waits: its own ``Prefer: wait=N`` (RFC 7240), capped, else the policy's ``wait``."""
    if policy.max_wait > 0:
        for value in request.header(b"prefer"):
            match = _PREFER_WAIT.search(value)
            if match:
                return Patience(min(float(match[1]), policy.max_wait), preferred=True)
    return Patience(policy.wait)


def _preference_applied(response: Response, patience: Patience) -> Response:
    """Add ``Preference-Applied`` if the client's preference decided how long it waited (RFC 7240, section 3)."""
    if not patience.preferred:
        return response
    applied = (b"preference-applied", b"wait=%d" % patience.seconds)
    return replace(response, headers=[*response.headers, applied])


def _refuse(
    problem: problems.Problem,
    request: Request,
    policy: IdempotencyPolicy,
    record_id: bytes = b"",
    attempt: int | None = None,
) -> Steps[Response]:
    return refuse(problem, policy, request.path.decode("latin-1"), record_id, attempt, request)
