"""With this folder on ``PYTHONPATH``, a process's wall clock is off by ``WIRE_CLOCK_OFF`` seconds from its start on.

Only the wall clock is shifted, and not the monotonic one, as on a machine with a wrong time. Each shifted process
writes a file.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

_off = float(os.environ["WIRE_CLOCK_OFF"])
_seconds, _nanoseconds = time.time, time.time_ns
time.time = lambda: _seconds() + _off
time.time_ns = lambda: _nanoseconds() + int(_off * 1_000_000_000)
Path(os.environ["WIRE_FOLDER"], f"clock-off-{os.getpid()}").touch()
