"""Backends whose time is short, since their tests wait until it is over: what they reply on a slow machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from open_idempotency.exceptions import BackendUnavailable

_SOON = 30.0
Reply = TypeVar("Reply")


def retried(call: Callable[[], Reply]) -> Reply:
    """The reply where nothing holds the backend up. A call that the machine did not get done in time is repeated."""
    deadline = time.monotonic() + _SOON
    while True:
        try:
            return call()
        except BackendUnavailable:
            if time.monotonic() > deadline:
                raise
