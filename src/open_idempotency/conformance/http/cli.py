"""The command ``python -m open_idempotency.conformance URL``: its options, and its report as a table or as JSON.

Exit codes: 0 passed, 1 failed, 2 could not run. The report has no credentials: of a request it shows method and URL.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from open_idempotency.conformance.http.observations import LIMITS, Result
from open_idempotency.conformance.http.statements import DRAFTS, Finding, Findings, examine
from open_idempotency.conformance.http.target import CouldNotRun, Target

_COUNTS = "\n".join(f"  {number:>3}  {scene}" for scene, number in LIMITS.items())
_WARNING = "It really calls the endpoint, many times: every request that is accepted takes effect. Use a test system."
_EPILOG = f"""\
requests sent, at most:
{_COUNTS}
  {sum(LIMITS.values()):>3}  together

Every key is random and new.

exit codes: 0 no MUST, SHOULD or RULE fails; 1 at least one fails; 2 it could not run (usage, no connection, the
plain request is not accepted, nobody responds at --slow-url or --failing-url)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Examine an endpoint, print the report, and return the exit code. ``arguments``: by default ``sys.argv[1:]``."""
    options = _parser().parse_args(arguments)
    try:
        target = _target(options)
        sys.stderr.write(
            f"Sending up to {sum(LIMITS.values())} requests to {target.url}; accepted requests take effect.\n"
        )
        findings = examine(target)
    except (CouldNotRun, OSError) as error:
        sys.stderr.write(f"could not run: {error}\n")
        return 2
    sys.stdout.write((as_json if options.json else as_table)(target, findings))
    return 0 if findings.passed else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m open_idempotency.conformance",
        description=f"Test a live endpoint against the statements of {DRAFTS[Target.draft]}.\n{_WARNING}",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("url", help="the endpoint, http or https")
    add("--method", default="POST", help="POST (default), PATCH, ...")
    add("--header", action="append", default=[], metavar="'NAME: VALUE'", help="sent with every request; repeatable")
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--data", help="a payload that the endpoint accepts; {} by default")
    data.add_argument("--data-file", type=Path, metavar="FILE", help="the same, from a file")
    add("--content-type", default="application/json", help="of the payload; application/json by default")
    add("--other-data", metavar="DATA", help="another accepted payload; by default a JSON object with one more member")
    add("--slow-url", metavar="URL", help="an endpoint that takes a second or more, to see a request in flight")
    add("--failing-url", metavar="URL", help="an endpoint that responds 5xx, best with a body that differs each time")
    add(
        "--other-caller",
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="a header that identifies another caller, instead of the one of the same name; repeatable",
    )
    add("--required", action="store_true", help="the endpoint is documented to require a key")
    add(
        "--header-name",
        default="Idempotency-Key",
        metavar="NAME",
        help="the header with the key; Idempotency-Key by default",
    )
    add("--timeout", type=float, default=10.0, metavar="SECONDS", help="for each step of a request; 10 by default")
    add("--ca-file", metavar="FILE", help="certificates to trust for https, as PEM")
    add(
        "--draft",
        default=Target.draft,
        choices=sorted(DRAFTS),
        help=f"the revision to test against; {Target.draft} by default",
    )
    add("--skip", action="append", default=[], metavar="ID", help="leave a statement out; repeatable")
    add("--json", action="store_true", help="print JSON instead of the table")
    return parser


def _target(options: argparse.Namespace) -> Target:
    data = options.data_file.read_bytes() if options.data_file else (options.data or "{}").encode()
    return Target(
        url=options.url,
        method=options.method,
        headers=tuple(_header(text) for text in options.header),
        data=b"" if options.data == "" else data,
        content_type=options.content_type,
        other_data=None if options.other_data is None else options.other_data.encode(),
        slow_url=options.slow_url,
        failing_url=options.failing_url,
        other_caller=tuple(_header(text) for text in options.other_caller),
        required=options.required,
        header_name=options.header_name,
        timeout=options.timeout,
        ca_file=options.ca_file,
        draft=options.draft,
        skip=frozenset(options.skip),
    )


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise CouldNotRun(f"not a header, which is 'Name: value': {text!r}")
    return name.strip(), value.strip()


# The report

_COLUMNS = (("RESULT", 14), ("ID", 20), ("LEVEL", 6), ("SECTION", 18))
_TEXT_WIDTH = 58
_PLURALS = {
    Result.HOLDS: "hold",
    Result.FAILS: "fail",
    Result.NOT_APPLICABLE: "not applicable",
    Result.UNKNOWN: "could not tell",
}
_LEGEND = (
    "MUST and SHOULD: of the draft, with its section. RULE: of this package, where the draft is silent,",
    "with the line or heading of its behaviour page. INFO: reported, never counted.",
)


def as_table(target: Target, findings: Findings) -> str:
    """The report as a table, with the totals and a legend."""
    lines = [
        f"{target.method} {target.url} against {DRAFTS[target.draft]}",
        "",
        _row([name for name, _ in _COLUMNS], "STATEMENT, seen"),
    ]
    for finding in findings.findings:
        lines.extend(_rows(finding))
    totals = ", ".join(f"{findings.totals[result]} {_PLURALS[result]}" for result in Result)
    lines += ["", f"{totals}; {len(findings.exchanges)} requests sent.", *_LEGEND, _conclusion(findings)]
    return "\n".join(lines) + "\n"


def _conclusion(findings: Findings) -> str:
    against = [finding.statement.id for finding in findings.findings if finding.counts_against]
    return f"FAILED: {', '.join(against)}" if against else "PASSED: no MUST, SHOULD or RULE fails."


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
    """The report as one JSON object: the endpoint, each statement with its result, the totals and all exchanges."""
    shown = {
        "draft": DRAFTS[target.draft],
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
