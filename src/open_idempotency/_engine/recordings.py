"""What is recorded in the background, after its client has its response: bounded, and tried again (L-08).

Each recording is a generator of the core, which says what to do and how long to pause. They take turns in the
heartbeat's thread: before each one the leases that are due are renewed, and where the backend is away the others wait
for the next round, so that no number of recordings delays a renewal by more than one call.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import inf

from open_idempotency._core.commands import (
    Complete,
    Emit,
    Fail,
    Now,
    RecordLater,
    Release,
    Sleep,
    Unreserve,
)
from open_idempotency._core.drivers import Handlers
from open_idempotency._core.notify import FIRST_PAUSE, LONGEST_PAUSE
from open_idempotency._runtime import clocks
from open_idempotency.backend import Backend
from open_idempotency.exceptions import BackendUnavailable

#: bounds of what one process keeps for one backend
MOST = 1_000
MOST_BYTES = 64 * 1024 * 1024

_logger = logging.getLogger("open_idempotency")


class _Recording:
    __slots__ = ("command", "steps", "wake")

    def __init__(self, command: RecordLater) -> None:
        self.command = command
        self.steps = command.steps
        #: seconds on the monotonic clock at which it goes on
        self.wake = 0.0


class Recordings:
    """Those of one process on one backend, by the lease's owner. Added from any thread, carried out by one."""

    def __init__(self, backend: Backend, report: Callable[[Emit], None], ended: Callable[[bytes], None]) -> None:
        #: by the lease's owner; changed here only
        self.pending: dict[bytes, _Recording] = {}
        # While the backend is away, how long it is left alone, and until when on the monotonic clock.
        self._pause = FIRST_PAUSE
        self._left_alone = 0.0
        self._ended = ended
        self._handlers: Handlers = {
            Complete: backend.complete,
            Fail: backend.fail,
            Release: backend.release,
            Unreserve: backend.unreserve,
            Now: lambda _: clocks.elapsed(),
            Emit: report,
        }

    def __len__(self) -> int:
        return len(self.pending)

    def fits(self, command: RecordLater) -> bool:
        """Whether there is room for it."""
        taken = list(self.pending.values())
        return len(taken) < MOST and sum(each.command.size for each in taken) + command.size <= MOST_BYTES

    def add(self, owner: bytes, command: RecordLater) -> None:
        """Take it on; it begins when it is looked at next."""
        self.pending[owner] = _Recording(command)

    def lost(self) -> list[Emit]:
        """What to report of those that the end of the process cuts off."""
        commands = [each.command for each in list(self.pending.values())]
        return [Emit(each.lost, each.attempt.policy.on_event) for each in commands if each.lost is not None]

    def wake_all(self) -> None:
        """Let none of them pause any longer: the process is about to end."""
        self._left_alone = 0.0
        for recording in list(self.pending.values()):
            recording.wake = 0.0

    @property
    def wake(self) -> float:
        """When the next one goes on, on the monotonic clock; infinite where there is none."""
        return max(self._left_alone, min((each.wake for each in list(self.pending.values())), default=inf))

    def go_on(self, before_each: Callable[[], object]) -> None:
        """Carry out what is due, until the backend turns out to be away."""
        now = clocks.elapsed()
        if now < self._left_alone:
            return
        due = sorted((item for item in list(self.pending.items()) if item[1].wake <= now), key=lambda i: i[1].wake)
        for owner, recording in due:
            before_each()
            if not self._advance(owner, recording):
                # This one pauses, so in the next round the others come before it.
                self._left_alone = clocks.elapsed() + self._pause
                self._pause = min(self._pause * 2, LONGEST_PAUSE)
                return
            self._pause = FIRST_PAUSE

    def _advance(self, owner: bytes, recording: _Recording) -> bool:
        """Let one go on up to its next pause, or its end; false where the backend was away."""
        away = False
        try:
            command = next(recording.steps)
            while not isinstance(command, Sleep):
                try:
                    reply = self._handlers[type(command)](command)
                except Exception as error:
                    away = away or isinstance(error, BackendUnavailable)
                    command = recording.steps.throw(error)
                except BaseException as error:  # whoever wants to end the thread does not end the recording
                    away = True
                    command = recording.steps.throw(BackendUnavailable(f"interrupted by {type(error).__name__}"))
                else:
                    command = recording.steps.send(reply)
            recording.wake = clocks.elapsed() + command.seconds
        except StopIteration:
            self._end(owner)
        except BaseException:
            _logger.exception("recording in the background ended with an error of this package")
            self._end(owner)
        return not away

    def _end(self, owner: bytes) -> None:
        self.pending.pop(owner, None)
        self._ended(owner)
