"""Helpers of the tests of ``idem``: a client that repeats one request, and functions that count their calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from open_idempotency._core.admission import Intake, admit
from open_idempotency._core.attempt import Attempt, Phase
from open_idempotency._core.models import Response
from open_idempotency._core.settlement import abort
from open_idempotency._engine.engine import Engine, new_owner, running
from tests.unit.builders import body_of, engine_of, request_of

KEY = b"0123456789abcdef"


class Client:
    """A client that sends one request repeatedly, each time as the next attempt."""

    def __init__(self, **fields: Any) -> None:
        self.engine: Engine = engine_of(**fields)

    @contextmanager
    def request(self, key: bytes = KEY, body: bytes = b"{}") -> Iterator[Attempt]:
        """One attempt: current while the block runs, failed at its end."""
        fields = [(b"idempotency-key", key)] if key else []
        intake = Intake(request_of(), fields, new_owner(), lambda: None, lambda: body_of(body))
        attempt = self.engine.sync.run(admit(intake, self.engine.policy))
        assert isinstance(attempt, Attempt)
        try:
            with self.bound(attempt):
                yield attempt
        finally:
            self.engine.sync.run(abort(attempt, RuntimeError("the handler failed")))
            self.engine.heartbeat.forget(attempt)

    @contextmanager
    def bound(self, attempt: Attempt) -> Iterator[None]:
        """Run code as this attempt, also after it has ended, like a worker that does not know it yet."""
        phase, attempt.phase = attempt.phase, Phase.RUNNING
        mark = running.set((attempt, self.engine))
        try:
            yield
        finally:
            running.reset(mark)
            attempt.phase = phase

    def again(self) -> Response:
        """The response to a further request when no further attempt is admitted."""
        intake = Intake(request_of(), [(b"idempotency-key", KEY)], new_owner(), lambda: None, lambda: body_of(b"{}"))
        response = self.engine.sync.run(admit(intake, self.engine.policy))
        assert isinstance(response, Response)
        return response

    def forget(self) -> None:
        """Delete every record."""
        for record in list(self.engine.backend.scan()):
            self.engine.backend.delete(record.record_id)


class Counted:
    """A function that counts its calls."""

    def __init__(self, result: Any = "done") -> None:
        self.calls = 0
        self.result = result

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    async def awaited(self) -> Any:
        """The same function as a coroutine function."""
        return self()
