"""What is known of the server that this process belongs to."""

from __future__ import annotations

from math import inf

# Seconds that pass between the server's own start of a request and ours, and that it takes to end a request early.
_MARGIN = 2.0

_limit = inf


def limit_requests(seconds: float) -> None:
    """The server ends this process when a request takes longer than that."""
    global _limit
    _limit = seconds - min(_MARGIN, seconds / 4)


def end_of_request(began: float) -> float:
    """When a request that began at this time has to be answered, on the same clock."""
    return began + _limit
