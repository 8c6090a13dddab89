"""A process that dies inside a write transaction on SQLite: url, effect file, key, and the verb that it dies in.

The backend asks its clock inside each write transaction, so a clock can be the killer. Run by ``test_restarts.py``.
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


class _Killer:
    """A clock; ends the process where it is asked by ``verb``."""

    def __init__(self, verb: str) -> None:
        self._verb = verb

    def __call__(self) -> float:
        frame = sys._getframe(1)
        if frame.f_code.co_name == self._verb:
            os.kill(os.getpid(), signal.SIGKILL)
        return time.time()


def main(url: str, effects: str, key: str, verb: str) -> None:
    """Post one order; never returns."""
    backend = open_backend(url, clock=_Killer(verb))
    assert isinstance(backend, SqliteBackend)
    with Worker("wsgi", backend) as worker:
        worker.post(Order(charging(Effects(Path(effects))), key))


if __name__ == "__main__":
    main(*sys.argv[1:])
