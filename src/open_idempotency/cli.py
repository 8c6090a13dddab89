"""What an operator does from the shell: ``open-idempotency migrate URL``, ``purge URL`` and ``ledger DIALECT``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import closing

import open_idempotency
from open_idempotency.backends.registry import open_backend
from open_idempotency.exceptions import IdempotencyError
from open_idempotency.ledger import schema
from open_idempotency.ledger.dialects import DIALECTS

_BATCH = 1000
_ARGUMENTS = {
    "url": "the backend's URL, as the application has it, such as postgresql://user@host/database",
    "dialect": "postgresql, mysql, mariadb or sqlite",
}
_CHOICES = {"dialect": sorted(DIALECTS)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one command; 0 if it was, 1 with a message on standard error if not."""
    parsed = _parser().parse_args(arguments)
    command: Callable[[str], str] = parsed.command
    try:
        said = command(parsed.argument)
    except IdempotencyError as error:
        sys.stderr.write(f"open-idempotency: {error}\n")
        return 1
    sys.stdout.write(said + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="open-idempotency", description="Look after the records of a backend.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {open_idempotency.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    for function, argument, what in (
        (migrate, "url", "make or bring up to date the tables of a backend that needs them"),
        (purge, "url", "delete all records that have expired; may run while the application does"),
        (ledger, "dialect", "print the SQL script that makes the ledger's tables in the application's database"),
    ):
        command = commands.add_parser(function.__name__, help=what, description=what)
        command.add_argument("argument", metavar=argument, help=_ARGUMENTS[argument], choices=_CHOICES.get(argument))
        command.set_defaults(command=function)
    return parser


def migrate(url: str) -> str:
    """Apply what the backend's store has not had yet."""
    with closing(open_backend(url)) as backend:
        done = backend.migrate()
    return f"applied {', '.join(done)}" if done else "nothing to apply"


def purge(url: str) -> str:
    """Delete what has expired, batch by batch."""
    purged = 0
    with closing(open_backend(url)) as backend:
        while batch := backend.purge(_BATCH):
            purged += batch
    return f"deleted {purged}"


def ledger(dialect: str) -> str:
    """The script of one dialect."""
    return schema(dialect).rstrip()


if __name__ == "__main__":
    sys.exit(main())
