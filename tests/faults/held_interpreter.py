"""A process whose handler calls into C without releasing the interpreter's lock. Arguments: URL, effect file, key.

Prints status and body of its response. Run by ``test_blocked_interpreters.py``.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

from tests.faults.effects import Effects
from tests.faults.handlers import between
from tests.faults.site import Order, Worker

LEASE = 2.0
HELD = 4.5


def main(url: str, effects: str, key: str) -> None:
    """Post one order."""
    # PyDLL keeps the interpreter's lock, as a C extension may.
    handler = between(Effects(Path(effects)), lambda: ctypes.PyDLL(None).usleep(int(HELD * 1_000_000)))
    with Worker("wsgi", url, lease=LEASE) as worker:
        got = worker.post(Order(handler, key))
    sys.stdout.write(f"{got.status} {got.body.decode()}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
