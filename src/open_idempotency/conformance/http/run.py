"""Holds every statement against a target, one after the other."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from open_idempotency.conformance.http.observations import LIMITS, Observations
from open_idempotency.conformance.http.statements import STATEMENTS
from open_idempotency.conformance.http.target import Target
from open_idempotency.conformance.http.verdicts import CouldNotRun, Finding, Result, Statement, Undecided, Verdict
from open_idempotency.conformance.http.wire import Client, Exchange

_LEFT_OUT = Verdict(Result.NOT_APPLICABLE, "left out by request")


@dataclass(frozen=True, slots=True)
class Findings:
    """One finding for each statement, and the exchanges that they rest on."""

    findings: tuple[Finding, ...]
    exchanges: tuple[Exchange, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing that counts fails."""
        return not any(finding.counts_against for finding in self.findings)

    @property
    def totals(self) -> Counter[Result]:
        """How many statements have which result."""
        return Counter(finding.verdict.result for finding in self.findings)


def examine(target: Target) -> Findings:
    """Send the requests, and judge. Raises ``CouldNotRun`` if the plain request is not answered or not accepted."""
    unknown = target.skip - {statement.id for statement in STATEMENTS}
    if unknown:
        raise CouldNotRun(f"there is no statement {', '.join(sorted(unknown))}")
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
