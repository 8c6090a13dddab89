"""Connections of psycopg whose every wait ends in time; psycopg itself waits for ever for a server that is silent.

Imported where psycopg is the driver.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, TypeVar

import psycopg

from open_idempotency.exceptions import MissingExtra

if tuple(int(part) for part in psycopg.__version__.split(".")[:2]) < (3, 3):
    raise MissingExtra(
        f"psycopg {psycopg.__version__} cannot be told to give up a silent server; install 3.3 or a later one: "
        "pip install --upgrade 'open-idempotency[postgres]'"
    )

T = TypeVar("T")

#: seconds between two looks whether a silent server's time is over
_LOOK = 0.1


class ServerSilent(psycopg.OperationalError):
    """The server did not answer in time; the connection is of no more use."""


class BoundedConnection(psycopg.Connection[Any]):
    """A connection whose waits end at ``deadline``, in seconds on the monotonic clock."""

    deadline = float("inf")

    def wait(self, gen: Any, interval: float = _LOOK, *more: Any, **options: Any) -> Any:
        """See ``psycopg.Connection``."""
        return super().wait(_bounded(gen, self), interval, *more, **options)


class AsyncBoundedConnection(psycopg.AsyncConnection[Any]):
    """The same, awaited."""

    deadline = float("inf")

    async def wait(self, gen: Any, interval: float = _LOOK, *more: Any, **options: Any) -> Any:
        """See ``psycopg.AsyncConnection``."""
        return await super().wait(_bounded(gen, self), interval, *more, **options)


def _bounded(
    waiting: Generator[Any, Any, T], connection: BoundedConnection | AsyncBoundedConnection
) -> Generator[Any, Any, T]:
    """The driver's generator, which is told every so often that nothing has come, ended when its time is over."""
    try:
        state = next(waiting)
        while True:
            ready = yield state
            if not ready and time.monotonic() > connection.deadline:
                connection.pgconn.finish()
                raise ServerSilent("no answer in time")
            state = waiting.send(ready)
    except StopIteration as stop:
        answer: T = stop.value
        return answer
