"""What an engine has opened is closed again: when its server shuts down, when it is garbage, and at the interpreter's
exit.

An engine opens two things: the heartbeat's thread, and connections of its backend. It owns the backend that it has made
from a URL. A backend that the application has made is the application's to close. Closing is harmless at any time,
since a backend and a heartbeat begin anew when they are used again.
"""

from __future__ import annotations

import _thread
import atexit
import logging
import weakref
from contextlib import suppress

from open_idempotency._engine.heartbeat import Heartbeat
from open_idempotency._runtime import loops
from open_idempotency.backend import Backend

#: seconds for which what is still being recorded is waited for
PATIENCE = 5.0
#: the same at the interpreter's exit, which has drained before
_AT_EXIT = 1.0

_logger = logging.getLogger("open_idempotency")
#: what runs at exit, inherited by forks
_registered: list[object] = []


class Opened:
    """What one engine has opened. It does not refer to the engine, so that it can outlive it.

    ``own``: the backend that the engine has made; None where the application has made it.
    """

    def __init__(self, heartbeat: Heartbeat, own: Backend | None) -> None:
        self._heartbeat = heartbeat
        self._own = own if own is not None and type(own).close is not Backend.close else None
        if self._own is not None:
            _close_at_exit(self)

    def close(self, patience: float = PATIENCE) -> None:
        """Wait for what is being recorded, then close everything. Blocks; errors of the backend are logged.

        A request that still runs keeps its heartbeat: its lease is renewed over a new connection.
        """
        self._heartbeat.close_unless_running(patience)
        if self._own is None:
            return
        try:
            self._own.close()
        except Exception:
            _logger.exception("%r could not be closed; its connections end with the process", self._own)

    async def aclose(self) -> None:
        """See ``close``; closes the connections of the running event loop as well."""
        await loops.in_thread(self._heartbeat.close_unless_running, PATIENCE)
        if self._own is None:
            return
        try:
            await self._own.to_async().close()
        except Exception:
            _logger.exception("%r could not be closed; its connections end with the process", self._own)

    def close_beside(self) -> None:
        """Close everything in a thread of its own; for a finaliser, which may interrupt whoever holds any lock."""
        if self._own is None:
            return  # the heartbeat has a finaliser of its own
        # Not ``threading.Thread``, which takes a lock that the interrupted code may hold.
        with suppress(RuntimeError):  # no thread can be started; connections that are garbage close by themselves
            _thread.start_new_thread(self.close, ())


_at_exit: weakref.WeakSet[Opened] = weakref.WeakSet()


def _close_at_exit(opened: Opened) -> None:
    if not _registered:
        # Once, and before any heartbeat runs, so that this comes behind the pass that gives leases up (L-06).
        _registered.append(atexit.register(_close_all))
    _at_exit.add(opened)


def _close_all() -> None:
    for opened in list(_at_exit):
        opened.close(_AT_EXIT)


async def aclose_all() -> None:
    """Close what all engines of this process have opened: its server shuts down."""
    for opened in list(_at_exit):
        await opened.aclose()
