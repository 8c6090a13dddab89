"""The quota of live keys: a flood of one caller is stopped, and other callers are not affected."""

from __future__ import annotations

from uuid import uuid4

from open_idempotency import events
from tests.http.behaviours import PATIENCE
from tests.http.conftest import NewCase
from tests.http.endpoints import charge, responding
from tests.http.sites import Case, assert_problem
from tests.http.variants import LIVE_KEYS, on_memory_only


def _caller(case: Case, name: str) -> list[tuple[str, str]]:
    """A caller that no other test uses."""
    return [("authorization", f"Bearer {name} {case.key}")]


def test_a_flood_is_stopped_and_others_go_on(new_case: NewCase) -> None:
    """I10: the caller's next key gets 429; its earlier keys and other callers are not affected."""
    case = new_case(charge, "limited")
    ada, bob = _caller(case, "ada"), _caller(case, "bob")
    keys = [str(uuid4()) for _ in range(LIVE_KEYS)]
    firsts = [case.send(key=key, headers=ada) for key in keys]
    for _ in range(3):
        refused = case.send(key=str(uuid4()), headers=ada)
        assert_problem(refused, "too-many-keys", 429, retryable=True)
        assert 86_400 - 600 < int(refused.headers["retry-after"]) <= 86_400
    assert len(case.runs) == LIVE_KEYS
    assert case.send(key=keys[0], headers=bob).json() == {"charge": LIVE_KEYS + 1}
    for key, first in zip(keys, firsts, strict=True):
        again = case.send(key=key, headers=ada)
        assert (again.status_code, again.content) == (201, first.content)
        assert again.headers["idempotent-replayed"] == "true"
    misused = case.send(key=keys[0], headers=ada, body=b"other")
    assert_problem(misused, "key-reused", 422, retryable=False)
    assert sum(isinstance(event, events.QuotaReached) for event in case.events) == 3


@on_memory_only
def test_a_quota_costs_one_round_trip(new_case: NewCase) -> None:
    """For a new key and for a replay; a refused key is only read, and nothing is claimed."""
    case = new_case(charge, "limited")
    ada = _caller(case, "ada")
    case.send(headers=ada)
    assert case.verbs == ["Reserve", "Claim", "Complete"]
    case.send(headers=ada)
    assert case.verbs[3:] == ["Reserve", "Claim"]
    for _ in range(LIVE_KEYS):
        case.send(key=str(uuid4()), headers=ada)
    assert case.verbs[-2:] == ["Reserve", "Get"]


def test_of_many_new_keys_at_once_as_many_as_the_quota_run(new_case: NewCase) -> None:
    """However many workers serve them."""
    case = new_case(charge, "limited")
    ada = _caller(case, "ada")
    outcomes = [case.start(key=str(uuid4()), headers=ada) for _ in range(8)]
    statuses = sorted(outcome.result(PATIENCE).status_code for outcome in outcomes)
    assert statuses == [201] * LIVE_KEYS + [429] * (8 - LIVE_KEYS)
    assert len(case.runs) == LIVE_KEYS


@on_memory_only
def test_a_response_that_is_not_kept_does_not_count(new_case: NewCase) -> None:
    """A 403 is not stored, so a caller that the application refuses does not use its quota up."""
    case = new_case(responding(403), "limited")
    ada = _caller(case, "ada")
    statuses = [case.send(key=str(uuid4()), headers=ada).status_code for _ in range(LIVE_KEYS + 2)]
    assert statuses == [403] * (LIVE_KEYS + 2)
    assert case.verbs[-4:] == ["Reserve", "Claim", "Release", "Unreserve"]
