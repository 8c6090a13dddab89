"""Runs the conformance test against a shop on a real server, with every scene."""

from __future__ import annotations

from typing import Any

from open_idempotency.conformance.http import Finding, Findings, Result, Target, examine
from tests.conformance import servers


def options(url: str, **changes: Any) -> dict[str, Any]:
    """The options for an address: the paths of the shop, and two callers."""
    fields: dict[str, Any] = {"url": f"{url}/charges", "slow_url": f"{url}/slow", "failing_url": f"{url}/failing"}
    fields |= {"headers": (("Authorization", "Bearer a"),), "other_caller": (("Authorization", "Bearer b"),)}
    return {**fields, "required": True, **changes}


def examined(app: Any, **changes: Any) -> Findings:
    """The runner's report about a WSGI application."""
    with servers.wsgi(app) as url:
        return examine(Target(**options(url, **changes)))


def with_result(findings: Findings, result: Result) -> set[str]:
    """The ids of the statements that have a result."""
    return {each.statement.id for each in findings.findings if each.verdict.result is result}


def about(findings: Findings, statement: str) -> Finding:
    """The finding about one statement."""
    (one,) = [each for each in findings.findings if each.statement.id == statement]
    return one
