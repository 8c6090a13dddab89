"""Waiting in one process: for the end of another attempt, and for the end of all calls before a fork.

``Waiters`` is for backends that report the end of an attempt. A thread waits with a ``threading.Event``, a task with
``loops.signal()``. Nothing here locks; the caller does.

``pause_at_forks`` is for backends whose connections must not be carried across a fork: their calls end first.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Protocol


class Waiter(Protocol):
    """Can be woken from any thread, without blocking or raising."""

    def set(self) -> None:
        """Wake the caller."""


class Waiters:
    """Waiters by the name of the record or channel that they wait for."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, set[Waiter]] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, name: bytes, waiter: Waiter) -> None:
        """Begin to wait."""
        self._waiting.setdefault(name, set()).add(waiter)

    def discard(self, name: bytes, waiter: Waiter) -> bool:
        """Stop waiting; returns whether this was the last waiter of the name."""
        waiting = self._waiting.get(name)
        if waiting is None:
            return False
        waiting.discard(waiter)
        if waiting:
            return False
        del self._waiting[name]
        return True

    def wake(self, name: bytes) -> None:
        """Wake all waiters of a name; they stay until they are discarded."""
        for waiter in self._waiting.get(name, ()):
            waiter.set()

    def wake_all(self) -> None:
        """Wake all waiters."""
        for name in self._waiting:
            self.wake(name)


# Calls that end before a fork


class Pausable(Protocol):
    """An object that holds connections."""

    def pause(self) -> Callable[[], None]:
        """Let the calls of other threads end, and close the connections. The returned function lets calls go on."""
        ...


_all: weakref.WeakSet[Pausable] = weakref.WeakSet()
# By thread, since several threads may fork.
_paused: dict[int, list[Callable[[], None]]] = {}


def pause_at_forks(connections: Pausable) -> None:
    """Pause these connections around each fork of this process, as long as something else refers to them."""
    _all.add(connections)


def _before() -> None:
    resumes = _paused.setdefault(threading.get_ident(), [])
    for connections in list(_all):
        resumes.append(connections.pause())


def _after_in_parent() -> None:
    for resume in _paused.pop(threading.get_ident(), []):
        resume()


if hasattr(os, "register_at_fork"):
    # The child needs nothing: its pools are new, and what it inherits is neither used nor closed there.
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_paused.clear)
