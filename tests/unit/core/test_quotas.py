"""Quotas in the core: the decision of ``reserve`` as a table, and admission and settlement as lists of commands."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from open_idempotency import decisions, events
from open_idempotency._core import problems
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.commands import Fail, Get, Release, Reserve, SaveStage, Unreserve
from open_idempotency._core.keys import scope_id
from open_idempotency._core.models import (
    Finished,
    Leased,
    OverQuota,
    Record,
    Reserved,
    Response,
    Stage,
    StageSaved,
    Status,
)
from open_idempotency._core.recording import save_stage
from open_idempotency._core.settlement import abort, finish
from open_idempotency._openapi import document
from open_idempotency.backend import AsyncBackend, Backend
from open_idempotency.backends.memory import AsyncMemoryBackend, MemoryBackend
from open_idempotency.exceptions import BackendUnavailable, ConfigurationError, RecordUnreadable
from open_idempotency.policy import IdempotencyPolicy
from open_idempotency.rules import Rule
from tests.unit.builders import RECORD, Script, attempt_of, engine_of, lease_of
from tests.unit.core.admissions import FRAME, Admission, name

SCOPE = b"c" * 32
NOW = 1_000.0
LEASE, TTL = 30.0, 600.0
NEEDED = NOW + LEASE + TTL
RESERVE = Reserve(SCOPE, RECORD, 5, LEASE, TTL)


@pytest.mark.parametrize(
    ("end", "taken", "earliest", "result", "written"),
    [
        pytest.param(None, 0, NOW, Reserved(), NEEDED + LEASE, id="first"),
        pytest.param(None, 4, NOW + 7, Reserved(), NEEDED + LEASE, id="last"),
        pytest.param(None, 5, NOW + 7, OverQuota(7.0), None, id="one more"),
        pytest.param(None, 9, NOW + 7, OverQuota(7.0), None, id="limit was lowered"),
        pytest.param(NOW, 5, NOW + 7, OverQuota(7.0), None, id="its own expired, others did not"),
        pytest.param(NOW, 4, NOW + 7, Reserved(), NEEDED + LEASE, id="its own expired, there is room"),
        pytest.param(NOW + 0.1, 5, NOW + 0.1, Reserved(), NEEDED + LEASE, id="its own ends soon"),
        pytest.param(NEEDED - 0.1, 5, NOW + 7, Reserved(), NEEDED + LEASE, id="its own ends before its record may"),
        pytest.param(NEEDED, 5, NOW + 7, Reserved(), None, id="its own lasts as long as its record may"),
        pytest.param(NEEDED + LEASE, 9, NOW + 7, Reserved(), None, id="its own was just made"),
    ],
)
def test_a_reservation_is_decided(
    end: float | None, taken: int, earliest: float, result: object, written: float | None
) -> None:
    """A key that counts already is admitted at any count, a new key below the limit."""
    assert decisions.reserve(end, taken, earliest, RESERVE, NOW) == (result, written)


def _admission(*claims: Any, reserves: Any = (), gets: Any = (), **fields: Any) -> Admission:
    admission = Admission(*claims, **{"max_live_keys": 5, **fields})
    admission.script.results.update({Reserve: list(reserves), Get: list(gets)})
    return admission


def test_without_a_quota_nothing_more_is_asked() -> None:
    """Without a quota there is no further round trip."""
    admission = _admission(Leased(lease_of()), max_live_keys=None)
    assert admission.run().scope_id is None
    assert admission.script.names() == ["Call", "Call", "Claim"]


def test_with_a_quota_a_new_key_is_counted_before_its_claim() -> None:
    """A quota costs one further round trip, with the durations of the claim."""
    admission = _admission(Leased(lease_of()), reserves=[Reserved()], lease=7, ttl=70, max_run=70)
    attempt = admission.run()
    assert isinstance(attempt, Attempt)
    assert admission.script.names() == ["Call", "Call", "Reserve", "Claim"]
    reserve, claim = admission.script.asked[2:4]
    assert isinstance(reserve, Reserve)
    assert (reserve.record_id, reserve.limit, reserve.lease, reserve.ttl) == (claim.record_id, 5, 7.0, 70.0)
    assert attempt.scope_id == reserve.scope_id


def test_a_replay_is_counted_too() -> None:
    """Before the claim it is unknown whether the key is new, so a replay costs the round trip too."""
    admission = _admission(Finished(FRAME), reserves=[Reserved()])
    assert admission.run().status == 201
    assert admission.script.names() == ["Call", "Call", "Reserve", "Claim"]


def test_over_the_quota_nothing_is_claimed() -> None:
    """The client gets 429 with the time until the first key expires, and an event without the key."""
    admission = _admission(reserves=[OverQuota(41.2)], gets=[None])
    response = admission.run()
    assert admission.script.names() == ["Call", "Call", "Reserve", "Get"]
    assert (response.status, dict(response.headers)[b"retry-after"]) == (429, b"42")
    assert admission.listener.seen == [events.QuotaReached(admission.script.asked[2].record_id[:6].hex(), 5)]


def test_over_the_quota_the_problem_says_to_retry_with_the_same_key() -> None:
    """The problem is retryable after a time."""
    problem = _admission(reserves=[OverQuota(1.0)], gets=[None]).problem()
    assert (name(problem), problem["status"]) == ("too-many-keys", 429)
    assert problem["retryable"] is True


def test_over_the_quota_a_key_whose_record_lives_gets_a_response() -> None:
    """A record that is older than the quota, or outlived its reservation, still has its one outcome."""
    record = Record(RECORD, b"", Status.COMPLETED, b"", 1, 1, 0.0, 0.0, 1.0, 1.0)
    admission = _admission(Finished(FRAME), reserves=[OverQuota(5.0)], gets=[record])
    assert admission.run().status == 201
    assert admission.script.names() == ["Call", "Call", "Reserve", "Get", "Claim"]


@pytest.mark.parametrize(("remaining", "reported"), [(0.0, 1), (0.2, 1), (1.0, 1), (86_400.0, 86_400), (1e300, 86_400)])
def test_retry_after_is_a_second_at_least_and_a_day_at_most(remaining: float, reported: int) -> None:
    """O-03's arithmetic: Retry-After is in whole seconds."""
    assert problems.too_many_keys(remaining).retry_after == reported


