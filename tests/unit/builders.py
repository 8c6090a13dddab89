"""Builders that the unit tests share: requests, leases, records, a scripted engine, a recording backend."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isinf
from typing import Any

from open_idempotency import events
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.commands import Command, Complete, Renew
from open_idempotency._core.models import Lease, Renewal, Request, Stage
from open_idempotency._engine.bodies import RequestBody
from open_idempotency._engine.engine import Engine
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.policy import IdempotencyPolicy

OWNER, STRANGER = b"o" * 16, b"s" * 16
RECORD, PRINT = b"r" * 32, b"\x01" + b"f" * 32


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def body_of(data: bytes, **limits: int) -> RequestBody:
    """A received body."""
    body = RequestBody(IdempotencyPolicy(**limits))
    body.add(data)
    return body


def request_of(
    body: bytes = b"",
    *,
    method: str = "POST",
    path: bytes = b"/charges",
    query: bytes = b"",
    headers: Sequence[tuple[bytes, bytes]] = (),
    content_type: bytes = b"application/json",
) -> Request:
    """A request whose body was received."""
    return Request(method, path, query, [(b"content-type", content_type), *headers], None, body_of(body))


def lease_of(*, owner: bytes = OWNER, token: int = 5, attempt: int = 1, duration: float = 30.0) -> Lease:
    """A lease on ``RECORD``."""
    return Lease(RECORD, owner, token, attempt, PRINT, duration, 86_400.0)


def attempt_of(*stages: Stage, owned: Lease | None = None, **fields: Any) -> Attempt:
    """An attempt with a lease; its events are collected in ``attempt.policy.on_event.seen`` unless one is given."""
    fields.setdefault("on_event", Listener())
    return Attempt.of(owned or lease_of(), stages, IdempotencyPolicy(**fields), "/charges")


class Listener:
    """Collects the events that it is given: decisions in ``seen``, and the problems that result from them in
    ``problems``.
    """

    def __init__(self) -> None:
        self.seen: list[events.Event] = []
        self.problems: list[events.ProblemSent] = []

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.ProblemSent):
            self.problems.append(event)
        else:
            self.seen.append(event)

    def kinds(self) -> list[type[events.Event]]:
        """The classes of the events, in order."""
        return [type(event) for event in self.seen]


@dataclass
class Script:
    """Plays the performer: feeds prepared results, raises prepared errors, and records the commands.

    ``results``: for each command class, the results of its calls in turn; an exception is raised. ``Now`` reads a clock
    that ``Sleep`` and ``Wait`` move. ``Call`` is called, and ``Emit`` gives its event to the listener. ``slots``: how
    many waiting slots are free.
    """

    results: dict[type[Command[Any]], list[Any]] = field(default_factory=dict)
    asked: list[Command[Any]] = field(default_factory=list)
    clock: float = 100.0
    slots: int = 1

    def run(self, steps: Any) -> Any:
        """Drive the steps to their end; return or raise what they return or raise."""
        try:
            command = next(steps)
            while True:
                if isinstance(command, Complete) and isinf(command.asked):  # as the performer does
                    command.asked = self.clock
                try:
                    result = self._result(command)
                except BaseException as error:
                    command = steps.throw(error)
                else:
                    command = steps.send(result)
        except StopIteration as stop:
            return stop.value

    def _result(self, command: Any) -> Any:
        self.asked.append(command)
        name = type(command).__name__
        prepared = self.results.get(type(command))
        if prepared:
            result = prepared.pop(0)
            if isinstance(result, BaseException):
                raise result
            return result
        return getattr(self, f"_{name}", self._unexpected)(command)

    def _unexpected(self, command: Any) -> Any:
        raise AssertionError(f"nothing is prepared for {command!r}; asked so far: {self.names()}")

    def _Now(self, command: Any) -> float:  # noqa: N802 (named for the command)
        return self.clock

    def _Sleep(self, command: Any) -> None:  # noqa: N802 (named for the command)
        self.clock += command.seconds

    def _Wait(self, command: Any) -> None:  # noqa: N802 (named for the command)
        self.clock += command.pause

    def _TakeSlot(self, command: Any) -> Callable[[], None] | None:  # noqa: N802 (named for the command)
        if self.slots == 0 or command.slots == 0:
            return None
        self.slots -= 1
        return self._leave_place

    def _leave_place(self) -> None:
        self.slots += 1

    def _Call(self, command: Any) -> Any:  # noqa: N802 (named for the command)
        return command.function()

    def _DrawReference(self, command: Any) -> str:  # noqa: N802 (named for the command)
        return "c0ffee"

    def _Emit(self, command: Any) -> None:  # noqa: N802 (named for the command)
        if command.listener is not None:
            command.listener(command.event)

    def names(self) -> list[str]:
        """The class names of the commands, without ``Emit`` and ``Now``."""
        apart = ("DrawReference", "Emit", "Now", "KeepAlive")
        return [name for name in (type(c).__name__ for c in self.asked) if name not in apart]

    def asked_for(self, kind: type[Command[Any]]) -> list[Any]:
        """The commands of this class."""
        return [command for command in self.asked if isinstance(command, kind)]

    def _KeepAlive(self, command: Any) -> None:  # noqa: N802 (named for the command)
        pass

    def _RecordLater(self, command: Any) -> bool:  # noqa: N802 (named for the command)
        return True


class RecordingBackend(MemoryBackend):
    """The memory backend, which also notes each renewal and each command, and can be set to fail."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.renewals: list[tuple[float, int]] = []
        self.verbs: list[str] = []
        self.failure: Exception | None = None
        self.beaten = threading.Semaphore(0)

    def renew(self, c: Renew, /) -> Sequence[Renewal]:
        """Note the call, then renew; or raise the prepared failure."""
        self.renewals.append((time.monotonic(), len(c.leases)))
        try:
            if self.failure is not None:
                raise self.failure
            return super().renew(c)
        finally:
            self.beaten.release()

    def await_beats(self, count: int = 1, seconds: float = 10.0) -> None:
        """Wait for this many further renew calls, each within ``seconds``."""
        for _ in range(count):
            assert self.beaten.acquire(timeout=seconds), f"no beat within {seconds} s; so far {self.renewals}"


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait, for a bounded time, for a condition that another thread brings about."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.002)


def engine_of(backend: Any = None, **fields: Any) -> Engine:
    """An engine over the memory backend, with these policy fields."""
    return Engine(backend or MemoryBackend(), None, fields, threads=False)
