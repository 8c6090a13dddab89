"""Calls to backends with a short timeout, on a machine that may be slow."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from open_idempotency.exceptions import BackendUnavailable

_SOON = 30.0
Reply = TypeVar("Reply")


def retried(call: Callable[[], Reply]) -> Reply:
    """The result of a call that nothing blocks; repeated while a slow machine makes it time out."""
    deadline = time.monotonic() + _SOON
    while True:
        try:
            return call()
        except BackendUnavailable:
            if time.monotonic() > deadline:
                raise
