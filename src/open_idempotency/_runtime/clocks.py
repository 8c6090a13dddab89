"""The clock that measures leases: it only grows, and it goes on while the machine sleeps.

The wall clock can be put back. The monotonic clock stands still while a Linux or macOS machine sleeps, and then shows a
lease as valid that ended long ago; a stage would begin beside the attempt that has taken it over.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial


def _counting() -> Callable[[], float]:
    # These clocks count sleep: CLOCK_BOOTTIME on Linux, CLOCK_MONOTONIC on macOS, time.monotonic() on Windows.
    for name in ("CLOCK_BOOTTIME", "CLOCK_MONOTONIC"):
        number = getattr(time, name, None)
        if number is not None:
            try:
                time.clock_gettime(number)
            except OSError:  # an old kernel, or a sandbox
                continue
            return partial(time.clock_gettime, number)
    return time.monotonic


#: seconds since an arbitrary moment, the same one for all threads of a process
elapsed: Callable[[], float] = _counting()


def growing() -> Callable[[], float]:
    """A clock that shows the time now, in seconds since 1970, and goes on without the jumps of the wall clock."""
    began = time.time() - elapsed()
    return lambda: began + elapsed()
