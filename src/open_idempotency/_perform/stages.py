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
from open_idempotency.exceptions import NotStarted, RecordUnreadable, StageValueError

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
        # Read back before it is recorded: a saved value never changes, not even one that cannot be read.
        readable = values.decode(payload, declared)
        return self._save_value(encode_stage(StageKind.VALUE, payload), readable, declared)

    def save_error(self, error: Exception) -> Steps[Any]:
        """Steps that record an error, so that later attempts raise it again (``memo_errors``).

        One of a subclass comes back as the class that the caller named.
        """
        named = next(kind for kind in type(error).__mro__ if kind in self._errors)
        payload = values.encode([named.__name__, list(error.args)], None, self._attempt.policy.max_stage_bytes)
        return self._save(encode_stage(StageKind.ERROR, payload))

    def _save_value(self, frame: bytes, readable: object, declared: object) -> Steps[Any]:
        yield from self._save(frame)
        assert self._frame is not None
        return readable if self._frame == frame else read_frame(self._frame, declared, self._errors)

    def _save(self, frame: bytes) -> Steps[None]:
        self._frame = yield from save_stage(self._attempt, Stage(*self.id, frame))

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
    name, arguments = _memo(payload)
    for named in errors:
        if named.__name__ == name:
            raise _rebuilt(named, arguments)
    raise StageValueError(f"the stage recorded a {name}; name that class in memo_errors= to have it raised again")


def plain_value(frame: bytes) -> Any:
    """What a stage frame holds, as plain JSON; of a memoised error its class name and arguments."""
    kind, payload = decode_stage(frame)
    if kind is StageKind.VALUE:
        return values.decode(payload, None)
    name, arguments = _memo(payload)
    return {"error": name, "arguments": arguments}


def _memo(payload: bytes) -> tuple[str, list[Any]]:
    try:
        name, arguments = json.loads(payload)
    except (TypeError, ValueError, RecursionError) as error:
        raise RecordUnreadable("a memoised error cannot be read") from error
    if not isinstance(name, str) or not isinstance(arguments, list):
        raise RecordUnreadable("a memoised error cannot be read")
    return name, arguments


def _rebuilt(kind: type[Exception], arguments: list[Any]) -> Exception:
    try:
        return kind(*arguments)
    except Exception as error:
        raise StageValueError(
            f"the recorded {kind.__name__} cannot be made again from its args; pass all of them to Exception.__init__"
        ) from error


def is_coroutine_function(function: Callable[..., Any]) -> bool:
    """Whether calling it makes a coroutine, seen through partials and callable objects."""
    target: Any = getattr(function, "func", function)
    return inspect.iscoroutinefunction(target) or inspect.iscoroutinefunction(type(target).__call__)
