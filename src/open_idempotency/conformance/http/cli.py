"""The command line: ``python -m open_idempotency.conformance URL``. Exit codes: 0 passed, 1 failed, 2 could not run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from open_idempotency.conformance.http.observations import LIMITS
from open_idempotency.conformance.http.report import as_json, as_table
from open_idempotency.conformance.http.run import examine
from open_idempotency.conformance.http.target import Target
from open_idempotency.conformance.http.verdicts import DRAFT, CouldNotRun

_COUNTS = "\n".join(f"  {number:>3}  {scene}" for scene, number in LIMITS.items())
_WARNING = "It really calls the endpoint, many times: every request that is accepted takes effect. Use a test system."
_EPILOG = f"""\
requests sent, at most:
{_COUNTS}
  {sum(LIMITS.values()):>3}  together

Every key is random and new.

exit codes: 0 nothing that counts fails; 1 something does; 2 it could not run (usage, no connection, the plain
request is not accepted)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Examine what ``arguments`` name (without them, the process's), print what was found, and return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        target = _target(options)
        sys.stderr.write(
            f"Sending up to {sum(LIMITS.values())} requests to {target.url}; those that it accepts take effect.\n"
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
        description=f"Hold the statements of {DRAFT} against a live endpoint.\n{_WARNING}",
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
    add("--failing-url", metavar="URL", help="an endpoint that answers 5xx, best with a body that differs each time")
    add(
        "--other-caller",
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="replaces a header, and makes the request another caller's; repeatable",
    )
    add("--required", action="store_true", help="the endpoint is documented to require a key")
    add("--header-name", default="Idempotency-Key", metavar="NAME", help="the field that carries the key")
    add("--timeout", type=float, default=10.0, metavar="SECONDS", help="for each step of a request; 10 by default")
    add("--ca-file", metavar="FILE", help="certificates to trust for https, as PEM")
    add("--skip", action="append", default=[], metavar="ID", help="leave a statement out; repeatable")
    add("--json", action="store_true", help="print JSON in place of the table")
    return parser


def _target(options: argparse.Namespace) -> Target:
    data = options.data_file.read_bytes() if options.data_file else (options.data or "{}").encode()
    return Target(
        url=options.url,
        method=options.method,
        headers=tuple(_field(text) for text in options.header),
        data=b"" if options.data == "" else data,
        content_type=options.content_type,
        other_data=None if options.other_data is None else options.other_data.encode(),
        slow_url=options.slow_url,
        failing_url=options.failing_url,
        other_caller=tuple(_field(text) for text in options.other_caller),
        required=options.required,
        header_name=options.header_name,
        timeout=options.timeout,
        ca_file=options.ca_file,
        skip=frozenset(options.skip),
    )


def _field(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise CouldNotRun(f"not a header field, which is 'Name: value': {text!r}")
    return name.strip(), value.strip()
