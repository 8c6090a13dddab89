"""One call of ``Once``, sync and async: ``Once.begin`` returns it, and ``run``, ``arun`` and the decorator use it.

It carries out the steps of ``_core.once``, binds the running attempt, and turns responses into results. The core makes
the decisions.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import dataclass
from enum import Enum
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from open_idempotency import events
from open_idempotency._core.attempt import Attempt, End
from open_idempotency._core.commands import Steps
from open_idempotency._core.keys import digest
from open_idempotency._core.models import Response
from open_idempotency._core.notify import warn
from open_idempotency._core.once import Entry, abort_call, admit_call, finish_call, make_sure_of
from open_idempotency._core.settlement import REPLACED
from open_idempotency._core.stored_response import StageKind
from open_idempotency._engine import shutdown, thread_calls
from open_idempotency._engine.engine import AsyncPerformer, Engine, Performer, Running, running
from open_idempotency._runtime import clocks
from open_idempotency._stages import values
from open_idempotency._stages.annotations import declared_type, is_model, masks, scalar_of
from open_idempotency._stages.blocks import refuse_loop
from open_idempotency._stages.stages import Errors, read_memo, rebuilt
from open_idempotency.exceptions import (
    ConfigurationError,
    KeyNested,
    OutcomeUnknown,
    PayloadRejected,
    RecordUnreadable,
    StageValueError,
    SyncAsyncMismatch,
)

if TYPE_CHECKING:
    from open_idempotency._engine.cancellation import Hold
    from open_idempotency._engine.cancellation_on_trio import TrioHold

_AWAITED = "`await once.arun(...)` or `async with once.begin(...)`"


class SyncPerformers(NamedTuple):
    """For a sync call: coroutines in it live on short-lived event loops, so they reach the backend through threads."""

    sync: Performer
    aio: AsyncPerformer


class OnceAttempt:
    """One piece of work by hand: see ``Once.begin``. Enter it once, with ``with`` or ``async with``."""

    __slots__ = (
        "_attempt", "_before", "_converter", "_engine", "_entered", "_entry", "_kept", "_requests", "_stored",
        "_threaded", "_ticket", "_where",
    )  # fmt: skip

    def __init__(self, engine: Engine, threaded: SyncPerformers, entry: Entry, converter: Converter) -> None:
        self._engine = engine
        self._threaded = threaded
        self._entry = entry
        self._converter = converter
        self._where = f"Once {entry.name!r}"
        self._entered = False
        # The caller that takes it may enter. Two claims of one owner would count as one claim that was sent twice.
        self._ticket = [None]
        #: None before the claim, and if the work was done before
        self._attempt: Attempt | None = None
        #: the request or call that was current before
        self._before: Running | None = None
        self._requests: set[shutdown.Protected] | None = None
        #: the given result, as it will be stored
        self._kept: Kept | None = None
        #: the stored result, if it is not of this attempt
        self._stored: Response | None = None

    # The public part

    @property
    def done(self) -> bool:
        """Whether the work was done before, so that it must not be done again. Raises ``RuntimeError`` before entry."""
        self._check_entered()
        return self._attempt is None

    @property
    def result(self) -> Any:
        """The result on record, or the one given to ``complete``, as a later call will get it.

        Raises the error that is the result (``memo_errors``), ``OutcomeUnknown`` if the work was done and its result
        could not be stored, and ``RuntimeError`` if there is no result yet.
        """
        self._check_entered()
        if self._stored is not None:
            return self._converter.read(self._stored)
        if self._kept is None:
            raise RuntimeError(f"{self._where}: there is no result yet; pass it to complete(result) first")
        return self._kept.value

    def complete(self, result: Any = None) -> None:
        """Set the result. It is recorded at the end of the block, unless the block raises.

        Raises ``RuntimeError`` if the work was done before, or a result was set already.
        """
        if self.done:
            raise RuntimeError(f"{self._where}: this was done before; check `if not attempt.done:` before the work")
        if self._kept is not None:
            raise RuntimeError(f"{self._where}: a result was set already")
        self._kept = self._keep(result)

    @property
    def attempt(self) -> Attempt | None:
        """The running attempt, for the shutdown of a server; not for applications."""
        return self._attempt

    def _check_entered(self) -> None:
        if not self._entered:
            raise RuntimeError(f"{self._where}: not entered; use it as `with once.begin(...) as attempt:`")

    def _keep(self, result: Any) -> Kept:
        assert self._attempt is not None
        most = self._attempt.policy.max_response_bytes
        ledger = self._attempt.ledger
        committed = None if ledger is None else ledger.stored
        if ledger is None or committed is None:
            return self._converter.keep(result, most)
        if result is None:
            return Kept(committed.response, self._converter.read(committed.response))
        kept = self._converter.keep(result, most)
        if kept.response != committed.response and ledger.end() is not End.ROLLED_BACK:
            raise ConfigurationError(
                f"{self._where}: another result was passed to respond() of idem.atomic, and is committed; return that "
                "one, or nothing"
            )
        return kept

    # Steps that both shells carry out

    def _check_entry(self) -> None:
        if not self._ticket:
            raise self._used()
        self._before = running.get()
        if self._before is not None and self._before[0].runs(self._entry.claim.record_id):
            raise KeyNested(
                f"{self._where}: this key is used inside its own call, which would wait for itself; give the inner "
                "work another key or another scope, or make it a stage: idem.run(name, function)"
            )
        try:
            self._ticket.pop()
        except IndexError:  # another thread was faster
            raise self._used() from None

    def _used(self) -> RuntimeError:
        return RuntimeError(f"{self._where}: entered already; call once.begin(...) for each use")

    def _admit(self) -> Steps[Attempt | Response]:
        return admit_call(self._entry, self._engine.policy)

    def _take(self, admission: Attempt | Response) -> Attempt | None:
        """Note the admission. Returns the attempt, or None if there is a result already."""
        self._entered = True
        if isinstance(admission, Response):
            self._stored = admission
            return None
        self._attempt = admission
        outer = None if self._before is None else self._before[0]
        admission.begin_call(outer, partial(_response_of, self._converter, admission.policy.max_response_bytes))
        return admission

    def _unsure(self, attempt: Attempt) -> bool:
        return attempt.lease is not None and clocks.elapsed() > attempt.sure_until

    def _stand_in(self, attempt: Attempt, response: Response | None) -> bool:
        """Use the result of another attempt, before the work begins. Returns whether there is one."""
        if response is None:
            return False
        self._engine.heartbeat.forget(attempt)
        self._attempt, self._stored = None, response
        return True

    def _ending(self, error: BaseException | None) -> Steps[bool]:
        """Settle the attempt. Returns whether a result on record stands for the error."""
        attempt = self._attempt
        assert attempt is not None
        if error is None and self._kept is None:
            raise_after = ConfigurationError(
                f"{self._where}: the block ended without a result; pass it to attempt.complete(result), or raise"
            )
            yield from abort_call(attempt, raise_after)
            raise raise_after
        if error is None:
            assert self._kept is not None
            yield from self._finish(attempt, self._kept)
            return False
        if isinstance(error, self._converter.errors) and isinstance(error, Exception):
            yield from self._finish(attempt, self._converter.keep_error(error, attempt.policy.max_response_bytes))
            return self._stored is not None
        stored = yield from abort_call(attempt, error)
        if stored is None or not isinstance(error, REPLACED):
            return False
        self._stored = stored
        return True

    def _finish(self, attempt: Attempt, kept: Kept) -> Steps[None]:
        if kept.missing:
            record = "" if attempt.lease is None else events.short(attempt.lease.record_id)
            yield from warn(attempt.policy, events.ResultNotKept(record, self._entry.name, kept.missing, kept.cure))
        counts = yield from finish_call(attempt, kept.response)
        if counts != kept.response:
            self._stored = counts

    # Entering and leaving, sync

    def __enter__(self) -> OnceAttempt:
        refuse_loop(self._where, _AWAITED)
        self._check_entry()
        sync = self._engine.sync
        attempt = self._take(sync.run(self._admit()))
        if attempt is None:
            return self
        try:
            while self._unsure(attempt):
                if self._stand_in(attempt, sync.run(make_sure_of(attempt))):
                    return self
        except BaseException:
            self._engine.heartbeat.forget(attempt)
            raise
        running.set((attempt, self._threaded))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if self._attempt is None:
            return False
        running.set(self._before)
        try:
            return self._engine.sync.run(self._ending(error))
        finally:
            self._engine.heartbeat.forget(self._attempt)

    # Entering and leaving, async

    async def __aenter__(self) -> OnceAttempt:
        self._check_entry()
        aio = self._engine.aio
        self._requests = shutdown.enter(self)
        try:
            attempt = self._take(await aio.run(self._admit()))
            if attempt is None:
                self._leave_requests()
                return self
            while self._unsure(attempt):
                if self._stand_in(attempt, await aio.run(make_sure_of(attempt))):
                    self._leave_requests()
                    return self
        except BaseException:
            self._leave_requests()
            if self._attempt is not None:
                self._engine.heartbeat.forget(self._attempt)
            raise
        if thread_calls.pending:
            thread_calls.hook()
        running.set((attempt, self._engine))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if self._attempt is None:
            return False
        running.set(self._before)
        guarded = error is not None and not isinstance(error, Exception)
        try:
            return await self._engine.aio.run(self._ending(error), guarded=guarded)
        finally:
            self._engine.heartbeat.forget(self._attempt)
            self._leave_requests()

    def _leave_requests(self) -> None:
        if self._requests is not None:
            self._requests.discard(self)

    # Around a function

    def run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function unless it was carried out before. Returns its result."""
        with self:
            if not self.done:
                self.complete(self._called(function, args, kwargs))
        return self.result

    def _called(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = function(*args, **kwargs)
        if inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()
            raise SyncAsyncMismatch(f"{self._where}: the function returned an awaitable; use `await once.arun(...)`")
        return result

    async def arun(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """``run``, async. A cancellation waits for the functions that it runs in threads (L-09)."""
        await self.__aenter__()
        if self._attempt is None:
            return self.result
        from open_idempotency._engine.cancellation import hold_for  # it needs asyncio, which the package does not load

        hold = hold_for(self._attempt) if self._attempt.lease is not None else None
        steps = self._carry_out(hold, function, args, kwargs)
        await (steps if hold is None else hold.run(steps))
        return self.result

    async def _carry_out(
        self, hold: Hold | TrioHold | None, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        try:
            result = function(*args, **kwargs)
            self.complete(await result if inspect.isawaitable(result) else result)
        except BaseException as error:
            if not await self.__aexit__(type(error), error, error.__traceback__):
                raise
            return
        if hold is not None:
            hold.recording = True
        await self.__aexit__(None, None, None)
        if hold is not None:
            await hold.release()


def _response_of(converter: Converter, most: int, result: object) -> Response:
    return converter.keep_strictly(result, most).response


# The stored form of a ``Once`` result, by declared type, like that of a stage value.
# A result is stored as a ``Response`` with the JSON text as its body, so that backends, the ledger, encryption and
# operations can handle it. One header says what the text is.

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
                f"run again. For later calls {CURE}"
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


# The payload of a ``Once`` call, by which two calls with one key are compared.
# By default it is the arguments, by the names of their parameters, so that positional and keyword arguments are the
# same. It is compared as a digest of canonical JSON: member order does not count, ``1`` is not ``1.0``. Dataclasses,
# pydantic models, dates, decimals, UUIDs, bytes and enums are written as stage values are.

#: the first byte of a fingerprint is the version of these rules; a stored one of another version never matches
VERSION = b"\x01"
_PARAMETER = b"once"
_MOST_DEPTH = 100


class Unset(Enum):
    """The default of ``payload=``."""

    UNSET = "UNSET"


#: no ``payload=`` was given; None means that only the key is compared
UNSET = Unset.UNSET


def arguments_of(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by the names of their parameters. Raises ``TypeError`` if they do not fit."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a function in C without one
        return {"args": list(args), "kwargs": dict(kwargs)}
    bound = signature.bind(*args, **kwargs)
    return dict(bound.arguments)


def fingerprint_of(payload: object, secret: bytes | None, what: str) -> bytes:
    """The fingerprint of a payload: 33 bytes. ``what``: the call, for the error. Raises ``PayloadRejected``."""
    try:
        text = json.dumps(_plain(payload, 0), allow_nan=False, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    except Exception as error:  # a class of the application's may raise anything
        reason = error if isinstance(error, _NotJson) else f"{type(error).__name__}"
        raise PayloadRejected(
            f"{what}: the payload is not JSON ({reason}); pass payload= with the values to compare, such as "
            "payload={'order': order.id}, or payload=None to compare only the key"
        ) from error
    return VERSION + digest(secret, _PARAMETER, text.encode())


class _NotJson(TypeError):
    """Why a payload is not JSON. The message contains no value."""


def _plain(value: Any, depth: int) -> object:
    """The JSON form of a value. Raises ``_NotJson``, and whatever an application's class raises."""
    if depth > _MOST_DEPTH:
        raise _NotJson(f"nested deeper than {_MOST_DEPTH}")
    kind = type(value)
    if value is None or kind in (str, int, bool):
        return value
    if kind is float:
        if not math.isfinite(value):
            raise _NotJson("NaN and infinities are not in JSON")
        return value
    scalar = scalar_of(kind)
    if scalar is not None:
        return scalar.plain(value)
    if is_model(kind):
        in_python, dumped = value.model_dump(), value.model_dump(mode="json")
        if masks(in_python, dumped):
            raise _NotJson(f"{kind.__name__} hides a secret, so two of them would be the same")
        return _plain(_in_order(in_python, dumped), depth + 1)
    if dataclasses.is_dataclass(kind):
        return {f.name: _plain(getattr(value, f.name), depth + 1) for f in dataclasses.fields(kind)}
    if isinstance(value, str | int | float):  # of a subclass
        return _plain(next(base for base in (str, int, float) if isinstance(value, base))(value), depth + 1)
    if isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, Mapping):
        return _members(value, depth)
    raise _NotJson(f"a {kind.__name__} has no JSON form")


def _in_order(value: Any, dumped: Any) -> Any:
    """The JSON form of a value, with the items of sets sorted: a set of texts has another order in each process."""
    if not isinstance(value, Collection) or not isinstance(dumped, dict | list) or len(value) != len(dumped):
        return dumped
    if isinstance(dumped, dict):
        items = zip(dumped.items(), value.values() if isinstance(value, Mapping) else dumped.values(), strict=True)
        return {name: _in_order(item, written) for (name, written), item in items}
    if isinstance(value, Set):
        # Which item of the set an item of the list was is not known, but all are of one kind.
        example = next(iter(value), None)
        return sorted((_in_order(example, item) for item in dumped), key=partial(json.dumps, sort_keys=True))
    return [_in_order(item, written) for item, written in zip(value, dumped, strict=True)]


def _members(value: Mapping[Any, Any], depth: int) -> dict[str, object]:
    for name in value:
        if not isinstance(name, str):
            raise _NotJson(f"a member name is of type {type(name).__name__}, not a string")
    return {str(name): _plain(item, depth + 1) for name, item in value.items()}
