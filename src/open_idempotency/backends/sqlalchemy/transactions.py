"""One connection while a verb uses it: what it may run, on which clock, and until when.

Written against SQLAlchemy's blocking connection, which its asynchronous one lends to a function as well, so that this
and ``verbs`` are the same in both colours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import Connection, CursorResult, Executable
from sqlalchemy.exc import OperationalError

from open_idempotency.backends.sqlalchemy.dialects import Dialect, begin
from open_idempotency.backends.sqlalchemy.statements import Statements

T = TypeVar("T")
Work = Callable[["Transaction"], T]


@dataclass
class Settings:
    """What all transactions of a backend share. ``clock``: in place of the database's; ``timeout``: in seconds."""

    dialect: Dialect
    timeout: float
    clock: Callable[[], float] | None
    statements: Statements = field(init=False)

    def __post_init__(self) -> None:
        self.statements = Statements(self.dialect, self.clock is not None, self.timeout)

    def time(self) -> dict[str, float]:
        """The parameter that statements which read the time may need."""
        return {"now": (self.clock or time.time)()} if self.statements.needs_clock else {}


class Transaction:
    """``now``: seconds on the deciding clock when a write transaction began; a read gets the time with its rows."""

    __slots__ = ("_connection", "_deadline", "cascades", "now", "settings", "statements", "waits")

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self._connection = connection
        self._deadline = time.monotonic() + settings.timeout
        self.settings = settings
        self.statements = settings.statements
        self.cascades = settings.dialect.cascades
        #: whether a row may have to be waited for, so that the time may pass after ``now``
        self.waits = settings.dialect.begin is None
        self.now = 0.0
        # Connections of ours that can bound each of their waits (``drivers``).
        driver: Any = connection.connection.driver_connection
        if hasattr(driver, "deadline"):
            driver.deadline = self._deadline

    def run(self, statement: Executable, parameters: Any = None) -> CursorResult[Any]:
        """Run a statement, once or for each of several sets of parameters."""
        if time.monotonic() > self._deadline:
            raise OperationalError(None, None, TimeoutError("the transaction took too long"))
        return self._connection.execute(statement, parameters)

    def rows(self, statement: Executable, **parameters: Any) -> Sequence[Any]:
        """All rows of a read."""
        return self.run(statement, parameters).all()

    def timed(self, statement: Executable, **parameters: Any) -> Sequence[Any]:
        """All rows of a statement that reads the time."""
        return self.rows(statement, **self.settings.time(), **parameters)

    def row(self, statement: Executable, **parameters: Any) -> Any:
        """The row of a read, or None."""
        return self.run(statement, parameters).one_or_none()


def read(connection: Connection, settings: Settings, work: Work[T]) -> T:
    """Do what only reads, a statement at a time."""
    return work(Transaction(connection, settings))


def write(connection: Connection, settings: Settings, work: Work[T]) -> T:
    """Do it in a write transaction; rolled back where it raises."""
    with connection.begin():
        begin(connection, settings.dialect)
        transaction = Transaction(connection, settings)
        (opened,) = transaction.timed(settings.statements.open)
        transaction.now = float(opened[0])
        return work(transaction)
