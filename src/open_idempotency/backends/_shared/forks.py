"""Letting calls end before this process forks, for stores whose connections must not be carried across a fork."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Protocol


class Pausable(Protocol):
    """What holds connections."""

    def pause(self) -> Callable[[], None]:
        """Let the calls of other threads end, and close the connections. The returned function lets calls go on."""
        ...


_all: weakref.WeakSet[Pausable] = weakref.WeakSet()
# By thread, since more than one may fork.
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
