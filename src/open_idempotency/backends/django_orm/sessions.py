"""One call on one connection: its transaction, its statements, and the end of its patience."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

from django.db import Error, OperationalError

from open_idempotency.backends.django_orm.dialects import Dialect
from open_idempotency.backends.django_orm.statements import with_marked_bytes

T = TypeVar("T")

#: seconds between two looks whether a silent server's time is over
_LOOK = 0.1
#: what stands for infinity, which MySQL does not know
_LARGEST = sys.float_info.max


class Session:
    """A connection for one call, which ends at ``deadline``, in seconds on the monotonic clock.

    ``begin``: what begins its transaction, None where each statement is one by itself. ``sound``: whether the
    connection is of use afterwards. ``late``: whether the call has had its time.
    """

    def __init__(self, connection: Any, dialect: Dialect, deadline: float, begin: Sequence[str] | None) -> None:
        self.dialect = dialect
        self.sound = True
        self._connection = connection
        self._deadline = deadline
        self._begin = begin
        self._cursor: Any = None

    @property
    def late(self) -> bool:
        """See above."""
        return time.monotonic() >= self._deadline

    def can_skip_locked(self) -> bool:
        """Whether this very server can leave out what somebody else has locked."""
        return bool(self._connection.features.has_select_for_update_skip_locked)

    def carry_out(self, work: Callable[[Session], T]) -> T:
        """Do the work, in a transaction if there is to be one. Raises what it raises, and Django's errors."""
        with self._connection.cursor() as self._cursor:
            if self._begin is None:
                return work(self)
            try:
                for statement in self._begin:
                    self._execute(statement, ())
                answer = work(self)
                self._cursor.execute("COMMIT")
            except Exception:
                self._roll_back()
                raise
            return answer

    def rows(self, statement: str, *parameters: object) -> list[Sequence[Any]]:
        """Run a statement that returns rows."""
        self._execute(statement, parameters)
        return list(self._cursor.fetchall())

    def row(self, statement: str, *parameters: object) -> Sequence[Any] | None:
        """Its first row, or None."""
        found = self.rows(statement, *parameters)
        return found[0] if found else None

    def run(self, statement: str, *parameters: object) -> int:
        """Run a statement that returns none; how many rows it was about."""
        self._execute(statement, parameters)
        return int(self._cursor.rowcount)

    def _execute(self, statement: str, parameters: Sequence[object]) -> None:
        if self.late:
            raise OperationalError("the call has had its time")
        if parameters and self.dialect.is_mysql:
            statement = with_marked_bytes(statement, tuple(isinstance(value, bytes) for value in parameters))
            parameters = [_LARGEST if value == math.inf else value for value in parameters]
        self._cursor.execute(statement, parameters or None)

    def _roll_back(self) -> None:
        try:
            self._cursor.execute("ROLLBACK")
        except Error:
            self.sound = False


def bound_waits(connection: Any, timeout: float) -> None:
    """Let psycopg 3 wait for no answer longer than ``timeout`` seconds.

    The limits that the server was told do not help against a server that has stopped. Other drivers take a timeout
    with their options, or leave it to the operating system.
    """
    raw = connection.connection
    if not hasattr(raw, "pgconn"):
        return
    plain: Callable[..., Any] = raw.wait

    def wait(generator: Generator[Any, Any, Any], *arguments: Any, **options: Any) -> Any:
        return plain(_bounded(generator, raw, connection, time.monotonic() + timeout), _LOOK)

    raw.wait = wait


def _bounded(waiting: Generator[Any, Any, T], raw: Any, connection: Any, deadline: float) -> Generator[Any, Any, T]:
    """The driver's generator, which is told every so often that nothing has come, ended when its time is over."""
    try:
        state = next(waiting)
        while True:
            ready = yield state
            if not ready and time.monotonic() > deadline:
                raw.pgconn.finish()
                raise connection.Database.OperationalError("no answer in time")
            state = waiting.send(ready)
    except StopIteration as stop:
        answer: T = stop.value
        return answer
