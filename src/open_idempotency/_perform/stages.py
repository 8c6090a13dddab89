"""One use of one stage: what is on record for it, and the engine steps that record it. Colourless.

``idem`` carries these steps out, blocking or awaited. Memoised errors are recorded by class name and arguments; they
are only ever rebuilt as one of the classes that the caller names.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any

from open_idempotency._core import values
from open_idempotency._core.attempt import Attempt, StageId
from open_idempotency._core.codecs import StageKind, decode_stage, encode_stage
from open_idempotency._core.drivers import Steps
from open_idempotency._core.models import Stage
from open_idempotency._core.settlement import save_stage
from open_idempotency.exceptions import NotStarted, StageValueError

Errors = tuple[type[Exception], ...]

MAX_NAME_CHARACTERS = 200
_SCALARS = (str, int, float, bool, type(None))


def stage_id(name: str, key: str | int | None) -> StageId:
    """The (name, key) that a stage is known by. Raises ``StageValueError`` for what cannot be one."""
    text = "" if key is None else str(key)
    if not isinstance(name, str) or not name:
        raise StageValueError(f"a stage name must be a non-empty string, not {name!r}")
    if key is not None and not text:
        raise StageValueError(f"the key of stage {name!r} is empty; leave key= away, or give it a value")
    for part in (name, text):
        if len(part) > MAX_NAME_CHARACTERS or not (part.isprintable() or not part):
            raise StageValueError(f"stage names and keys have at most {MAX_NAME_CHARACTERS} printable characters")
    return name, text


class StageUse:
    """A stage that a running attempt has entered. ``returns``: the declared type of its value, if any."""

    __slots__ = ("_attempt", "_errors", "_frame", "_function", "_returns", "id")

    def __init__(
        self,
        attempt: Attempt,
        stage: StageId,
        returns: object = None,
        errors: Errors = (),
        function: Callable[..., Any] | None = None,
    ) -> None:
        if attempt.lease is None and attempt.policy.strict_stages:
            raise NotStarted("this request has no idempotency key, and strict_stages asks for one")
        attempt.check_running()
        self._attempt = attempt
        self._errors = errors
        self._returns = returns
        self._function = function
        self._frame = attempt.stages.get(stage)
        self.id = stage
        attempt.enter(stage)

    @property
    def done(self) -> bool:
        """Whether the stage is on record already."""
        return self._frame is not None

    def recall(self) -> Any:
        """The recorded value; raises the recorded error."""
        assert self._frame is not None
        return read_frame(self._frame, self._declared(), self._errors)

    def save(self, value: object) -> Steps[Any]:
        """Steps that record a value; their result is the value on record, as a later attempt will see it."""
        declared = None if isinstance(value, _SCALARS) else self._declared()
        payload = values.encode(value, declared, self._attempt.policy.max_stage_bytes)
        return self._save(encode_stage(StageKind.VALUE, payload), declared)

    def save_error(self, error: Exception) -> Steps[Any]:
        """Steps that record an error, so that later attempts raise it again (``memo_errors``)."""
        memo = [type(error).__name__, list(error.args)]
        payload = values.encode(memo, None, self._attempt.policy.max_stage_bytes)
        return self._save(encode_stage(StageKind.ERROR, payload), None, keep_error=True)

    def _save(self, frame: bytes, declared: object, *, keep_error: bool = False) -> Steps[Any]:
        self._frame = yield from save_stage(self._attempt, Stage(*self.id, frame))
        return None if keep_error else read_frame(self._frame, declared, self._errors)

    def leave(self) -> None:
        """The stage was not recorded; it may be entered again within this attempt."""
        self._attempt.leave(self.id)

    def _declared(self) -> object:
        if self._returns is None and self._function is not None:
            self._returns = values.declared_type(self._function)
        return self._returns


def read_frame(frame: bytes, declared: object, errors: Errors = ()) -> Any:
    """The value in a stage frame; raises the error in it."""
    kind, payload = decode_stage(frame)
    if kind is StageKind.VALUE:
        return values.decode(payload, declared)
    name, arguments = json.loads(payload)
    for error in errors:
        if error.__name__ == name:
            raise error(*arguments)
    raise StageValueError(f"the stage recorded a {name}; name that class in memo_errors= to have it raised again")


def is_coroutine_function(function: Callable[..., Any]) -> bool:
    """Whether calling it makes a coroutine, seen through partials and callable objects."""
    target: Any = getattr(function, "func", function)
    return inspect.iscoroutinefunction(target) or inspect.iscoroutinefunction(type(target).__call__)
