"""A request of a covered view that has no key, and needs none: its view's stages run plainly, and nothing is kept."""

from __future__ import annotations

from flask import Request, Response

from open_idempotency._core.attempt import Attempt
from open_idempotency._engine.current import Running, running
from open_idempotency._engine.engine import Engine
from open_idempotency._flask.answers import bind_stream
from open_idempotency._wsgi.environ import MARK
from open_idempotency.exceptions import IdempotencyError
from open_idempotency.policy import IdempotencyPolicy


class Plain:
    """Has the stages of an ``Exchange``, and binds the view's context only."""

    __slots__ = ("_bound", "_here", "_previous", "_request")

    def __init__(self, engine: Engine, request: Request, policy: IdempotencyPolicy) -> None:
        self._request = request
        self._here: Running = (Attempt(policy), engine)
        self._previous: Running | None = None
        self._bound = False

    def receive(self) -> None:
        """Leave the body alone."""

    def begin(self) -> None:
        """Bind the context."""
        self._request.environ[MARK] = self._here[0]
        self._previous = running.get()
        self._bound = True
        running.set(self._here)

    def viewed(self) -> None:
        """There is no record that a retry would have to find."""

    def overtaken(self, error: IdempotencyError) -> Response:
        """There is no record that could stand in, so the error is the view's own."""
        raise error

    def conclude(self, response: Response) -> Response:
        """The response as it is; a stream goes on under its own request."""
        if self._bound:
            bind_stream(self._here, response)
        self._unbind()
        return response

    def end(self, error: BaseException | None) -> None:
        """The request is over."""
        self._unbind()

    def _unbind(self) -> None:
        # Not reset: that only works in the context where it was set, and a test client may end a request elsewhere.
        if self._bound:
            self._bound = False
            running.set(self._previous)
