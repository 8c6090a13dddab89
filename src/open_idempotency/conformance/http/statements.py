"""The table of statements that an endpoint is tested against, in the order of the report, and the run that tests them.

MUST and SHOULD are those of the draft. A RULE is one of this package where the draft is silent, because clients are
harmed without it; its section is a line or heading of the behaviour page. INFO is reported and never counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from open_idempotency.conformance.http import checks
from open_idempotency.conformance.http.observations import LIMITS, Observations, Result, Undecided, Verdict
from open_idempotency.conformance.http.target import CouldNotRun, Target
from open_idempotency.conformance.http.wire import Client, Exchange

#: by revision, the drafts whose statements are known here
DRAFTS: Mapping[str, str] = {"07": "draft-ietf-httpapi-idempotency-key-header-07"}


class Level(Enum):
    """The weight of a statement. An INFO that fails does not fail the run."""

    MUST = "MUST"
    SHOULD = "SHOULD"
    RULE = "RULE"
    INFO = "INFO"


@dataclass(frozen=True, slots=True)
class Statement:
    """One row of the table. ``section``: of the draft, or a line or heading of this package's behaviour page.

    ``check`` returns a verdict, or raises ``Undecided``.
    """

    id: str
    level: Level
    section: str
    sentence: str
    check: Callable[[Observations], Verdict]


@dataclass(frozen=True, slots=True)
class Finding:
    """A statement and the verdict on it."""

    statement: Statement
    verdict: Verdict

    @property
    def counts_against(self) -> bool:
        """Whether this finding fails the run."""
        return self.verdict.result is Result.FAILS and self.statement.level is not Level.INFO


@dataclass(frozen=True, slots=True)
class Findings:
    """The result of a run: one finding for each statement, and all exchanges in order."""

    findings: tuple[Finding, ...]
    exchanges: tuple[Exchange, ...]

    @property
    def passed(self) -> bool:
        """Whether no finding counts against the endpoint."""
        return not any(finding.counts_against for finding in self.findings)

    @property
    def totals(self) -> Counter[Result]:
        """The number of statements with each result."""
        return Counter(finding.verdict.result for finding in self.findings)


_MUST, _SHOULD, _RULE, _INFO = Level.MUST, Level.SHOULD, Level.RULE, Level.INFO

STATEMENTS: tuple[Statement, ...] = (
    Statement(
        "string-taken", _MUST, "draft 2.1", "A key that is a String, in quotes, is accepted.", checks.string_taken
    ),
    Statement("new-keys", _SHOULD, "draft 2.6", "Each request with a new key is carried out.", checks.new_keys),
    Statement(
        "retry-status",
        _SHOULD,
        "draft 2.6",
        "A retry gets the status of the first response.",
        checks.retry_status,
    ),
    Statement(
        "retry-result",
        _SHOULD,
        "draft 2.6",
        "A retry gets the body and Location of the first response; nothing is carried out again.",
        checks.retry_body,
    ),
    Statement("retry-headers", _RULE, "R-01", "A retry gets the headers of the first response.", checks.retry_headers),
    Statement(
        "retry-private",
        _RULE,
        "R-02",
        "Set-Cookie and other headers for one client and moment are not repeated to a retry.",
        checks.retry_private_headers,
    ),
    Statement(
        "retry-marked",
        _INFO,
        "O-02",
        "A replay is marked, by Idempotent-Replayed: true or a header like it.",
        checks.retry_marked,
    ),
    Statement(
        "reuse-refused",
        _SHOULD,
        "draft 2.7",
        "A key that is reused with another payload is refused.",
        checks.reuse_refused,
    ),
    Statement("reuse-status", _SHOULD, "draft 2.7", "That refusal is a 422.", checks.reuse_status),
    Statement(
        "reuse-explained",
        _SHOULD,
        "draft 2.7",
        "That refusal is a problem document, or links to documentation.",
        checks.reuse_explained,
    ),
    Statement(
        "reuse-harmless",
        _SHOULD,
        "draft 2.6",
        "Afterwards a retry with the right payload still gets the first response.",
        checks.reuse_harmless,
    ),
    Statement(
        "concurrent-once",
        _SHOULD,
        "draft 2.6",
        "Of two equal concurrent requests, one is carried out.",
        checks.concurrent_once,
    ),
    Statement(
        "concurrent-conflict",
        _SHOULD,
        "draft 2.6, 2.7",
        "A retry that arrives while the first request runs gets a 409, or waits and gets the first response.",
        checks.concurrent_conflict,
    ),
    Statement(
        "conflict-explained",
        _SHOULD,
        "draft 2.7",
        "That 409 is a problem document, or links to documentation.",
        checks.conflict_explained,
    ),
    Statement("conflict-retry-after", _INFO, "O-03", "That 409 has Retry-After.", checks.conflict_retry_after),
    Statement(
        "conflict-harmless",
        _SHOULD,
        "draft 2.6",
        "A retry after a 409 gets the response of the request that ran.",
        checks.conflict_harmless,
    ),
    Statement(
        "reuse-meanwhile",
        _RULE,
        "O-05",
        "A key that is reused with another payload while the first request runs gets a 422.",
        checks.reuse_meanwhile,
    ),
    Statement(
        "missing-refused",
        _SHOULD,
        "draft 2.7",
        "Where a key is required, a request without one gets a 400.",
        checks.missing_refused,
    ),
    Statement(
        "missing-explained",
        _SHOULD,
        "draft 2.7",
        "That 400 is a problem document, or links to documentation.",
        checks.missing_explained,
    ),
    Statement(
        "missing-apart",
        _RULE,
        "Responses",
        "Where no key is required, requests without one are not taken for retries of each other.",
        checks.missing_not_shared,
    ),
    Statement("no-string", _MUST, "draft 2.1", "What is not a String is refused.", checks.no_string),
    Statement(
        "strange-bytes",
        _MUST,
        "draft 2.1",
        "A key with bytes that no String may contain is refused.",
        checks.strange_bytes,
    ),
    Statement("two-lines", _MUST, "draft 2.1", "Two key headers in one request are refused.", checks.two_lines),
    Statement("empty", _RULE, "H-08", "An empty key is refused, and not treated as an absent key.", checks.empty),
    Statement("case-of-key", _RULE, "H-11", "Keys that differ by case are two keys.", checks.case_of_key),
    Statement(
        "case-of-name", _RULE, "H-11, RFC 9110 5.1", "The header's name may be in upper case.", checks.case_of_name
    ),
    Statement("bare-key", _INFO, "H-02", "The key without quotes is the same key.", checks.bare_key),
    Statement("parameters", _INFO, "H-05", "Parameters after the String are ignored.", checks.parameters),
    Statement("length", _INFO, "H-10", "A key may have 255 octets, but not 256.", checks.length),
    Statement(
        "failure-not-kept",
        _RULE,
        "O-08",
        "A 5xx is not stored: a retry is carried out again.",
        checks.failure_not_replayed,
    ),
    Statement(
        "callers-apart",
        _SHOULD,
        "draft 5",
        "A key that one caller has used has no effect on another caller.",
        checks.callers_apart,
    ),
)

_LEFT_OUT = Verdict(Result.NOT_APPLICABLE, "left out by request")


def examine(target: Target) -> Findings:
    """Send the requests of all scenes to an endpoint, and test every statement.

    Raises ``CouldNotRun`` if the plain request gets no response or is not accepted, if nobody can be reached at
    ``slow_url`` or ``failing_url``, if ``target.draft`` is no known revision, or if ``target.skip`` names a statement
    that does not exist.
    """
    if target.draft not in DRAFTS:
        raise CouldNotRun(f"draft: there is no revision {target.draft!r} here, but {', '.join(DRAFTS)}")
    unknown = target.skip - {statement.id for statement in STATEMENTS}
    if unknown:
        raise CouldNotRun(f"skip: there is no statement {', '.join(sorted(unknown))}")
    client = Client(LIMITS, target.timeout, target.ca_file)
    seen = Observations(target, client)
    findings = tuple(Finding(each, _verdict(each, seen, target)) for each in STATEMENTS)
    return Findings(findings, tuple(client.exchanges))


def _verdict(statement: Statement, seen: Observations, target: Target) -> Verdict:
    if statement.id in target.skip:
        return _LEFT_OUT
    try:
        return statement.check(seen)
    except Undecided as undecided:
        return undecided.verdict
