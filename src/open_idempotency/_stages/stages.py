"""One use of one stage: its record, and the steps that record it, for sync and async callers.

``idem`` carries out these steps. Memoised errors are recorded by class name and arguments. They are rebuilt only as one
of the classes that the caller names.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

from open_idempotency import events
from open_idempotency._core import intents
from open_idempotency._core.attempt import Attempt, StageId
from open_idempotency._core.commands import Steps
from open_idempotency._core.models import Stage
from open_idempotency._core.notify import warn
from open_idempotency._core.recording import make_sure, save_stage
from open_idempotency._core.stored_response import StageKind, decode_stage, encode_stage
from open_idempotency._runtime import clocks
from open_idempotency._stages import values
from open_idempotency._stages.annotations import declared_type
from open_idempotency.exceptions import NotStarted, RecordTooLarge, RecordUnreadable, StageValueError
from open_idempotency.ledger.steps import find_stage
from open_idempotency.ledger.steps import save_stage as save_in_transaction
from open_idempotency.ledger.transactions import transaction_of

Errors = tuple[type[Exception], ...]
Reconcile = Callable[..., intents.Reconciled | Awaitable[intents.Reconciled]]

MAX_NAME_CHARACTERS = 200
_SAVE_AN_ID = "save a text, a number or an id"
_NOT_TAKEN = (
    "if HookFailed says that encryption= could not seal it, repair that; if BackendFailed says that the backend "
    "refused its size, save a shorter value"
)


class _Unset(Enum):
    """The default of ``default=``."""

    UNSET = "UNSET"


_VALUES = (StageKind.VALUE, StageKind.TYPED)
#: no ``default=`` was given; None would be one
UNSET = _Unset.UNSET


def stage_id(name: str, key: str | int | None) -> StageId:
    """The (name, key) by which a stage is known. Raises ``StageValueError`` for an invalid one."""
    text = "" if key is None else _spelled(key)
    if not isinstance(name, str) or not name:
        raise StageValueError(f"a stage name must be a non-empty string, not {name!r}")
    if key is not None and not text:
        raise StageValueError(f"the key of stage {name!r} is empty; leave key= away, or give it a value")
    for part in (name, text):
        if len(part) > MAX_NAME_CHARACTERS or not (part.isprintable() or not part):
            raise StageValueError(f"stage names and keys have at most {MAX_NAME_CHARACTERS} printable characters")
    return name, text


def _spelled(key: str | int) -> str:
    try:
        return str(key)
    except ValueError as error:  # Python refuses to convert a number with thousands of digits
        raise StageValueError(
            f"stage names and keys have at most {MAX_NAME_CHARACTERS} printable characters"
        ) from error


@dataclass(frozen=True, slots=True)
class Terms:
    """The arguments of ``Idem.stage`` except name and key. Raises ``TypeError`` if they contradict each other."""

    returns: object = None
    memo_errors: Errors = ()
    external: bool = False
    on_doubt: intents.OnDoubt | None = None
    reconcile: Reconcile | None = None
    not_done: Errors = ()
    tx: object = None
    default: object = UNSET

    def __post_init__(self) -> None:
        if self.on_doubt not in (None, "raise", "rerun"):
            raise TypeError(f"on_doubt must be 'raise' or 'rerun', not {self.on_doubt!r}")
        if self.reconcile is not None:
            if not callable(self.reconcile):
                raise TypeError(f"reconcile must be callable, not {self.reconcile!r}")
            if self.on_doubt is not None:
                raise TypeError("give on_doubt= or reconcile=, not both: if there is a reconcile=, it decides")
        if not self.records_intent and (self.on_doubt is not None or self.not_done):
            raise TypeError("on_doubt= and not_done= belong to external=True: without an intent no stage is in doubt")
        if self.tx is not None and (self.records_intent or self.memo_errors or self.default is not UNSET):
            raise TypeError(
                "a stage with tx= commits or rolls back as a whole, so it takes no external=, reconcile=, default= or "
                "memo_errors="
            )

    @property
    def records_intent(self) -> bool:
        """Whether the stage is put on record before it runs, so that a later attempt knows that it was begun."""
        return self.external or self.reconcile is not None

    @property
    def foresees(self) -> bool:
        """Whether they say what later attempts get if the value cannot be stored."""
        return self.default is not UNSET or self.reconcile is not None

    @property
    def begins(self) -> bool:
        """Whether something must be read or recorded before the stage runs."""
        return self.tx is not None or self.records_intent


PLAIN = Terms()


def refuse_shared_names(stage: str, function: object, key: object, terms: Terms) -> None:
    """Raise ``TypeError`` if an argument may be meant for the stage or for the function that it calls.

    The stage would take it, so a ``key`` for a payment provider would not arrive there.
    """
    given = {field.name for field in fields(terms) if getattr(terms, field.name) is not field.default}
    if key is not None:
        given.add("key")
    if not given:
        return
    try:
        taken = given & inspect.signature(function).parameters.keys()  # type: ignore[arg-type]  # reported below
    except (TypeError, ValueError):  # not callable, which the call reports; or a callable without a signature
        return
    if isinstance(function, functools.partial):
        taken -= function.keywords.keys()
    for name in sorted(taken):
        raise TypeError(
            f"stage {stage!r}: {name}= is an argument of the stage, and of the function too; give the function its own "
            f"with functools.partial(function, {name}=...)"
        )


class StageUse:
    """A stage that a running attempt has entered, with its terms."""

    __slots__ = ("_attempt", "_errors", "_found", "_frame", "_function", "_returns", "_terms", "_transaction", "id")

    def __init__(
        self, attempt: Attempt, stage: StageId, terms: Terms = PLAIN, function: Callable[..., Any] | None = None
    ) -> None:
        if attempt.lease is None and attempt.policy.strict_stages:
            raise NotStarted("this request has no idempotency key, and strict_stages asks for one")
        attempt.check_running()
        self._attempt = attempt
        self._terms = terms
        self._errors = terms.memo_errors
        self._returns = terms.returns
        self._function = function
        # Made without a lease too, so that a wrong transaction is reported for requests without a key.
        transaction = None if terms.tx is None else transaction_of(terms.tx)
        #: None also without a lease, where a stage runs unrecorded
        self._transaction = None if attempt.lease is None else transaction
        self._frame = attempt.stages.get(stage)
        #: the substitute for a value that was not stored
        self._found: intents.Found[Any] | None = None
        self.id = stage
        if self._frame is None and not terms.foresees:
            self._check_declared()
        attempt.enter(stage)

    @property
    def awaited(self) -> bool | None:
        """Whether the caller's transaction is async; None without one."""
        return None if self._transaction is None else self._transaction.awaited

    @property
    def done(self) -> bool:
        """Whether the stage is on record already."""
        return self._frame is not None

    @property
    def begins(self) -> bool:
        """Whether ``begin`` has something to read or to record."""
        if self._frame is None:
            return self._terms.begins or self._unsure
        return self._terms.tx is not None or decode_stage(self._frame)[0] is StageKind.NOT_KEPT

    @property
    def _unsure(self) -> bool:
        """Whether the lease may have ended unnoticed, so that ``begin`` must query its owner before the effect."""
        return self._frame is None and clocks.elapsed() > self._attempt.sure_until

    def recall(self) -> Any:
        """The recorded value; raises the recorded error."""
        if self._found is not None:
            return self._found.value
        assert self._frame is not None
        return read_frame(self._frame, self._declared(), self._errors)

    def begin(self, inquire: intents.Inquiry | None) -> Steps[None]:
        """Steps to take before the effect: they record its intent (S-04), or read the ledger (S-05).

        ``inquire`` queries the other system about an earlier use that is in doubt; if its effect has happened, the
        stage is ``done`` afterwards. For a stage that is done without its value they find a substitute (S-02a), or
        raise ``OutcomeUnknown``.
        """
        if self._unsure:
            yield from make_sure(self._attempt)
        if self._transaction is not None:
            self._frame = yield from find_stage(self._transaction, self._attempt, self.id)
        if self._frame is not None:
            kind, payload = decode_stage(self._frame)
            if kind is StageKind.NOT_KEPT:
                self._found = yield from self._stand_in(payload, inquire)
            return
        if not self._terms.records_intent:
            return
        found = yield from intents.begin(self._attempt, self.id, self._terms.on_doubt or "raise", inquire)
        if found is not None:
            self._found = intents.Found((yield from self.save(found.value)))

    def withdraw(self) -> Steps[None]:
        """Steps that withdraw the intent, since the effect has not happened."""
        yield from intents.withdraw(self._attempt, self.id)

    def save(self, value: object) -> Steps[Any]:
        """Steps that record a value; their result is the value on record, as a later attempt will see it.

        If the value cannot be stored, the stage is recorded as done without it, since its effect has happened; then the
        result is the value itself. In a transaction ``StageValueError`` is raised instead, so that the effect is rolled
        back.
        """
        declared = self._declared()
        try:
            kind, payload = values.encode(value, declared, self._attempt.policy.max_stage_bytes)
            # Read back before it is recorded: a saved value never changes, even if it is unreadable.
            readable = values.decode(kind, payload, declared)
        except StageValueError as error:
            if self._terms.tx is not None:
                raise self._named(error) from error
            return self._save_without(value, error, raised=False)
        return self._save_value(encode_stage(kind, payload), readable, declared)

    def save_error(self, error: Exception) -> Steps[Any]:
        """Steps that record an error, so that later attempts raise it again (``memo_errors``).

        An error of a subclass comes back as the class that the caller named. An error that cannot be rebuilt is not
        stored.
        """
        named = next(kind for kind in type(error).__mro__ if kind in self._errors)
        try:
            memo = [named.__name__, list(error.args)]
            _, payload = values.encode(memo, None, self._attempt.policy.max_stage_bytes)
            rebuilt(named, read_memo(payload)[1])
        except StageValueError as refused:
            return self._save_without(error, refused, raised=True)
        return self._save_memo(encode_stage(StageKind.ERROR, payload), error)

    def _save_without(self, value: object, error: StageValueError, raised: bool) -> Steps[Any]:
        """Record that the stage is done, without its value, and report it once."""
        name = type(value).__name__ if raised or not error.kind else error.kind
        if raised:
            cure = "let its args be JSON and pass all of them to Exception.__init__, or give reconcile="
        else:
            cure = error.cure or f"{_SAVE_AN_ID}, or return a value of the declared type"
        yield from self._save(_done_without(name, raised))
        if not self._has_no_value:  # another use recorded it first
            assert self._frame is not None
            return read_frame(self._frame, self._declared(), self._errors)
        return (yield from self._live(value, name, cure, raised))

    @property
    def _has_no_value(self) -> bool:
        return self._frame is not None and decode_stage(self._frame)[0] is StageKind.NOT_KEPT

    def _live(self, value: object, name: str, cure: str, raised: bool) -> Steps[Any]:
        """The value, which only this attempt has. Reported once."""
        attempt = self._attempt
        attempt.kept_live(self.id, value)
        if self._terms.reconcile is None and (raised or self._terms.default is UNSET):
            record = "" if attempt.lease is None else events.short(attempt.lease.record_id)
            yield from warn(attempt.policy, events.StageValueNotKept(record, self.id[0], name, cure), attempt)
        return value

    def _save_value(self, frame: bytes, readable: object, declared: object) -> Steps[Any]:
        yield from self._save(frame, readable)
        assert self._frame is not None
        if self._frame == frame:
            return readable
        if self._has_no_value:
            return (yield from self._live(readable, type(readable).__name__, _NOT_TAKEN, raised=False))
        return read_frame(self._frame, declared, self._errors)

    def _save_memo(self, frame: bytes, error: Exception) -> Steps[Any]:
        yield from self._save(frame, error, raised=True)
        if self._frame != frame and self._has_no_value:
            yield from self._live(error, type(error).__name__, _NOT_TAKEN, raised=True)

    def _save(self, frame: bytes, value: object = None, raised: bool = False) -> Steps[None]:
        """Record a frame; if it cannot be sealed or stored, only that the stage is done. ``value``: its value."""
        if self._transaction is not None:
            yield from save_in_transaction(self._transaction, self._attempt, self.id, frame)
            self._frame = frame
            return
        done = None if self._attempt.policy.encryption is None else _done_without(type(value).__name__, raised)
        try:
            self._frame = yield from save_stage(self._attempt, Stage(*self.id, frame), done)
        except RecordTooLarge:  # the effect has happened, and no retry could record its value either
            without = _done_without(type(value).__name__, raised)
            self._frame = yield from save_stage(self._attempt, Stage(*self.id, without))

    def leave(self) -> None:
        """Leave the stage unrecorded. It may be entered again within this attempt."""
        self._attempt.leave(self.id)

    def _declared(self) -> object:
        if self._returns is None and self._function is not None:
            self._returns = declared_type(self._function)
        return self._returns

    def _check_declared(self) -> None:
        try:
            values.check(self._declared())
        except StageValueError as error:
            raise self._named(error) from error

    def _named(self, error: StageValueError) -> StageValueError:
        return StageValueError(f"stage {self.id[0]!r}: {error}", error.kind, error.cure)

    def _stand_in(self, payload: bytes, inquire: intents.Inquiry | None) -> Steps[intents.Found[Any]]:
        """The substitute for a value that was not stored. An error has no default, since it was not a success."""
        kind, raised = _not_kept(payload)
        default = self._terms.default
        given = None if raised or default is UNSET else intents.Found(default)
        return (yield from intents.without_value(self._attempt, self.id, kind, inquire, given))


