"""``Once``: the guarantee of the middleware for functions, queue messages, webhooks and jobs, without HTTP.

A piece of work has a key, such as the id of its order. However often it is called with that key, in any process, it is
carried out once, and each call gets the same result. The next call resumes a call that died: its stages are not
repeated. Inside, ``idem`` works as in a request.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from math import isfinite
from typing import Any, TypeVar, cast

from open_idempotency._core.commands import Call, Claim, Forget, Free, Get, Steps, Unreserve, ask
from open_idempotency._core.intents import is_intent
from open_idempotency._core.keys import about_work, record_id, scope_id
from open_idempotency._core.models import Freed, Lease, Record, Request, Status
from open_idempotency._core.once import Entry
from open_idempotency._core.stored_response import unseal_stage
from open_idempotency._engine.engine import Engine, new_owner
from open_idempotency._runtime import loops, processes
from open_idempotency._stages.blocks import needs_loop, refuse_loop
from open_idempotency._stages.once_calls import (
    UNSET,
    Converter,
    OnceAttempt,
    SyncPerformers,
    arguments_of,
    fingerprint_of,
)
from open_idempotency._stages.stages import Errors, is_coroutine_function, plain_value
from open_idempotency.backends._shared.one_process import warn_of_other_processes
from open_idempotency.backends.registry import Given
from open_idempotency.exceptions import ConfigurationError, InProgress, KeyRejected, SyncAsyncMismatch
from open_idempotency.idem import RecordedStage
from open_idempotency.policy import FIELD_NAMES, refuse_unknown

__all__ = ["Once", "OnceAttempt", "OnceStatus"]

F = TypeVar("F", bound=Callable[..., Any])
Seconds = float | int | timedelta

#: the fields of a policy that apply without HTTP
FIELDS = frozenset(
    {
        "application", "enabled", "encryption", "fail_open", "lease", "ledger", "max_attempts", "max_live_keys",
        "max_response_bytes", "max_run", "max_stage_bytes", "max_waiting", "on_abandoned", "on_event", "on_failed",
        "plain_records", "record_within", "respond_within", "secret", "strict_stages", "ttl", "wait",
    }
)  # fmt: skip
_INSTEAD = {
    "error_ttl": "an error that is a result (memo_errors=) is stored for ttl; leave it out",
    "fingerprint": "payload= says what is compared; leave it out",
    "max_wait": "a call waits for wait= seconds; leave it out",
    "store": "an error that is a result is named by memo_errors=, and idem.discard() stores no result; leave it out",
}
# No limit is needed: each waiting call has its own thread or task, and its caller has asked for it.
_WAITING = 1_000_000
#: part of the digest of the scope, so that no caller of a request shares records with a Once
_KIND = "once:"
# What `record_id` reads of a request only with scope_by_route, which no Once has.
_NO_REQUEST = Request("ONCE", b"", b"", (), None)


@dataclass(frozen=True, slots=True)
class OnceStatus:
    """The record of one key.

    ``status``: ``Status.NONE`` without a record. ``attempt``: how many attempts there were. ``stages``: their recorded
    stages, in order. ``alive``: an attempt holds the key now. ``abandoned``: its worker died, so the next call takes
    over. Both use the backend's clock. ``final``: the work failed and is not run again (``on_failed="reject"``). Since
    0.1.
    """

    status: Status = Status.NONE
    attempt: int = 0
    stages: tuple[RecordedStage, ...] = ()
    alive: bool = False
    abandoned: bool = False
    final: bool = False


class Once:
    """Carries each piece of work out once, by its key.

    ``backend``: a URL such as ``redis://localhost``, a backend, or a client that a backend takes. ``scope``: the name
    of the kind of work, such as ``"invoices"``. One key in two scopes is two pieces of work, so use one scope for each
    function. ``fields``: the fields of ``IdempotencyPolicy`` that apply without HTTP (``FIELDS`` of this module):
    ``lease``, ``ttl``, ``max_run``, ``wait``, ``max_attempts``, ``encryption`` and so on. ``max_response_bytes`` bounds
    a result. ``fail_open=True`` calls the function unprotected while the backend is down: use it only for work of which
    a second run is better than none.

    Create it once, at start. It opens nothing until the first call. Raises ``ConfigurationError``. Since 0.1.
    """

    def __init__(self, backend: Given | None = None, *, scope: str = "", **fields: Any) -> None:
        self._scope = _checked_scope(scope)
        _check_fields(fields)
        fields.setdefault("max_waiting", _WAITING)
        self._engine = engine = Engine(backend, None, fields, threads=False)
        self._policy = engine.policy
        self._sync = SyncPerformers(engine.sync, engine.sync.for_coroutines())

    def __repr__(self) -> str:
        return f"Once({self._engine.backend!r}, scope={self._scope!r})"

    # Carrying something out

    def run(
        self,
        key: str,
        function: Callable[..., Any],
        /,
        *args: Any,
        payload: Any = UNSET,
        returns: object = None,
        memo_errors: Errors = (),
        wait: Seconds | None = None,
        **kwargs: Any,
    ) -> Any:
        """Call ``function(*args, **kwargs)`` unless it was carried out for this key. Returns its one result.

        ``payload``: the values by which calls with one key are compared, as JSON; by default the arguments. ``None``
        compares only the key. ``returns``: the type of the result, instead of the return annotation: a dataclass, a
        pydantic model, dates, decimals and the like; without one it is JSON. ``memo_errors``: classes of exceptions
        that are results: they are recorded, and raised again by later calls. Any other exception fails the attempt, and
        the next call resumes after its stages. ``wait``: seconds to wait while another attempt runs (default: that of
        the policy).

        Raises ``KeyRejected``, ``PayloadRejected``, ``StageValueError`` (a declared type that cannot be stored),
        ``KeyNested`` and ``SyncAsyncMismatch`` before any backend call; ``InProgress``, ``KeyReused`` (the key was used
        with another payload), ``OutcomeUnknown``, ``TooManyKeys``, ``BackendUnavailable`` and ``RecordUnreadable``
        before the function; ``NotCommitted`` and ``LeaseLost`` after it. A result that cannot be stored is returned to
        this call only: later calls raise ``OutcomeUnknown``, and the function is not called again.
        """
        self._check_function(function, args, kwargs, payload, returns, memo_errors, wait)
        if is_coroutine_function(function):
            raise SyncAsyncMismatch(f"{self._name}: a coroutine function: use `await once.arun(...)`")
        refuse_loop(self._name, "`await once.arun(...)`")
        converter = Converter.of(function, returns, memo_errors)
        compared = arguments_of(function, args, kwargs) if payload is UNSET else payload
        return self._call(key, compared, converter, wait).run(function, args, kwargs)

    def arun(
        self,
        key: str,
        function: Callable[..., Any],
        /,
        *args: Any,
        payload: Any = UNSET,
        returns: object = None,
        memo_errors: Errors = (),
        wait: Seconds | None = None,
        **kwargs: Any,
    ) -> Awaitable[Any]:
        """``run``, async, on asyncio and on trio. ``function``: a coroutine function, or one that does not block."""
        needs_loop("once.arun")
        self._check_function(function, args, kwargs, payload, returns, memo_errors, wait)
        converter = Converter.of(function, returns, memo_errors)
        compared = arguments_of(function, args, kwargs) if payload is UNSET else payload
        return self._call(key, compared, converter, wait).arun(function, args, kwargs)

    def __call__(
        self,
        function: object = None,
        /,
        *,
        key: Callable[..., str] | None = None,
        payload: Callable[..., Any] | None = None,
        returns: object = None,
        memo_errors: Errors = (),
        wait: Seconds | None = None,
    ) -> Callable[[F], F]:
        """Decorate a ``def`` or an ``async def``: each call of it is ``run`` or ``arun``.

        ``key``: takes the call's arguments, and returns the key. ``payload``: takes them too, and returns the values to
        compare; without it the arguments are compared. The others are those of ``run``. Raises ``TypeError`` for
        generator functions, which have no single result.
        """
        if function is not None or key is None:
            raise TypeError(f'{self._name}: write @once(key=lambda order: order["id"])')
        for name, given in (("key", key), ("payload", payload)):
            if given is not None and (not callable(given) or is_coroutine_function(given)):
                raise TypeError(f"{self._name}: {name}= is a plain function of the call's arguments")
        _seconds(wait, self._name)

        def decorate(decorated: F) -> F:
            if not callable(decorated):
                raise TypeError(f"{self._name}: decorates a function, not a {type(decorated).__name__}")
            _refuse_generators(decorated, self._name)
            return self._decorated(decorated, key, payload, Converter.of(decorated, returns, memo_errors), wait)

        return decorate

    def begin(
        self,
        key: str,
        *,
        payload: Any,
        returns: object = None,
        memo_errors: Errors = (),
        wait: Seconds | None = None,
    ) -> OnceAttempt:
        """Carry out a piece of work in a block: ``with once.begin(...) as attempt``, or ``async with``.

        Check ``attempt.done``; if it is false, pass the result to ``attempt.complete(result)``; then read
        ``attempt.result``. The result is recorded at the end of the block. An exception in the block fails the attempt,
        unless ``memo_errors`` names its class; a block that ends without a result raises ``ConfigurationError``.
        ``payload``: the values by which calls with one key are compared, as JSON; ``None`` compares only the key.
        Entering the block raises what ``run`` raises before the function.
        """
        return self._call(key, payload, Converter.of(None, returns, memo_errors), wait)

    # Looking and forgetting

    def status(self, key: str) -> OnceStatus:
        """The record of a key. It makes one backend call, and another for the clock if an attempt has not ended.

        Raises ``KeyRejected``, ``BackendUnavailable``, ``RecordUnreadable``.
        """
        refuse_loop(self._name, "`await once.astatus(...)`")
        return self._engine.sync.run(self._status(self._record_of(key), _at_once))

    def astatus(self, key: str) -> Awaitable[OnceStatus]:
        """``status``, async."""
        needs_loop("once.astatus")
        return self._engine.aio.run(self._status(self._record_of(key), loops.in_thread))

    def forget(self, key: str) -> bool:
        """Forget a key, so that the next call carries out the work again. Returns whether there was a record.

        For operators. Entries that ``idem.atomic`` or ``tx=`` has committed stay in the application's ledger. Raises
        ``InProgress`` while an attempt holds the key, and what ``status`` raises.
        """
        refuse_loop(self._name, "`await once.aforget(...)`")
        return self._engine.sync.run(self._forget(self._record_of(key), _at_once))

    def aforget(self, key: str) -> Awaitable[bool]:
        """``forget``, async."""
        needs_loop("once.aforget")
        return self._engine.aio.run(self._forget(self._record_of(key), loops.in_thread))

    def close(self) -> None:
        """Wait at most five seconds for pending records, then close a backend that was named by a URL.

        Without this it is closed with the process. It may be used again afterwards.
        """
        self._engine.opened.close()

    async def aclose(self) -> None:
        """``close``, async; closes the connections of the running event loop as well."""
        await self._engine.opened.aclose()

    # Parts

    @property
    def _name(self) -> str:
        return f"Once {self._scope!r}"

    def _check_function(self, function: object, args: tuple[Any, ...], kwargs: dict[str, Any], *own: object) -> None:
        """Raise ``TypeError`` if it is no function, or if its parameters have names of this call's own keywords."""
        if not callable(function):
            if inspect.iscoroutine(function):
                function.close()
            raise TypeError(
                f"{self._name}: pass the function and its arguments separately: once.run(key, function, argument)"
            )
        _refuse_generators(function, self._name)
        given = {name for name, value in zip(_OWN, own, strict=True) if value is not _OWN[name]}
        if not given:
            return
        try:
            taken = given & inspect.signature(function).parameters.keys()
        except (TypeError, ValueError):
            return
        if isinstance(function, functools.partial):
            taken -= function.keywords.keys()
        for name in sorted(taken):
            raise TypeError(
                f"{self._name}: {name}= is an argument of Once, and of the function too; give the function its own "
                f"with functools.partial(function, {name}=...)"
            )

    def _decorated(
        self,
        function: F,
        key: Callable[..., str],
        payload: Callable[..., Any] | None,
        converter: Converter,
        wait: Seconds | None,
    ) -> F:
        called_by = f"{self._name}: {getattr(function, '__name__', type(function).__name__)}"

        def call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> OnceAttempt:
            arguments = arguments_of(
                function, args, kwargs
            )  # bound even with payload=, so that wrong arguments are refused here
            compared = arguments if payload is None else payload(*args, **kwargs)
            return self._call(key(*args, **kwargs), compared, converter, wait)

        @functools.wraps(function)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            return await call(args, kwargs).arun(function, args, kwargs)

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            refuse_loop(called_by, "an `async def`, or call it in a thread")
            return call(args, kwargs).run(function, args, kwargs)

        once: Any = awaited if is_coroutine_function(function) else called
        return cast("F", once)

    def _call(self, key: str, payload: Any, converter: Converter, wait: Seconds | None) -> OnceAttempt:
        policy, record, owner = self._policy, self._record_of(key), new_owner()
        claim = Claim(
            record,
            fingerprint_of(payload, policy.secret, self._name),
            owner,
            policy.lease,
            policy.ttl,
            policy.on_failed == "resume",
            policy.on_abandoned == "resume",
            policy.max_attempts,
            about_work(self._scope, _KIND + self._scope, key, owner, processes.name(), policy),
        )
        waits = _seconds(wait, self._name)
        entry = Entry(claim, _KIND + self._scope, self._scope, policy.wait if waits is None else waits)
        return OnceAttempt(self._engine, self._performers(), entry, converter)

    def _performers(self) -> SyncPerformers:
        """The performers of sync calls. A test may have given the engine another backend since."""
        sync = self._engine.sync
        if self._sync.sync is not sync:
            self._sync = SyncPerformers(sync, sync.for_coroutines())
        return self._sync

    def _record_of(self, key: object) -> bytes:
        if not isinstance(key, str):
            raise KeyRejected(
                f"{self._name}: the key is of type {type(key).__name__}, not a string; write str(order.id)"
            )
        if not key.strip():
            raise KeyRejected(f"{self._name}: the key is empty; name the piece of work, as 'order-7' does")
        if self._engine.backend.in_memory:
            warn_of_other_processes("memory://", self._name)
        try:
            return record_id(_KIND + self._scope, key, _NO_REQUEST, self._policy)
        except UnicodeEncodeError:
            raise KeyRejected(f"{self._name}: the key has half of a surrogate pair, which is not text") from None

    def _status(self, record_id: bytes, call: _Caller) -> Steps[OnceStatus]:
        record = yield from ask(Get(record_id))
        if record is None:
            return OnceStatus()
        running = record.status is Status.IN_PROGRESS
        alive = running and (yield from self._lasts(record, call)) > 0
        stages = tuple(self._stages_of(record))
        return OnceStatus(record.status, record.attempt, stages, alive, running and not alive, record.final)

    def _stages_of(self, record: Record) -> list[RecordedStage]:
        lease = Lease(record.record_id, record.owner, record.token, record.attempt, record.fingerprint, 0.0, record.ttl)
        plain = [unseal_stage(stage, lease, self._policy) for stage in record.stages]
        return [
            RecordedStage(stage.name, stage.key or None, plain_value(stage.frame))
            for stage in plain
            if not is_intent((stage.name, stage.key))
        ]

    def _lasts(self, record: Record, call: _Caller) -> Steps[float]:
        """The seconds for which the lease still lasts, by the backend's clock."""
        now: float = yield Call(partial(call, self._engine.sync.backend.now))
        return record.lease_end - now

    def _free(self, seen: Record, call: _Caller) -> Steps[Freed]:
        """Delete the record in one atomic call, unless an attempt holds it or it has changed since it was seen."""
        backend = self._engine.sync.backend
        if backend.frees:
            freed: Freed = yield Call(partial(call, backend.free, Free(seen.record_id, seen.token, seen.status)))
            return freed
        # A third party's backend that cannot compare: an attempt that begins now goes unnoticed.
        if seen.status is Status.IN_PROGRESS and (yield from self._lasts(seen, call)) > 0:
            return Freed.ALIVE
        return Freed.DONE if (yield from ask(Forget(seen.record_id))) else Freed.ABSENT

    def _forget(self, record_id: bytes, call: _Caller) -> Steps[bool]:
        record = yield from ask(Get(record_id))
        freed = Freed.ABSENT
        for _ in range(_TRIES):
            freed = Freed.ABSENT if record is None else (yield from self._free(record, call))
            if freed is not Freed.CHANGED:
                break
            record = yield from ask(Get(record_id))
        if record is not None and freed in (Freed.ALIVE, Freed.CHANGED):
            raise InProgress(
                f"{self._name}: an attempt holds this key, and would run beside the next call; try when it has ended",
                max(1.0, (yield from self._lasts(record, call))),
            )
        found = freed is Freed.DONE
        if self._policy.max_live_keys is not None:
            yield from ask(Unreserve(scope_id(_KIND + self._scope, self._policy), record_id))
        return found


