"""The runner finds each fault, and that fault alone, in a shop that is wrong in one way."""

from __future__ import annotations

import pytest

from open_idempotency.conformance.http import Level, Result
from open_idempotency.conformance.http.statements import STATEMENTS
from tests.conformance import wrong_keys, wrong_responses
from tests.conformance.looking import about, examined, with_result
from tests.conformance.shop import Request, Response, Shop

WRONG: list[type[Shop]] = [
    value
    for module in (wrong_responses, wrong_keys)
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, Shop) and value.__module__ == module.__name__
]
# Needs a shop whose keys are optional, so it has a test of its own.
ELSEWHERE = {"missing-apart"}


class OneRecordWithoutKey(Shop):
    """Treats an absent key as an empty key."""

    required = False

    def without_key(self, request: Request) -> Response:
        return self.with_key("", request)


class SaysLittle(Shop):
    """Responds alike to every charge, and does not mark replays."""

    def run(self, request: Request) -> Response:
        response = super().run(request)
        return Response(response.status, [], b"done")

    def replay(self, response: Response, kept: object) -> Response:
        return response


@pytest.mark.parametrize("shop", WRONG, ids=lambda shop: shop.__name__)
def test_a_fault_fails_its_own_statements(shop: type[Shop]) -> None:
    """The statements that fail are exactly those of the fault, and an INFO does not fail the run."""
    findings = examined(shop())
    assert with_result(findings, Result.FAILS) == shop.fails
    levels = {each.id: each.level for each in STATEMENTS}
    assert findings.passed is all(levels[name] is Level.INFO for name in shop.fails)


def test_a_shop_that_is_right_passes() -> None:
    """Nothing fails, and nothing is left open but what is about keys that are optional."""
    findings = examined(Shop())
    assert with_result(findings, Result.FAILS) == set()
    assert with_result(findings, Result.UNKNOWN) == set()
    assert with_result(findings, Result.NOT_APPLICABLE) == ELSEWHERE


def test_every_statement_has_a_fault_that_it_finds() -> None:
    """A statement that cannot fail would say nothing."""
    found = {name for shop in WRONG for name in shop.fails}
    assert found == {statement.id for statement in STATEMENTS} - ELSEWHERE


def test_requests_without_a_key_that_share_a_record_are_found() -> None:
    """Where keys are optional, no key is no key."""
    findings = examined(OneRecordWithoutKey(), required=False)
    assert with_result(findings, Result.FAILS) == {"missing-apart"}


def test_optional_keys_are_right() -> None:
    """Two requests without a key are two requests."""

    class Optional(Shop):
        required = False

    findings = examined(Optional(), required=False)
    assert with_result(findings, Result.FAILS) == set()
    assert about(findings, "missing-apart").verdict.result is Result.HOLDS


def test_where_every_run_looks_the_same_nothing_is_claimed() -> None:
    """If runs and replays look alike, the statement is neither held nor failed."""
    findings = examined(SaysLittle(), failing_url=None)
    assert with_result(findings, Result.FAILS) == {"retry-marked"}
    assert {"new-keys", "retry-result", "case-of-name", "callers-apart"} <= with_result(findings, Result.UNKNOWN)


def test_a_first_request_that_is_too_quick_leaves_the_conflict_open() -> None:
    """Without a slow endpoint a duplicate may come too late to meet the first."""
    findings = examined(wrong_responses.HoldsDuplicates(), slow_url=None)
    finding = about(findings, "concurrent-conflict")
    assert finding.verdict.result is Result.UNKNOWN
    assert "--slow-url" in finding.verdict.seen
    assert about(findings, "concurrent-once").verdict.result is Result.HOLDS


def test_another_payload_that_is_refused_anyway_proves_nothing() -> None:
    """A 422 of the handler's own validation is not the 422 of a reused key."""

    class Strict(Shop):
        def respond(self, request: Request, header: str | None) -> Response:
            return super().respond(request, header) if request.body == b"{}" else self.problem(422, "what is that?")

    findings = examined(Strict())
    assert about(findings, "reuse-refused").verdict.result is Result.UNKNOWN
    assert with_result(findings, Result.FAILS) == set()


def test_scenes_that_were_not_asked_for_are_not_applicable() -> None:
    """Each says which option it needs."""
    findings = examined(Shop(), data=b"tea=1", required=False, failing_url=None, other_caller=())
    wanted = {"reuse-refused": "--other-data", "missing-refused": "--required"}
    wanted |= {"failure-not-kept": "--failing-url", "callers-apart": "--other-caller"}
    for statement, option in wanted.items():
        finding = about(findings, statement)
        assert finding.verdict.result is Result.NOT_APPLICABLE, statement
        assert option in finding.verdict.seen