def read_frame(frame: bytes, declared: object, errors: Errors = ()) -> Any:
    """The value in a stage frame. Raises the error that a frame holds."""
    kind, payload = decode_stage(frame)
    if kind in _VALUES:
        return values.decode(kind, payload, declared)
    name, arguments = read_memo(payload)
    for named in errors:
        if named.__name__ == name:
            raise rebuilt(named, arguments)
    raise StageValueError(f"the stage recorded a {name}; name that class in memo_errors= to have it raised again")


def loaded(attempt: Attempt, stage: StageId, default: Any, returns: object) -> Any:
    """The value of a stage on record, or ``default``. Raises ``OutcomeUnknown`` if the value was not stored."""
    frame = attempt.stages.get(stage)
    if frame is None:
        return default
    if stage in attempt.live:
        return attempt.live[stage]
    kind, payload = decode_stage(frame)
    if kind is StageKind.NOT_KEPT:
        raise intents.no_value(attempt, stage, _not_kept(payload)[0])
    return read_frame(frame, returns)


def plain_value(frame: bytes) -> Any:
    """The content of a stage frame as plain JSON; for a memoised error its class name and arguments."""
    kind, payload = decode_stage(frame)
    if kind in _VALUES:
        return values.decode(StageKind.VALUE, payload, None)
    if kind is StageKind.NOT_KEPT:
        return {"not_kept": _not_kept(payload)[0]}
    name, arguments = read_memo(payload)
    return {"error": name, "arguments": arguments}


