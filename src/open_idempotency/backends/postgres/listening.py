"""Notifications that attempts have ended: one thread with one connection in each process, for both fronts.

The thread is started by the first caller that waits, listens to one channel for all records, and ends when no caller
has waited for a while or its connection breaks. No outcome depends on a notification: it only makes waiting shorter.
"""

from __future__ import annotations

import math
import threading
import time
from contextlib import suppress
from typing import Any

import psycopg

from open_idempotency.backends._shared.waiters import Waiter, Waiters
from open_idempotency.backends.postgres.options import Options

#: seconds without waiting callers after which the thread ends
IDLE = 10.0
#: seconds without a new connection after one broke
REST = 5.0
#: seconds between two looks whether the thread is to end
LOOK = 0.5


class Listener:
    """The listener of one process. Safe to use from many threads."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._waiters = Waiters()
        self._thread: threading.Thread | None = None
        self._listening = self._closing = False
        self._resting_until = 0.0

    def enter(self, record_id: bytes, ended: Waiter) -> bool:
        """Wake ``ended`` when the attempt has ended; false where there is no listening connection yet: then poll."""
        if not self._options.listen:
            return False
        with self._lock:
            self._start()
            if self._listening:
                self._waiters.add(record_id, ended)
            return self._listening

    def leave(self, record_id: bytes, ended: Waiter) -> None:
        """Stop waiting."""
        with self._lock:
            self._waiters.discard(record_id, ended)

    def close(self) -> None:
        """End the thread, and wait for its end; it is started again for the next caller that waits."""
        with self._lock:
            self._closing = True
            thread = self._thread
        if thread is not None:
            thread.join(self._options.timeout + LOOK)

    def _start(self) -> None:
        if self._thread is not None or time.monotonic() < self._resting_until:
            return
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="open-idempotency-listener", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the process may have no more threads
            self._thread = None
            self._resting_until = time.monotonic() + REST

    # In the thread

    def _run(self) -> None:
        try:
            with psycopg.connect(self._options.conninfo, autocommit=True, prepare_threshold=None) as connection:
                if _is_pooled(connection):
                    self._resting_until = math.inf
                    return
                connection.execute("LISTEN open_idempotency")
                with self._lock:
                    self._listening = True
                self._listen(connection)
        except (psycopg.Error, OSError):
            self._resting_until = time.monotonic() + REST
        finally:
            with self._lock:
                self._listening, self._thread = False, None
                self._waiters.wake_all()

    def _listen(self, connection: psycopg.Connection[Any]) -> None:
        idle_since = time.monotonic()
        while True:
            for notification in connection.notifies(timeout=LOOK):
                self._hear(notification.payload)
            with self._lock:
                if self._waiters:
                    idle_since = time.monotonic()
                if self._closing or time.monotonic() - idle_since > IDLE:
                    self._listening = False
                    return

    def _hear(self, payload: str) -> None:
        with suppress(ValueError):  # any user of the database may send any notification
            record_id = bytes.fromhex(payload)
            with self._lock:
                self._waiters.wake(record_id)


def _is_pooled(connection: psycopg.Connection[Any]) -> bool:
    """Whether a pooler stands in between, where LISTEN would run on a session that other clients get next.

    A pooler invents the process id that it gives to clients for cancelling, since the session may change each time.
    """
    row = connection.execute("SELECT pg_catalog.pg_backend_pid()").fetchone()
    return row is None or row[0] != connection.info.backend_pid
