"""The command ``open-idempotency`` for operators: ``migrate URL``, ``purge URL`` and ``ledger DIALECT``.

Exit codes: 0 done; 1 not done, with the reason on standard error; 2 wrong usage, such as an unknown command.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

import open_idempotency
from open_idempotency.backend import Backend, Get
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.backends.registry import open_backend, refuse_new_file
from open_idempotency.exceptions import ConfigurationError, IdempotencyError
from open_idempotency.ledger import schema
from open_idempotency.ledger.dialects import DIALECTS

_BATCH = 1000
_ARGUMENTS = {
    "url": "the URL of the backend, as in the application, such as postgresql://user@host/database",
    "dialect": "postgresql, mysql, mariadb or sqlite",
}
_CHOICES = {"dialect": sorted(DIALECTS)}
_EPILOG = "exit codes: 0 done; 1 not done, with the reason on standard error; 2 wrong usage"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0, or 1 after an error, whose message is on standard error.

    ``arguments``: by default ``sys.argv[1:]``. Wrong usage ends the process with 2, as ``argparse`` does.
    """
    parsed = _parser().parse_args(arguments)
    command: Callable[[str], str] = parsed.command
    try:
        message = command(parsed.argument)
    except IdempotencyError as error:
        sys.stderr.write(f"open-idempotency: {error}\n")
        return 1
    sys.stdout.write(message + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="open-idempotency", description="Maintain a backend and the ledger.", epilog=_EPILOG
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {open_idempotency.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    for function, argument, summary in (
        (migrate, "url", "create or upgrade the tables of a backend"),
        (purge, "url", "delete all expired records; may run while the application does"),
        (ledger, "dialect", "print the SQL script that creates the ledger's tables in the application's database"),
    ):
        command = commands.add_parser(function.__name__, help=summary, description=summary, epilog=_EPILOG)
        command.add_argument("argument", metavar=argument, help=_ARGUMENTS[argument], choices=_CHOICES.get(argument))
        command.set_defaults(command=function)
    return parser


@contextmanager
def _opened(url: str) -> Generator[Backend, None, None]:
    """The backend of a URL, until the end of the block. Raises ``ConfigurationError`` for one of another process."""
    with open_backend(url) as backend:
        if isinstance(backend, MemoryBackend):
            raise ConfigurationError(
                "backend: the records of memory:// are in the process of the application, where no command reaches them"
            )
        yield backend


def migrate(url: str) -> str:
    """Apply the migrations that the backend does not have yet, and read from it as a request would."""
    with _opened(url) as backend:
        applied = backend.migrate()
        backend.get(Get(bytes(32)))  # a backend that needs no migration was not called so far
    return f"applied {', '.join(applied)}" if applied else "nothing to apply"


def purge(url: str) -> str:
    """Delete all expired records in batches."""
    purged = 0
    with _opened(url) as backend:
        refuse_new_file(backend.file)
        while batch := backend.purge(_BATCH):
            purged += batch
    return f"deleted {purged}"


def ledger(dialect: str) -> str:
    """The SQL script that creates the ledger's tables in one dialect."""
    return schema(dialect).rstrip()


if __name__ == "__main__":
    sys.exit(main())
