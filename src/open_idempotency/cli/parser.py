"""The commands, their arguments, and how errors become exit codes."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import open_idempotency
from open_idempotency.cli import commands
from open_idempotency.cli.commands import add_caller
from open_idempotency.cli.context import VARIABLE, Context, WrongUsage
from open_idempotency.exceptions import IdempotencyError
from open_idempotency.ledger.dialects import DIALECTS
from open_idempotency.operations import FILTERS, ExitCode, exit_code_of

_CODES = {
    ExitCode.DONE: "done",
    ExitCode.FAILED: "not done: another reason, such as a wrong URL",
    ExitCode.USAGE: "wrong usage",
    ExitCode.UNKNOWN: "no such record",
    ExitCode.SEVERAL: "several records match",
    ExitCode.LIVE: "refused: an attempt holds the record",
    ExitCode.STATE: "refused: the record's state does not allow it",
    ExitCode.DOWN: "the backend does not reply",
    ExitCode.DENIED: "the backend refuses this user",
    ExitCode.UNREADABLE: "the record cannot be read: newer, corrupt, or encrypted",
    ExitCode.UNCONFIRMED: "not confirmed",
    ExitCode.PROBLEMS: "the doctor found problems",
}
EPILOG = "exit codes: " + "; ".join(f"{code.value} {said}" for code, said in _CODES.items())


class _Command(NamedTuple):
    function: Callable[[Context], int]
    summary: str
    example: str
    add: Callable[[argparse.ArgumentParser], None]


def parser_of() -> argparse.ArgumentParser:
    """The parser of ``open-idempotency``."""
    parser = argparse.ArgumentParser(
        prog=Context.prog, description="Find keys, free them, and look after a backend.", epilog=EPILOG
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {open_idempotency.__version__}")
    add_commands(parser, of_django=False)
    return parser


def add_commands(parser: argparse.ArgumentParser, *, of_django: bool) -> None:
    """Add every command to a parser. ``of_django``: the backend and the policy are those of the settings."""
    names = parser.add_subparsers(required=True, metavar="command", dest="name")
    for name, command in _COMMANDS.items():
        prog = f"manage.py idempotency {name}" if of_django else f"{Context.prog} {name}"
        made: argparse.ArgumentParser = names.add_parser(
            name,
            help=command.summary,
            description=f"{command.summary[0].upper()}{command.summary[1:]}.",
            epilog=f"example: {prog} {command.example}\n\n{EPILOG}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if not of_django and name != "ledger":
            made.add_argument("--backend", metavar="URL", help=f"the backend's URL; by default ${VARIABLE}")
            made.add_argument("--app", metavar="MODULE:ATTRIBUTE", help="the application, or its policy")
            if command.add in _WITHOUT_RECORD:
                made.add_argument("url", nargs="?", metavar="URL", help="the backend's URL, instead of --backend")
        if name != "ledger":
            made.add_argument("--json", action="store_true", help="print JSON")
        command.add(made)
        made.set_defaults(command=command.function, name=name)


def _list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--state", choices=sorted(FILTERS), help="only records in this state")
    parser.add_argument(
        "--older",
        type=seconds,
        default=0.0,
        metavar="AGE",
        help="whose attempt began so long ago: 90, 5m, 2h, 1d",
    )
    parser.add_argument("--limit", type=count, default=100, metavar="N", help="the oldest N (100)")


def _record(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "record", metavar="KEY|RECORD", help="a record id or its beginning, or a client's key with --app or a caller"
    )
    add_caller(parser)


def _asked(parser: argparse.ArgumentParser) -> None:
    _record(parser)
    parser.add_argument("--yes", action="store_true", help="do not ask")


def _show(parser: argparse.ArgumentParser) -> None:
    _record(parser)
    parser.add_argument("--body", action="store_true", help="with the stored response and the values of stages")


def _forget(parser: argparse.ArgumentParser) -> None:
    _asked(parser)
    parser.add_argument("--force", action="store_true", help="also while an attempt holds the record")


def _resolve(parser: argparse.ArgumentParser) -> None:
    _asked(parser)
    parser.add_argument("--stage", required=True, metavar="NAME", help="the name of the stage in doubt")
    parser.add_argument("--stage-key", metavar="KEY", help="the key= of the stage, if it has one")
    outcome = parser.add_mutually_exclusive_group(required=True)
    outcome.add_argument("--found", type=json_value, metavar="JSON", help="it has happened, with this value")
    outcome.add_argument("--not-done", action="store_true", help="it has not happened: the stage runs again")


def _erase(parser: argparse.ArgumentParser) -> None:
    add_caller(parser)
    parser.add_argument("--dry-run", action="store_true", help="count the records, and delete none")
    parser.add_argument("--force", action="store_true", help="also those that an attempt holds")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def _purge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=count, default=1000, metavar="N", help="records in one call (1000)")


def _doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--strict", action="store_true", help="exit with 11 for warnings too")


def _nothing(parser: argparse.ArgumentParser) -> None:
    """The command has no arguments of its own."""


def _ledger(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dialect", choices=sorted(DIALECTS), help="of the application's database")


_WITHOUT_RECORD = (_list, _erase, _purge, _doctor, _nothing)
_COMMANDS = {
    "list": _Command(commands.list_, "list records, the oldest first", "--state stuck --older 5m", _list),
    "show": _Command(
        commands.show, "show a record, and what a retry gets", "order-42 --app shop.main:app --user 7", _show
    ),
    "release": _Command(
        commands.release, "free the key of an attempt whose worker is dead; its stages stay", "3f9a6c01b2d4", _asked
    ),
    "resolve": _Command(
        commands.resolve,
        "record what became of a stage in doubt, and free the key",
        "3f9a6c01b2d4 --stage charge --found '\"ch_123\"'",
        _resolve,
    ),
    "forget": _Command(
        commands.forget, "delete a record: the next request with its key runs again", "3f9a6c01b2d4 --yes", _forget
    ),
    "stats": _Command(commands.stats, "count records by state", "--json", _nothing),
    "doctor": _Command(commands.doctor, "examine the backend and what it holds", "--strict", _doctor),
    "erase": _Command(
        commands.erase, "delete all records of one caller", "--app shop.main:app --user 7 --dry-run", _erase
    ),
    "purge": _Command(
        commands.purge, "delete all expired records; may run while the application does", "--batch 500", _purge
    ),
    "migrate": _Command(commands.migrate, "create or upgrade the tables of a backend", "", _nothing),
    "ledger": _Command(
        commands.ledger,
        "print the SQL script that creates the ledger's tables in the application's database",
        "postgresql",
        _ledger,
    ),
}


def run(options: argparse.Namespace, context: Context) -> int:
    """Run the chosen command. Returns its exit code. Each error is one line on standard error."""
    try:
        code = options.command(context)
        context.out.flush()
        return int(code)
    except BrokenPipeError:
        _leave_pipe(context)
        return ExitCode.PIPE
    except KeyboardInterrupt:
        context.note("interrupted")
        return ExitCode.INTERRUPTED
    except WrongUsage as error:
        context.note(str(error))
        return ExitCode.USAGE
    except IdempotencyError as error:
        context.note(str(error))
        return exit_code_of(error)


def _leave_pipe(context: Context) -> None:
    """Redirect standard output to the null device, so that the final flush of the interpreter does not raise."""
    try:
        number = context.out.fileno()
    except (AttributeError, OSError, ValueError):
        return  # it has no file descriptor
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


# Parsers of arguments: durations, numbers, JSON. Each raises ``argparse.ArgumentTypeError``.

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_is_duration = re.compile(r"(\d+(?:\.\d+)?)([smhdw]?)").fullmatch


def seconds(text: str) -> float:
    """A duration such as ``90``, ``5m``, ``2h`` or ``1d``, in seconds."""
    found = _is_duration(text.strip().lower())
    if found is None or not math.isfinite(float(found[1])):
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration; write 90, 90s, 5m, 2h or 1d")
    return float(found[1]) * _UNITS[found[2]]


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def json_value(text: str) -> Any:
    """A JSON value in a list, since None would mean that the option is missing."""
    try:
        return [json.loads(text)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not JSON ({error}); a text needs quotes, as in --found '\"ch_123\"'"
        ) from error