@pytest.mark.parametrize("where", [Reserve, Get])
def test_with_the_backend_down_nothing_runs(where: type) -> None:
    """O-12: reservations fail closed, as claims do."""
    admission = _admission(reserves=[OverQuota(1.0)], gets=[None])
    admission.script.results[where] = [BackendUnavailable("down")]
    assert name(admission.problem()) == "backend-unavailable"
    assert admission.script.names()[-1] == where.__name__
    assert admission.listener.kinds() == [events.BackendFailed]
    assert admission.listener.seen[0].verb == "reserve"


def test_with_the_backend_down_a_route_may_fail_open() -> None:
    """O-12: an event counts it, as for claims."""
    admission = _admission(reserves=[BackendUnavailable("down")], fail_open=True)
    assert admission.run().lease is None
    assert admission.script.names() == ["Call", "Call", "Reserve"]
    assert admission.listener.kinds() == [events.BackendFailed, events.FailedOpen]


def test_a_reservation_that_cannot_be_read_fails_closed() -> None:
    """B-08b: also where the route fails open."""
    admission = _admission(reserves=[RecordUnreadable("junk")], fail_open=True)
    assert name(admission.problem()) == "record-unreadable"


def test_scopes_have_digests_of_their_own() -> None:
    """The raw scope is not stored; application and secret separate quotas as they separate records."""
    plain = scope_id("user:ann", IdempotencyPolicy())
    assert len(plain) == 32
    assert b"ann" not in plain
    others = [
        scope_id("user:bob", IdempotencyPolicy()),
        scope_id("user:ann", IdempotencyPolicy(application="shop")),
        scope_id("user:ann", IdempotencyPolicy(secret=b"s" * 16)),
    ]
    assert len({plain, *others}) == 4


def test_the_quota_is_the_callers_whatever_the_route() -> None:
    """``scope_by_route`` separates records, not callers."""
    assert scope_id("user:ann", IdempotencyPolicy(scope_by_route=True)) == scope_id("user:ann", IdempotencyPolicy())


def _attempt(*stages: Stage, attempt: int = 1) -> Attempt:
    made = attempt_of(*stages, owned=lease_of(attempt=attempt))
    made.scope_id = SCOPE
    return made


def _finish(attempt: Attempt, status: int, **results: Any) -> Script:
    prepared = {Release: [None], Fail: [None], Unreserve: [None], **results.get("also", {})}
    script = Script(prepared)
    script.run(finish(attempt, Response(status, [], b"")))
    return script


