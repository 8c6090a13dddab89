"""The runner finds each fault, and that fault alone, in a shop that is wrong in one way."""

from __future__ import annotations

import pytest

from open_idempotency.conformance.http import Level, Result
from open_idempotency.conformance.http.cli import STATEMENTS
from tests.conformance import wrong_keys, wrong_responses
from tests.conformance.looking import about, examined, with_result
from tests.conformance.shop import HoldsDuplicates, Kept, MarksOtherwise, Request, Response, Shop

WRONG: list[type[Shop]] = [
    value
    for module in (wrong_responses, wrong_keys)
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, Shop) and value.__module__ == module.__name__
]
# This statement needs a shop whose keys are optional, so it has a test of its own.
ELSEWHERE = {"missing-apart"}


class OneRecordWithoutKey(Shop):
    """Treats an absent key as an empty key."""

    required = False

    def without_key(self, request: Request) -> Response:
        return self.with_key("", request)


class SaysLittle(Shop):
    """Sends the same response to every charge, and does not mark replays."""

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
    """No statement fails, and only statements about optional keys are not applicable."""
    findings = examined(Shop())
    assert with_result(findings, Result.FAILS) == set()
    assert with_result(findings, Result.UNKNOWN) == set()
    assert with_result(findings, Result.NOT_APPLICABLE) == ELSEWHERE


def test_every_statement_has_a_fault_that_it_finds() -> None:
    """A statement that cannot fail would prove nothing."""
    found = {name for shop in WRONG for name in shop.fails}
    assert found == {statement.id for statement in STATEMENTS} - ELSEWHERE


def test_requests_without_a_key_that_share_a_record_are_found() -> None:
    """An absent key must not be treated as a key."""
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
    """If runs and replays look alike, the statement neither passes nor fails."""
    findings = examined(SaysLittle(), failing_url=None)
    assert with_result(findings, Result.FAILS) == {"retry-marked"}
    assert {"new-keys", "retry-result", "case-of-name", "callers-apart"} <= with_result(findings, Result.UNKNOWN)


def test_a_first_request_that_is_too_quick_leaves_the_conflict_open() -> None:
    """Without a slow endpoint a duplicate may come after the first request has ended."""
    findings = examined(HoldsDuplicates(), slow_url=None)
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
    """Each finding says which option it needs."""
    findings = examined(Shop(), data=b"tea=1", required=False, failing_url=None, other_caller=())
    wanted = {"reuse-refused": "--other-data", "missing-refused": "--required"}
    wanted |= {"failure-not-kept": "--failing-url", "callers-apart": "--other-caller"}
    for statement, option in wanted.items():
        finding = about(findings, statement)
        assert finding.verdict.result is Result.NOT_APPLICABLE, statement
        assert option in finding.verdict.seen


def test_a_duplicate_that_waits_and_is_replayed_passes() -> None:
    """O-35: ``wait=`` is no fault. There is no 409 then that could be checked."""
    findings = examined(HoldsDuplicates())
    finding = about(findings, "concurrent-conflict")
    assert finding.verdict.result is Result.HOLDS
    assert "held for" in finding.verdict.seen
    assert with_result(findings, Result.FAILS) == set()
    no_conflict = {"conflict-explained", "conflict-retry-after", "conflict-harmless"}
    assert with_result(findings, Result.NOT_APPLICABLE) == ELSEWHERE | no_conflict


@pytest.mark.parametrize(
    "mark",
    [
        ("Idempotent-Replayed", "1", None),
        ("Idempotent-Replayed", "true", "false"),
        ("X-Idempotency-Replayed", "true", None),
        ("Idempotency-Key-Replay", "?1", "?0"),
        ("X-Idempotent-Cache", "HIT", "MISS"),
    ],
    ids=lambda mark: "-".join(map(str, mark)),
)
def test_another_spelling_of_the_mark_is_no_failure(mark: tuple[str, str, str | None]) -> None:
    """O-35: neither for the mark's own statement, nor for the headers of a retry; the report shows the spelling."""
    shop = MarksOtherwise()
    shop.mark = mark
    findings = examined(shop, slow_url=None)
    assert with_result(findings, Result.FAILS) == set()
    finding = about(findings, "retry-marked")
    assert finding.statement.level is Level.INFO
    assert f"{mark[0].lower()}: {mark[1]}" in finding.verdict.seen
    assert ("another spelling" in finding.verdict.seen) is (mark[:2] != ("Idempotent-Replayed", "true"))


def test_a_mark_of_another_spelling_shows_what_was_replayed() -> None:
    """O-35: the mark is evidence like the draft's own: where every run looks the same, it distinguishes runs and
    replays.
    """

    class Alike(MarksOtherwise):
        def run(self, request: Request) -> Response:
            return Response(super().run(request).status, [], b"done")

    findings = examined(Alike(), failing_url=None, slow_url=None)
    assert {"retry-result", "case-of-name"} <= with_result(findings, Result.HOLDS)


def test_a_second_run_is_named_only_where_it_is_one() -> None:
    """O-35: a replay with a rewritten body is another fault than a retry that runs."""
    again = about(examined(wrong_responses.RunsAgain(), slow_url=None), "retry-result")
    assert again.verdict.result is Result.FAILS
    assert "as from a second run" in again.verdict.seen
    for shop in (wrong_responses.AnotherBody(), wrong_responses.ForgetsAfterOneReplay(), RefusesRetries()):
        finding = about(examined(shop, slow_url=None), "retry-result")
        assert finding.verdict.result is Result.FAILS
        assert "second run" not in finding.verdict.seen


class RefusesRetries(Shop):
    """Responds 409 to a retry, with a body that differs each time."""

    def replay(self, response: Response, kept: Kept) -> Response:
        return self.problem(409, f"done already, number {next(self.numbers)}")


def test_private_headers_of_retries_that_run_are_not_applicable() -> None:
    """O-35: an application without replays repeats no header, even if each of its responses has the same cookie."""

    class SameCookie(wrong_responses.RunsAgain):
        def run(self, request: Request) -> Response:
            response = super().run(request)
            headers = [pair for pair in response.headers if pair[0] != "Set-Cookie"]
            return Response(response.status, [*headers, ("Set-Cookie", "theme=dark")], response.body)

    finding = about(examined(SameCookie(), slow_url=None), "retry-private")
    assert finding.verdict.result is Result.NOT_APPLICABLE
    assert "not replayed" in finding.verdict.seen
