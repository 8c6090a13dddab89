"""The stored form of a ``Once`` result, by declared type, like that of a stage value.

A result is stored as a ``Response`` with the JSON text as its body, so that backends, the ledger, encryption and
operations can handle it. One header says what the text is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from open_idempotency._core.models import Response
from open_idempotency._core.stored_response import StageKind
from open_idempotency._stages import values
from open_idempotency._stages.annotations import declared_type
from open_idempotency._stages.stages import Errors, read_memo, rebuilt
from open_idempotency.exceptions import OutcomeUnknown, RecordUnreadable, StageValueError

#: the headers of a stored result: the kind of its body, and the type of a result that could not be stored
KIND, TYPE = b"idempotency-once", b"idempotency-once-type"
_KINDS = {StageKind.VALUE: b"value", StageKind.TYPED: b"typed", StageKind.ERROR: b"error"}
_BY_NAME = {name: kind for kind, name in _KINDS.items()}
_NOT_KEPT = b"not-kept"

#: what to do if a result cannot be stored
CURE = (
    "return JSON, or a value of the type that the function's return annotation or returns= declares, of at most "
    "max_response_bytes"
)
ERROR_CURE = "let the error's args be JSON, and pass all of them to Exception.__init__"


@dataclass(frozen=True, slots=True)
class Kept:
    """A result in its stored form.

    ``value``: the result as a later call will get it; the result itself if it cannot be stored.
    ``missing``: the name of its type if it cannot be stored; ``cure``: what to do then.
    """

    response: Response
    value: Any
    missing: str = ""
    cure: str = ""


@dataclass(frozen=True, slots=True)
class Converter:
    """How results of one function are stored. ``errors``: the classes of errors that are results (``memo_errors``)."""

    returns: object = None
    errors: Errors = ()

    @classmethod
    def of(cls, function: Callable[..., Any] | None, returns: object, errors: Any) -> Converter:
        """The converter of a function, by ``returns`` or its return annotation.

        Raises ``StageValueError``, before any effect, for a declared type of which no value can be stored;
        ``TypeError`` for wrong ``errors``.
        """
        if isinstance(errors, type) or not all(isinstance(e, type) and issubclass(e, Exception) for e in errors):
            raise TypeError("memo_errors= takes a tuple of exception classes, such as (CardDeclined,)")
        declared = declared_type(function) if returns is None and function is not None else returns
        try:
            values.check(declared)
        except StageValueError as error:
            hidden = isinstance(error, values.HiddenSecret)
            instead = values.UNMASKED if hidden else "return a text, a number or an id of it"
            raise StageValueError(
                f"no result of the declared type {error.kind} can be stored; {instead}, or pass returns= if the "
                "function returns something else",
                error.kind,
                _cure_of(error),
            ) from None
        return cls(declared, tuple(errors))

    def keep(self, value: object, max_bytes: int) -> Kept:
        """The stored form of a value."""
        try:
            return self.keep_strictly(value, max_bytes)
        except StageValueError as error:
            return _without(value, error.kind or type(value).__name__, _cure_of(error))

    def keep_strictly(self, value: object, max_bytes: int) -> Kept:
        """The stored form of a value. Raises ``StageValueError`` for a value that cannot be stored or read back."""
        kind, payload = values.encode(value, self.returns, max_bytes)
        # Read back before it is recorded: a stored result never changes, even if it is unreadable.
        return Kept(_response(kind, payload), values.decode(kind, payload, self.returns))

    def keep_error(self, error: Exception, max_bytes: int) -> Kept:
        """The stored form of an error that is a result, so that later calls raise it again."""
        named = next(kind for kind in type(error).__mro__ if kind in self.errors)
        try:
            _, payload = values.encode([named.__name__, list(error.args)], None, max_bytes)
            rebuilt(named, read_memo(payload)[1])
        except StageValueError:
            return _without(error, type(error).__name__, ERROR_CURE)
        return Kept(_response(StageKind.ERROR, payload), error)

    def read(self, stored: Response) -> Any:
        """The result in a stored response; raises the error that is the result.

        Raises ``OutcomeUnknown`` if it could not be stored, and ``StageValueError`` if it no longer fits its declared
        type.
        """
        if stored.body is None:
            kind = _header(stored, TYPE).decode("ascii", "replace")
            raise OutcomeUnknown(
                f"this was carried out, and its result{f' ({kind})' if kind else ''} could not be stored; it is not "
                f"run again. For the next ones {CURE}"
            )
        found = _BY_NAME.get(_header(stored, KIND))
        if found is None:
            raise RecordUnreadable("the record of this key has no result of Once, or one of a newer version")
        if found is not StageKind.ERROR:
            return values.decode(found, stored.body, self.returns)
        name, arguments = read_memo(stored.body)
        for named in self.errors:
            if named.__name__ == name:
                raise rebuilt(named, arguments)
        raise StageValueError(f"the result is a {name}; name that class in memo_errors= to have it raised again")


def _response(kind: StageKind, payload: bytes) -> Response:
    return Response(200, [(KIND, _KINDS[kind])], payload)


def _cure_of(error: StageValueError) -> str:
    return values.UNMASKED if isinstance(error, values.HiddenSecret) else CURE


def _without(value: object, name: str, cure: str) -> Kept:
    """The stored form of a result that cannot be stored: only its type (S-02a)."""
    headers = [(KIND, _NOT_KEPT), (TYPE, name[:200].encode("ascii", "backslashreplace").replace(b"\n", b" "))]
    return Kept(Response(200, headers, None), value, name, cure)


def _header(stored: Response, wanted: bytes) -> bytes:
    return next((value for name, value in stored.headers if name == wanted), b"")