def test_a_response_that_is_not_kept_frees_the_slot() -> None:
    """After a 401 no record is left, so nothing counts."""
    script = _finish(_attempt(), 401)
    assert script.names() == ["Release", "Unreserve"]
    assert script.asked[1] == Unreserve(SCOPE, RECORD)


def test_without_a_quota_no_place_is_given_back() -> None:
    assert _finish(attempt_of(owned=lease_of()), 401).names() == ["Release"]


@pytest.mark.parametrize("attempt", [_attempt(attempt=2), _attempt(Stage("a", "", b"x"))], ids=["attempt 2", "stages"])
def test_a_record_that_stays_goes_on_counting(attempt: Attempt) -> None:
    """B-05: a released record with stages or earlier attempts is kept."""
    assert _finish(attempt, 401).names() == ["Release"]


def test_a_failed_attempt_goes_on_counting() -> None:
    """B-05: its record is kept for its TTL, whether the view responded or raised."""
    assert _finish(_attempt(), 500).names() == ["Fail"]
    script = Script({Fail: [None]})
    script.run(abort(_attempt(), ValueError("no")))
    assert script.names() == ["Fail"]


def test_a_stage_that_this_attempt_saved_keeps_the_place() -> None:
    """B-05: it keeps the slot as a stage of an earlier attempt does."""
    attempt = _attempt()
    Script({SaveStage: [StageSaved(b"x")]}).run(save_stage(attempt, Stage("a", "", b"x")))
    assert _finish(attempt, 401).names() == ["Release"]


def test_a_slot_that_cannot_be_freed_changes_no_response() -> None:
    """L-08's rule: the slot counts until it expires, and an event says so."""
    attempt = _attempt()
    _finish(attempt, 401, also={Unreserve: [BackendUnavailable("down")]})
    seen: Any = attempt.policy.on_event
    assert [type(event) for event in seen.seen] == [events.BackendFailed, events.Released]
    assert seen.seen[0].verb == "unreserve"


@pytest.mark.parametrize("compat", [None, "stripe"])
def test_the_response_is_documented_where_there_is_a_quota(compat: Any) -> None:
    """OpenAPI describes the 429 on covered operations with a quota."""
    with_quota: dict[str, Any] = {}
    document(with_quota, IdempotencyPolicy(max_live_keys=5, compat=compat), {})
    without: dict[str, Any] = {}
    document(without, IdempotencyPolicy(compat=compat), {})
    assert set(with_quota["responses"]) - set(without["responses"]) == {"429"}


def test_clients_of_stripe_know_the_problem() -> None:
    """``compat="stripe"`` has a code for it."""
    response = _admission(reserves=[OverQuota(1.0)], gets=[None], compat="stripe").run()
    assert response.status == 429
    assert json.loads(response.body)["error"]["code"] == "rate_limit"


async def _refuses(call: Any) -> None:
    with pytest.raises(ConfigurationError, match="quotas"):
        await call


def test_a_backend_that_cannot_count_says_so() -> None:
    """The quota verbs are optional; the default ones raise."""
    with pytest.raises(ConfigurationError, match="quotas"):
        Backend.reserve(MemoryBackend(), RESERVE)
    with pytest.raises(ConfigurationError, match="quotas"):
        Backend.unreserve(MemoryBackend(), Unreserve(SCOPE, RECORD))
    asyncio.run(_refuses(AsyncBackend.reserve(AsyncMemoryBackend(), RESERVE)))
    asyncio.run(_refuses(AsyncBackend.unreserve(AsyncMemoryBackend(), Unreserve(SCOPE, RECORD))))


class WithoutQuotas(MemoryBackend):
    """A backend without quotas, such as one of another package."""

    quotas = False


def test_a_backend_without_quotas_is_refused_at_start() -> None:
    """A quota is never silently ignored."""
    with pytest.raises(ConfigurationError, match=r"^max_live_keys: WithoutQuotas has no quotas"):
        engine_of(WithoutQuotas(), max_live_keys=5)
    engine_of(WithoutQuotas())


def test_a_route_with_a_quota_is_refused_on_a_backend_without() -> None:
    """The policy of a single route is checked as well."""
    engine = engine_of(WithoutQuotas())
    with pytest.raises(ConfigurationError, match=r"^max_live_keys: "):
        engine.policy_for(Rule({"max_live_keys": 5}))