#: how often ``forget`` reads a record again that has changed since
_TRIES = 3
#: calls a function that blocks: directly, or in a thread
_Caller = Callable[..., Any]


def _at_once(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


#: the keywords of ``run`` and ``arun`` that are not passed to the function, with their defaults
_OWN: dict[str, object] = {"payload": UNSET, "returns": None, "memo_errors": (), "wait": None}


def _checked_scope(scope: object) -> str:
    if not isinstance(scope, str) or not scope.strip():
        raise ConfigurationError(
            "scope: name the kind of work, such as scope='invoices'; without one, two kinds of work that use the same "
            "keys would get each other's results"
        )
    return scope


def _check_fields(fields: dict[str, Any]) -> None:
    """Raise ``ConfigurationError`` for fields that do not apply here, or that no policy has."""
    refuse_unknown(fields)
    for name in fields:
        if name in FIELD_NAMES - FIELDS:
            instead = _INSTEAD.get(name, "it belongs to HTTP requests; leave it out")
            raise ConfigurationError(f"{name}: has no meaning for Once: {instead}")
    if fields.get("on_failed") == "replay":
        raise ConfigurationError(
            "on_failed: 'replay' has no meaning for Once: an error that is a result is named by memo_errors=; use "
            "'resume' or 'reject'"
        )


def _refuse_generators(function: Callable[..., Any], name: str) -> None:
    target: Any = function
    while isinstance(target, functools.partial):
        target = target.func
    if inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target):
        raise TypeError(
            f"{name}: {getattr(target, '__qualname__', target)} is a generator function, which has no single result; "
            "call a function that returns it, or make each step a stage"
        )


def _seconds(wait: object, name: str) -> float | None:
    if wait is None:
        return None
    seconds = wait.total_seconds() if isinstance(wait, timedelta) else wait
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not isfinite(seconds) or seconds < 0:
        raise ConfigurationError(f"{name}: wait: expected seconds or a timedelta, not negative, got {wait!r}")
    return float(seconds)
