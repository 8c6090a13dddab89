"""Events of the heartbeat on their way to listeners: logged at once, and handed to the listener on another thread.

A listener that blocks must not delay a renewal. So its events wait in a queue, which is bounded; what does not fit is
counted, and the log says how many there were. The thread is started when there is something to report, and ends when
all is said.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque

from open_idempotency._core.commands import Emit
from open_idempotency._perform.telling import call_listener, log

#: events that may wait for a listener
MOST_WAITING = 1_000
_LOOK = 0.005

_logger = logging.getLogger("open_idempotency")


class Courier:
    """Carries the events of one heartbeat, in order."""

    def __init__(self) -> None:
        #: how many events no listener was called with, since it did not return in time
        self.dropped = 0
        self._waiting: deque[Emit] = deque()
        self._lock = threading.Lock()
        self._running = False

    def tell(self, command: Emit) -> None:
        """Log an event, and have its listener called; returns at once."""
        log(command.event)
        if command.listener is None:
            return
        with self._lock:
            fits = len(self._waiting) < MOST_WAITING
            if fits:
                self._waiting.append(command)
            else:
                self.dropped += 1
        if not fits and self.dropped == 1:
            _logger.error(
                "on_event does not return, and %d events wait for it; let it return quickly; it is not called with "
                "further events, which are logged and counted",
                MOST_WAITING,
            )
        self.go()

    def go(self) -> bool:
        """Start the thread where there is something to do; whether there is one, or none is needed."""
        with self._lock:
            if self._running or not self._waiting:
                return True
            self._running = True
        try:
            threading.Thread(target=self._run, name="open-idempotency-events", daemon=True).start()
        except Exception:  # no thread is free: the next event, or the end of the process, tries again
            self._running = False
            return False
        return True

    def flush(self, seconds: float) -> None:
        """Wait until listeners have been called with all that was reported, for so long at most."""
        if not self.go():
            self._running = True
            self._run()  # the interpreter is on its way out, where Python starts no thread
            return
        deadline = time.monotonic() + seconds
        while self._running and time.monotonic() < deadline:
            time.sleep(_LOOK)

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._running = False
                    break
                command = self._waiting.popleft()
            try:
                call_listener(command)
            except BaseException:  # a listener that wants to end the thread ends nothing but its own call
                _logger.exception("the on_event listener raised on %s", type(command.event).__name__)
        dropped, self.dropped = self.dropped, 0
        if dropped:
            _logger.error("%d events were logged only, since on_event did not return in time", dropped)
