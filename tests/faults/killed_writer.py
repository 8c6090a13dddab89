"""A process that dies inside a write transaction on SQLite. Arguments: URL, effect file, key, and verb.

The backend reads its clock just before it writes, so a clock can set the trap: a trigger on that connection, which
fires at the write, before the commit. Run by ``test_restarts.py``.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from open_idempotency import open_backend
from open_idempotency.backends.sqlite import SqliteBackend
from tests.faults.effects import Effects
from tests.faults.handlers import charging
from tests.faults.site import Order, Worker

_TRAP = "CREATE TEMPORARY TRIGGER trap AFTER UPDATE ON open_idempotency_records BEGIN SELECT spring(); END"


class _Killer:
    """A clock; after ``function`` has read it, the process ends at its next write."""

    def __init__(self, function: str) -> None:
        self._function = function

    def __call__(self) -> float:
        frame = sys._getframe(1)
        if frame.f_code.co_name == self._function:
            connection = frame.f_locals["connection"]
            connection.create_function("spring", 0, _kill)
            connection.execute(_TRAP)
        return time.time()


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


#: the function in which each verb reads the clock
_ASKS = {"complete": "complete_running", "save_stage": "save_stage"}


def main(url: str, effects: str, key: str, verb: str) -> None:
    """Post one order; never returns."""
    backend = open_backend(url, clock=_Killer(_ASKS[verb]))
    assert isinstance(backend, SqliteBackend)
    with Worker("wsgi", backend) as worker:
        worker.post(Order(charging(Effects(Path(effects))), key))


if __name__ == "__main__":
    main(*sys.argv[1:])
