"""Findings as a table for people and as JSON for machines. No credentials: only what was answered is shown."""

from __future__ import annotations

import json
import textwrap

from open_idempotency.conformance.http.run import Findings
from open_idempotency.conformance.http.target import Target
from open_idempotency.conformance.http.verdicts import DRAFT, Finding, Result

_COLUMNS = (("RESULT", 14), ("ID", 20), ("LEVEL", 6), ("SECTION", 18))
_TEXT_WIDTH = 58


def as_table(target: Target, findings: Findings) -> str:
    """The table, its legend and the totals."""
    lines = [
        f"{target.method} {target.url} against {DRAFT}",
        "",
        _row([name for name, _ in _COLUMNS], "STATEMENT, seen"),
    ]
    for finding in findings.findings:
        lines.extend(_rows(finding))
    totals = ", ".join(f"{findings.totals[result]} {_PLURALS[result]}" for result in Result)
    lines += ["", f"{totals}; {len(findings.exchanges)} requests sent.", *_LEGEND, _conclusion(findings)]
    return "\n".join(lines) + "\n"


_PLURALS = {
    Result.HOLDS: "hold",
    Result.FAILS: "fail",
    Result.NOT_APPLICABLE: "not applicable",
    Result.UNKNOWN: "could not tell",
}
_LEGEND = (
    "MUST and SHOULD: the draft's, with its section. RULE: of this package, where the draft is silent,",
    "with the line or heading of its behaviour page. INFO: told, never counted.",
)


def _conclusion(findings: Findings) -> str:
    against = [finding.statement.id for finding in findings.findings if finding.counts_against]
    return f"FAILED: {', '.join(against)}" if against else "PASSED: nothing that counts fails."


def _row(cells: list[str], text: str) -> str:
    fixed = "  ".join(cell.ljust(width) for cell, (_, width) in zip(cells, _COLUMNS, strict=True))
    return f"{fixed}  {text}".rstrip()


def _rows(finding: Finding) -> list[str]:
    statement, verdict = finding.statement, finding.verdict
    text = [*textwrap.wrap(statement.sentence, _TEXT_WIDTH)]
    text += textwrap.wrap(verdict.seen, _TEXT_WIDTH, initial_indent="- ", subsequent_indent="  ")
    cells = [verdict.result.value, statement.id, statement.level.value, statement.section]
    return [_row(cells, text[0]), *(_row([""] * len(_COLUMNS), line) for line in text[1:])]


def as_json(target: Target, findings: Findings) -> str:
    """One object: what was examined, a member for each statement, the totals and the exchanges in order."""
    shown = {
        "draft": DRAFT,
        "method": target.method,
        "url": target.url,
        "passed": findings.passed,
        "totals": {result.value: findings.totals[result] for result in Result},
        "statements": [
            {
                "id": finding.statement.id,
                "level": finding.statement.level.value,
                "section": finding.statement.section,
                "statement": finding.statement.sentence,
                "result": finding.verdict.result.value,
                "seen": finding.verdict.seen,
            }
            for finding in findings.findings
        ],
        "exchanges": [
            {"scene": each.group, "status": each.status or None, "seconds": round(each.seconds, 4), "error": each.error}
            for each in findings.exchanges
        ],
    }
    return json.dumps(shown, indent=2) + "\n"
