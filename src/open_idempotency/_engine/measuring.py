"""Wrappers with which telemetry measures the backend and the heartbeat of an engine. Imported only if it is on.

Each verb of the backend is timed, whoever calls it: a request, the heartbeat, or a recording in the background.
``wait`` is not timed, since it takes as long as a duplicate is to wait. The dictionary in which the heartbeat has the
running attempts counts them.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

from open_idempotency.backend import AsyncBackend, Backend
from open_idempotency.events import Telemetry

T = TypeVar("T")

#: the verbs that are timed
VERBS = (
    "claim", "complete", "delete", "fail", "get", "release", "renew", "reserve", "save_stage", "unreserve", "withdraw",
)  # fmt: skip

_logger = logging.getLogger("open_idempotency")


class Measured(NamedTuple):
    """The measured backends of an engine, and the function that makes the dictionary of its running attempts."""

    sync: Backend
    aio: AsyncBackend
    make_watched: Callable[[], dict[bytes, Any]]


def measure(sync: Backend, aio: AsyncBackend, telemetry: Telemetry) -> Measured:
    """Wrap the backends of an engine, to measure them. The backends themselves are not changed."""
    return Measured(_around(sync, telemetry), _around(aio, telemetry), partial(LiveAttempts[Any], telemetry))


class _Timed:
    """A backend whose verbs are timed. All other attributes are those of the wrapped backend."""

    def __init__(self, backend: object) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def __repr__(self) -> str:
        return repr(self._backend)


def _around(backend: T, telemetry: Telemetry) -> T:
    timed_backend: Any = _Timed(backend)
    for name in VERBS:
        verb = getattr(backend, name)
        timed = _timed_async if inspect.iscoroutinefunction(inspect.unwrap(verb)) else _timed
        setattr(timed_backend, name, timed(verb, name, telemetry))
    around: T = timed_backend
    return around


def _timed(verb: Callable[[Any], Any], name: str, telemetry: Telemetry) -> Callable[[Any], Any]:
    def call(command: Any) -> Any:
        began = perf_counter()
        try:
            return verb(command)
        finally:
            _report(telemetry, name, perf_counter() - began)

    return call


def _timed_async(
    verb: Callable[[Any], Awaitable[Any]], name: str, telemetry: Telemetry
) -> Callable[[Any], Awaitable[Any]]:
    async def call(command: Any) -> Any:
        began = perf_counter()
        try:
            return await verb(command)
        finally:
            _report(telemetry, name, perf_counter() - began)

    return call


def _report(telemetry: Telemetry, verb: str, seconds: float) -> None:
    try:
        telemetry.backend_called(verb, seconds)
    except Exception:
        _logger.exception("backend_called() of the on_event listener raised on %s", verb)


class LiveAttempts(dict[bytes, T]):
    """The attempts that one process watches. It reports to telemetry when one is added or removed.

    An attempt may be forgotten by the garbage collector, in the middle of another call.
    """

    def __init__(self, telemetry: Telemetry) -> None:
        super().__init__()
        self._telemetry = telemetry
        self._lock = threading.RLock()

    def __setitem__(self, owner: bytes, watched: T) -> None:
        with self._lock:
            new = owner not in self
            super().__setitem__(owner, watched)
        if new:
            self._change(1)

    def pop(self, owner: bytes, default: Any = None) -> Any:
        """Take one out; ``default`` where it is not there."""
        with self._lock:
            there = owner in self
            found = super().pop(owner, default)
        if there:
            self._change(-1)
        return found

    def clear(self) -> None:
        """Take all out."""
        for owner in list(self):
            self.pop(owner)

    def _change(self, by: int) -> None:
        try:
            self._telemetry.attempts_changed(by)
        except Exception:
            _logger.exception("attempts_changed() of the on_event listener raised")
