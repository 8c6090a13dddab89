"""The command ``python -m open_idempotency.conformance URL``: its statements, its options and its report.

``STATEMENTS`` is the table that an endpoint is tested against, in the order of the report. MUST and SHOULD are those of
the draft. A RULE is one of this package where the draft is silent, because clients are harmed without it; its section
is a line or heading of the behaviour page. INFO is reported and never counted.

The report is a table or JSON. It has no credentials: of a request it shows method and URL. Exit codes: 0 passed, 1
failed, 2 could not run.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from open_idempotency.conformance.http import checks
from open_idempotency.conformance.http.observations import LIMITS, Observations, Result, Undecided, Verdict, limits_of
from open_idempotency.conformance.http.profiles import PROTOCOLS, Level, Profile, Statement
from open_idempotency.conformance.http.target import Client, CouldNotRun, Exchange, Target

# Statements, and the run that tests them

#: by revision, the drafts whose statements are known here
DRAFTS: Mapping[str, str] = {"07": "draft-ietf-httpapi-idempotency-key-header-07"}


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

#: by the name on the command line
PROFILES: Mapping[str, Profile] = {"draft": Profile(DRAFTS["07"], STATEMENTS), **PROTOCOLS}

_LEFT_OUT = Verdict(Result.NOT_APPLICABLE, "left out by request")


def examine(target: Target) -> Findings:
    """Send the requests of all scenes to an endpoint, and test every statement.

    Raises ``CouldNotRun`` if the plain request gets no response or is not accepted, if nothing listens at ``slow_url``
    or ``failing_url``, if ``target.draft`` is no known revision, if ``target.profile`` is no known profile, or if
    ``target.skip`` names a statement that does not exist.
    """
    if target.profile not in PROFILES:
        raise CouldNotRun(f"profile: there is no {target.profile!r} here, but {', '.join(PROFILES)}")
    statements = PROFILES[target.profile].statements
    if target.draft not in DRAFTS:
        raise CouldNotRun(f"draft: there is no revision {target.draft!r} here, but {', '.join(DRAFTS)}")
    unknown = target.skip - {statement.id for statement in statements}
    if unknown:
        raise CouldNotRun(f"skip: there is no statement {', '.join(sorted(unknown))}")
    client = Client(limits_of(target), target.timeout, target.ca_file)
    seen = Observations(target, client)
    findings = tuple(Finding(each, _verdict(each, seen, target)) for each in statements)
    return Findings(findings, tuple(client.exchanges))


def _verdict(statement: Statement, seen: Observations, target: Target) -> Verdict:
    if statement.id in target.skip:
        return _LEFT_OUT
    try:
        return statement.check(seen)
    except Undecided as undecided:
        return undecided.verdict


# The command

_COUNTS = "\n".join(f"  {number:>3}  {scene}" for scene, number in LIMITS.items())
_WARNING = "It really calls the endpoint, many times: every request that is accepted takes effect. Use a test system."
_EPILOG = f"""\
requests sent, at most:
{_COUNTS}
  {sum(LIMITS.values()):>3}  together

Every key is random and new.

exit codes: 0 no MUST, SHOULD or RULE fails; 1 at least one fails; 2 it could not run (usage, no connection, the
plain request is not accepted, nothing responds at --slow-url or --failing-url)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Examine an endpoint, print the report, and return the exit code. ``arguments``: by default ``sys.argv[1:]``."""
    options = _parser().parse_args(arguments)
    try:
        target = _target(options)
        most = sum(limits_of(target).values())
        sys.stderr.write(f"Sending up to {most} requests to {target.url}; accepted requests take effect.\n")
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
    add(
        "--profile",
        default=Target.profile,
        choices=sorted(PROFILES),
        help="whose statements to test: the draft's, ACP's or UCP's; draft by default",
    )
    add("--other-url", metavar="URL", help="another endpoint that takes the same payload, for ACP and UCP")
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
        profile=options.profile,
        other_url=options.other_url,
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
        f"{target.method} {target.url} against {PROFILES[target.profile].title}",
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
        "draft": PROFILES[target.profile].title,
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
