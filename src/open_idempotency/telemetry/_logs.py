"""The record and the attempt in each line that is logged while a request runs, by ``logging`` or by structlog.

Both read the same context variable as ``idem``. It is set on the event loop, in threads that the framework
starts for the request, and in threads that the application starts by ``contextvars.copy_context().run``.
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

from open_idempotency import events
from open_idempotency._engine.engine import running

#: the value of a field outside of a request with a key
NONE = "-"


class RequestFilter(logging.Filter):
    """Gives each line the fields ``record``, ``attempt`` and ``reference``, for ``%(record)s`` in a format.

    Add it to a handler, so that the lines of all loggers pass it; with a ``QueueHandler`` to that handler, since its
    listener works in another thread. A line of this library has the fields of its event, even from the heartbeat.
    ``reference`` is that of the problem in the line ``ProblemSent``. A field without a value is ``-``. Every line
    passes. Since 0.1.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields. Returns true, so the line is logged."""
        found = _of_event(record) or _of_request()
        record.record, record.attempt, record.reference = found or (NONE, NONE, NONE)
        return True


def add_request(logger: Any, name: str, event_dict: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: adds ``record`` and ``attempt`` to each line of a request with a key.

    A value of that name in the line is kept. Outside of such a request nothing is added. Since 0.1.
    """
    found = _of_request()
    if found is not None:
        event_dict.setdefault("record", found[0])
        event_dict.setdefault("attempt", found[1])
    return event_dict


Fields = tuple[str, "int | str", str]


def _of_event(line: logging.LogRecord) -> Fields | None:
    """The fields of a line in which this library logs an event."""
    args = line.args
    if line.name != "open_idempotency" or not isinstance(args, tuple) or not args:
        return None
    event = args[0]
    if not isinstance(event, events.Event):
        return None
    attempt = getattr(event, "attempt", None)
    if attempt is None:
        here = _of_request()
        attempt = here[1] if here is not None and here[0] == event.record else NONE
    return event.record or NONE, attempt, getattr(event, "reference", NONE)


def _of_request() -> Fields | None:
    """The fields of the request that runs here; None outside of a request with a key."""
    here = running.get()
    lease = None if here is None else here[0].lease
    return None if lease is None else (events.short(lease.record_id), lease.attempt, NONE)
