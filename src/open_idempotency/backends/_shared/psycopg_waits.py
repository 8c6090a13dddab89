"""All code that uses private parts of psycopg: waits that end in time, and statements sent without its adaptation.

psycopg itself waits for ever for a server that is silent. Imported only where psycopg 3 is the driver.

The private parts are ``generators.execute``, which is compiled, and ``errors.error_from_result``. ``look`` looks for
them when the first backend is made. If one is missing, results are read by ``psycopg.pq``, which is public, and one
warning is logged.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from importlib import import_module
from typing import Any, TypeVar

import psycopg
from psycopg import errors, pq
from psycopg.waiting import Ready, Wait

from open_idempotency.exceptions import MissingExtra

T = TypeVar("T")

#: seconds between two checks of the deadline while the server is silent
_LOOK = 0.1
_TUPLES, _COMMAND = pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK
_logger = logging.getLogger("open_idempotency")


def check_release() -> None:
    """Raise ``MissingExtra`` if waits of this psycopg cannot be bounded. Also looks for its private parts."""
    if tuple(int(part) for part in psycopg.__version__.split(".")[:2]) < (3, 3):
        raise MissingExtra(
            f"psycopg {psycopg.__version__} cannot give up a silent server; install 3.3 or a later one: "
            "pip install --upgrade 'open-idempotency[postgres]'"
        )
    look()


class ServerSilent(psycopg.OperationalError):
    """The server did not reply in time; the connection cannot be used any more."""


class BoundedConnection(psycopg.Connection[Any]):
    """A connection whose waits end at ``deadline``, in seconds on the monotonic clock."""

    deadline = float("inf")

    def wait(self, gen: Any, interval: float = _LOOK, *more: Any, **options: Any) -> Any:
        """See ``psycopg.Connection``."""
        return super().wait(_bounded(gen, self.pgconn, self.deadline), interval, *more, **options)


class AsyncBoundedConnection(psycopg.AsyncConnection[Any]):
    """``BoundedConnection``, awaited."""

    deadline = float("inf")

    async def wait(self, gen: Any, interval: float = _LOOK, *more: Any, **options: Any) -> Any:
        """See ``psycopg.AsyncConnection``."""
        return await super().wait(_bounded(gen, self.pgconn, self.deadline), interval, *more, **options)


def bound_waits(connection: Any, timeout: float) -> None:
    """Let a connection of psycopg's own class raise ``ServerSilent`` after ``timeout`` seconds without a reply.

    Limits that are set on the server have no effect if the server has stopped. Releases of psycopg before 3.3 check no
    deadline while they wait, so they are not bounded.
    """
    plain: Callable[..., Any] = connection.wait

    def wait(generator: Generator[Any, Any, Any], *arguments: Any, **options: Any) -> Any:
        return plain(_bounded(generator, connection.pgconn, time.monotonic() + timeout), _LOOK)

    connection.wait = wait


def _bounded(waiting: Generator[Any, Any, T], pgconn: pq.abc.PGconn, deadline: float) -> Generator[Any, Any, T]:
    """The driver's generator, with a check of the deadline each time that no data has come for a while.

    A wait counts for two looks at most. If it took longer, this process or its event loop stood still, and data that
    the server has sent meanwhile is not read yet.
    """
    left = deadline - time.monotonic()
    try:
        state = next(waiting)
        while True:
            since = time.monotonic()
            ready = yield state
            left -= min(time.monotonic() - since, 2 * _LOOK)
            if not ready and left < 0:
                pgconn.finish()
                raise ServerSilent("no response in time")
            state = waiting.send(ready)
    except StopIteration as stop:
        result: T = stop.value
        return result


def result_of(pgconn: pq.abc.PGconn) -> Generator[Any, Any, pq.abc.PGresult]:
    """The result of the one statement that was sent; for a connection's ``wait``. Raises ``psycopg.Error``."""
    result: pq.abc.PGresult = (yield from _parts.execute(pgconn))[-1]
    if result.status not in (_TUPLES, _COMMAND):
        raise _parts.error(result)
    return result


def execute_by_pq(pgconn: pq.abc.PGconn) -> Generator[Any, Any, list[pq.abc.PGresult]]:
    """Send what is left to send, and read all results: ``generators.execute``, by public names only."""
    while pgconn.flush():
        if (yield Wait.RW) & Ready.R:
            pgconn.consume_input()
    results: list[pq.abc.PGresult] = []
    while True:
        while pgconn.is_busy():
            if (yield Wait.R):
                pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            return results
        results.append(result)


def error_by_lookup(result: pq.abc.PGresult) -> psycopg.Error:
    """The error of a result: ``errors.error_from_result``, by public names only."""
    state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode("ascii")
    try:
        kind = errors.lookup(state)
    except KeyError:
        kind = psycopg.DatabaseError
    return kind(result.error_message.decode("utf-8", "replace").strip())


class _Parts:
    """The functions that read results and make errors: by public names until ``look`` was called."""

    __slots__ = ("error", "execute", "looked")

    def __init__(self) -> None:
        self.execute: Callable[[pq.abc.PGconn], Generator[Any, Any, Any]] = execute_by_pq
        self.error: Callable[[pq.abc.PGresult], psycopg.Error] = error_by_lookup
        self.looked = False


_parts = _Parts()


def look(*, again: bool = False) -> None:
    """Use the private parts of psycopg if they are there; otherwise warn, once. ``again``: for tests."""
    if _parts.looked and not again:
        return
    _parts.looked = True
    try:
        execute = import_module("psycopg.generators").execute
        error = import_module("psycopg.errors").error_from_result
    except (ImportError, AttributeError) as missing:
        _parts.execute, _parts.error = execute_by_pq, error_by_lookup
        _logger.warning(
            "psycopg %s is not known (%s): results are read by psycopg.pq, which is slower; a later release of "
            "open-idempotency may know it",
            psycopg.__version__,
            missing,
        )
    else:
        _parts.execute, _parts.error = execute, error
