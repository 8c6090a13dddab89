"""All that uses private parts of psycopg: waits that end in time, and single statements sent without its adaptation.

psycopg itself waits for ever for a server that is silent. Imported only where psycopg 3 is the driver.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import psycopg
from psycopg import generators, pq
from psycopg.errors import error_from_result

from open_idempotency.exceptions import MissingExtra

T = TypeVar("T")

#: seconds between two looks whether a silent server's time is over
_LOOK = 0.1
_TUPLES, _COMMAND = pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK


def check_release() -> None:
    """Raise ``MissingExtra`` for a release of psycopg whose waits cannot be bounded."""
    if tuple(int(part) for part in psycopg.__version__.split(".")[:2]) < (3, 3):
        raise MissingExtra(
            f"psycopg {psycopg.__version__} cannot give up a silent server; install 3.3 or a later one: "
            "pip install --upgrade 'open-idempotency[postgres]'"
        )


class ServerSilent(psycopg.OperationalError):
    """The server did not reply in time; the connection cannot be used any more."""


class BoundedConnection(psycopg.Connection[Any]):
    """A connection whose waits end at ``deadline``, in seconds on the monotonic clock."""

    deadline = float("inf")

    def wait(self, gen: Any, interval: float = _LOOK, *more: Any, **options: Any) -> Any:
        """See ``psycopg.Connection``."""
        return super().wait(_bounded(gen, self.pgconn, self.deadline), interval, *more, **options)


class AsyncBoundedConnection(psycopg.AsyncConnection[Any]):
    """The same, awaited."""

    deadline = float("inf")

    async def wait(self, gen: Any, interval: float = _LOOK, *more: Any, **options: Any) -> Any:
        """See ``psycopg.AsyncConnection``."""
        return await super().wait(_bounded(gen, self.pgconn, self.deadline), interval, *more, **options)


def bound_waits(connection: Any, timeout: float) -> None:
    """Let a connection of psycopg's own class raise ``ServerSilent`` after ``timeout`` seconds without a reply.

    The limits that a server was given do not help against a server that has stopped. Releases of psycopg before 3.3
    never look while they wait, and are not bounded.
    """
    plain: Callable[..., Any] = connection.wait

    def wait(generator: Generator[Any, Any, Any], *arguments: Any, **options: Any) -> Any:
        return plain(_bounded(generator, connection.pgconn, time.monotonic() + timeout), _LOOK)

    connection.wait = wait


def _bounded(waiting: Generator[Any, Any, T], pgconn: pq.abc.PGconn, deadline: float) -> Generator[Any, Any, T]:
    """The driver's generator, which hears every so often that nothing has come; ended when its time is over."""
    try:
        state = next(waiting)
        while True:
            ready = yield state
            if not ready and time.monotonic() > deadline:
                pgconn.finish()
                raise ServerSilent("no response in time")
            state = waiting.send(ready)
    except StopIteration as stop:
        result: T = stop.value
        return result


def result_of(pgconn: pq.abc.PGconn) -> Generator[Any, Any, pq.abc.PGresult]:
    """The result of the one statement that was sent; for a connection's ``wait``. Raises ``psycopg.Error``."""
    result: pq.abc.PGresult = (yield from generators.execute(pgconn))[-1]
    if result.status not in (_TUPLES, _COMMAND):
        raise error_from_result(result)
    return result
