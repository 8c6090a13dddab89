"""Put this folder on ``PYTHONPATH``, and the process's clock is off by ``WIRE_CLOCK_OFF`` seconds, from its start on.

The wall clock alone: what measures time with it goes wrong, what measures with the monotonic clock does not, as where
a machine's clock is set wrong. Each process that it happened to leaves a file.
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