def _done_without(name: str, raised: bool) -> bytes:
    """The frame for a value of this type, or an error, that could not be stored."""
    return encode_stage(StageKind.NOT_KEPT, json.dumps({"type": name, "raised": raised}).encode())


def _not_kept(payload: bytes) -> tuple[str, bool]:
    """The name of the type that could not be stored, and whether it was raised."""
    try:
        memo = json.loads(payload)
        return str(memo["type"]), bool(memo["raised"])
    except (TypeError, ValueError, KeyError, RecursionError) as error:
        raise RecordUnreadable("a stage without its value cannot be read") from error


def read_memo(payload: bytes) -> tuple[str, list[Any]]:
    """The class name and the arguments of a memoised error. Raises ``RecordUnreadable``."""
    try:
        name, arguments = json.loads(payload)
    except (TypeError, ValueError, RecursionError) as error:
        raise RecordUnreadable("a memoised error cannot be read") from error
    if not isinstance(name, str) or not isinstance(arguments, list):
        raise RecordUnreadable("a memoised error cannot be read")
    return name, arguments


def rebuilt(kind: type[Exception], arguments: list[Any]) -> Exception:
    """A memoised error, rebuilt. Raises ``StageValueError`` if its class does not take its own arguments."""
    try:
        return kind(*arguments)
    except Exception as error:
        raise StageValueError(
            f"the recorded {kind.__name__} cannot be rebuilt from its args; pass all of them to Exception.__init__"
        ) from error


def is_coroutine_function(function: Callable[..., Any]) -> bool:
    """Whether a call returns a coroutine, also for partials and callable objects."""
    target: Any = getattr(function, "func", function)
    return inspect.iscoroutinefunction(target) or inspect.iscoroutinefunction(type(target).__call__)
