"""A separate process for the coalescing tests: ``killed_commit_script PATH OnThreads|OnALoop before|after``.

Ten claims share a transaction, and the process is killed right before or right after its COMMIT.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from typing import Any

from open_idempotency.backend import Claim
from open_idempotency.backends.sqlite import AsyncSqliteBackend, SqliteBackend, transactions
from tests.backends.sqlite import together
from tests.backends.sqlite.together import PATIENCE, claim_of


class _Killing(transactions.transaction):
    """Kills this process at its second transaction."""

    moment = "before"
    left = 2

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__(connection)
        _Killing.left -= 1

    def __exit__(self, *error: object) -> None:
        if not _Killing.left and _Killing.moment == "before":
            _kill()
        super().__exit__(*error)
        if not _Killing.left:
            _kill()


def _reporting(claim: Any) -> Any:
    def report(self: SqliteBackend, c: Claim) -> Any:
        result = claim(self, c)
        os.write(1, c.record_id + b"\n")
        return result

    return report


def _areporting(claim: Any) -> Any:
    async def report(self: AsyncSqliteBackend, c: Claim) -> Any:
        result = await claim(self, c)
        os.write(1, c.record_id + b"\n")
        return result

    return report


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(path: str, callers: str, moment: str) -> None:
    """Run the claims; never returns."""
    backend = SqliteBackend(path, timeout=PATIENCE)
    _Killing.moment = moment
    backend.migrate()  # creates the file, in a separate transaction
    transactions.transaction = _Killing
    SqliteBackend.claim = _reporting(SqliteBackend.claim)
    AsyncSqliteBackend.claim = _areporting(AsyncSqliteBackend.claim)
    commands = [("claim", claim_of(b"key-%d" % number)) for number in range(10)]
    getattr(together, callers)(backend).results(path, commands, lambda: None)


if __name__ == "__main__":
    main(*sys.argv[1:])
