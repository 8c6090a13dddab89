"""What the database's errors become: one of ours, with the driver's kept as its cause."""

from __future__ import annotations

import asyncio
import time

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from open_idempotency._perform.local_failures import is_local
from open_idempotency.backends.sqlalchemy.dialects import may_succeed_again
from open_idempotency.backends.sqlalchemy.options import Options
from open_idempotency.backends.sqlalchemy.tables import metadata
from open_idempotency.exceptions import BackendUnavailable, first_line

#: what SQLAlchemy raises, and what comes through it from the network
DATABASE = (SQLAlchemyError, OSError, asyncio.TimeoutError)
_MISSING = ("no such table", "does not exist", "doesn't exist")


class Tries:
    """One call of a verb: whether what a try ended with is worth another one, and what it is otherwise."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._started = time.monotonic()

    def check(self, error: Exception) -> None:
        """Return where the caller is to try again. Raises ``BackendUnavailable``, and what is no database's error."""
        if not self._is_databases(error):
            raise error
        in_time = time.monotonic() - self._started < self._options.timeout
        if not (in_time and may_succeed_again(error, self._options.dialect)):
            raise wrapped(error) from error

    def _is_databases(self, error: Exception) -> bool:
        # While they connect, some drivers raise errors of their own, or start threads.
        if isinstance(error, DATABASE) or is_local(error):
            return True
        return type(error).__module__.partition(".")[0] == self._options.driver


def wrapped(error: Exception) -> BackendUnavailable:
    """The error as ours; the caller keeps it as the cause."""
    # SQLAlchemy's own text repeats the statement.
    told = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    text = first_line(told)
    hint = "; run `open-idempotency migrate` with the URL of the backend" if _is_missing(text) else ""
    return BackendUnavailable(f"SQLAlchemy: {type(told).__name__}: {text}{hint}")


def _is_missing(text: str) -> bool:
    return any(name in text for name in metadata.tables) and any(words in text for words in _MISSING)
