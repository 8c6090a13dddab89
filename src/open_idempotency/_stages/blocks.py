"""Blocks around the code of a view: one stage, or the whole response. Each is sync and async.

``Idem.stage`` and ``Idem.run`` return a ``StageBlock``: a block, a call or a decorator. ``Idem.atomic`` returns an
``AtomicBlock``: the whole response in the application's own transaction (S-06). ``stages`` and the core decide what is
recorded, and when.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, TypeVar, cast
from weakref import ref

from open_idempotency._core.attempt import Attempt, Phase
from open_idempotency._core.commands import Steps
from open_idempotency._core.intents import Inquiry, Reconciled
from open_idempotency._core.models import Headers, Response
from open_idempotency._core.recording import make_sure
from open_idempotency._engine.engine import Performers, here, running
from open_idempotency._runtime import clocks, loops
from open_idempotency._stages.stages import PLAIN, StageUse, Terms, is_coroutine_function, stage_id
from open_idempotency.exceptions import ConfigurationError, NotStarted, SyncAsyncMismatch
from open_idempotency.ledger.steps import Transaction, fence, save_response
from open_idempotency.ledger.transactions import is_transaction, transaction_of

F = TypeVar("F", bound=Callable[..., Any])
Key = str | int | None
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class StageCalls:
    """The coroutines of one attempt's stages that have not begun, each with the name of its stage.

    They are held here, so that their state can be read at the attempt's end (O-36).
    """

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting: dict[StageBlock, tuple[str, Coroutine[Any, Any, Any]]] = {}

    def end(self) -> tuple[str, ...]:
        """Drop the coroutines. Returns the names of the stages whose coroutines can no longer be awaited.

        A coroutine that was closed, or cancelled before it began, does not count. Nor does one that is still
        referenced: it may be a task that outlives the view.
        """
        waiting = list(self.waiting.values())
        made = [(name, ref(each)) for name, each in waiting if inspect.getcoroutinestate(each) == inspect.CORO_CREATED]
        waiting.clear()
        self.waiting.clear()  # Python warns about the unreferenced ones, as about any such coroutine
        return tuple(name for name, held in made if held() is None)


class StageBlock:
    """One stage to be entered; see ``Idem.stage``."""

    __slots__ = (
        "_arguments",
        "_calls",
        "_function",
        "_key",
        "_name",
        "_performers",
        "_result",
        "_saved",
        "_terms",
        "_use",
    )

    def __init__(
        self,
        name: str,
        key: Key | Callable[..., Key] = None,
        terms: Terms = PLAIN,
        function: Callable[..., Any] | None = None,
    ) -> None:
        self._name = name
        self._key = key
        self._terms = terms
        self._function = function
        #: the arguments of the stage's call; ``reconcile`` is called with the same ones
        self._arguments: Arguments = ((), {})
        #: holds this stage's coroutine until it begins
        self._calls: StageCalls | None = None
        self._performers: Performers | None = None
        self._use: StageUse | None = None
        self._saved: Any = None
        self._result: Any = None

    @property
    def done(self) -> bool:
        """Whether the stage is on record: an earlier attempt recorded it, or ``reconcile`` found its value.

        If so, it must not run again, whether or not its value was stored.
        """
        return self._entered().done

    @property
    def value(self) -> Any:
        """The value on record; within the block that makes it, the value given to ``save``."""
        use = self._entered()
        if self._performers is not None:
            return use.recall() if use.done else self._saved
        return self._result

    def save(self, value: Any) -> None:
        """Set the value to record at the end of the block. Ignored if the stage is ``done``."""
        self._entered()
        self._saved = value

    def _entered(self) -> StageUse:
        if self._use is None:
            raise RuntimeError(f"stage {self._name!r} is not entered: use it as `with idem.stage(...) as s:`")
        return self._use

    # Entering and leaving, sync and async

    def _enter(self) -> StageUse:
        if callable(self._key):
            raise TypeError(f"stage {self._name!r}: a callable key= is for decorators; pass the key itself")
        if self._use is not None:
            raise RuntimeError(f"stage {self._name!r} was entered already; call idem.stage() for each use")
        attempt, self._performers = here()
        self._use = StageUse(attempt, stage_id(self._name, self._key), self._terms, self._function)
        return self._use

    def _leave(self, error: BaseException | None) -> Steps[Any] | None:
        """The steps that record how the block ended, if there is anything to record."""
        use = self._entered()
        if use.done:
            self._result = use.recall() if error is None else None
            return None
        if error is None:
            return use.save(self._saved)
        if isinstance(error, self._terms.memo_errors):
            return use.save_error(error)
        use.leave()
        return use.withdraw() if isinstance(error, self._terms.not_done) else None

    def __enter__(self) -> StageBlock:
        refuse_loop(f"stage {self._name!r}")
        use = self._enter()
        if use.begins and self._performers is not None:
            try:
                check_sync_or_async(f"stage {self._name!r}", use.awaited, False)
                self._performers.sync.run(use.begin(self._inquiry()))
            except BaseException:
                use.leave()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        performers, self._performers = self._performers, None
        try:
            steps = self._leave(error)
            if steps is not None and performers is not None:
                self._result = performers.sync.run(steps)
        except BaseException:
            self._entered().leave()
            raise
        if self._terms.tx is not None:
            self._entered().leave()  # the transaction may be rolled back, and the stage may run again in another one

    async def asave(self, value: Any) -> Any:
        """Enter the block, save the value, and leave the block. Returns the value on record."""
        self._begun()
        async with self:
            self.save(value)
        return self.value

    async def __aenter__(self) -> StageBlock:
        use = self._enter()
        if use.begins and self._performers is not None:
            try:
                check_sync_or_async(f"stage {self._name!r}", use.awaited, True)
                await self._performers.aio.run(use.begin(self._ainquiry()))
            except BaseException:
                use.leave()
                raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        performers, self._performers = self._performers, None
        try:
            steps = self._leave(error)
            if steps is not None and performers is not None:
                self._result = await performers.aio.run(steps)
        except BaseException:
            self._entered().leave()
            raise
        if self._terms.tx is not None:
            self._entered().leave()

    # Asking the other side, sync and async

    def _inquiry(self) -> Inquiry | None:
        reconcile = self._terms.reconcile
        if reconcile is None:
            return None
        if is_coroutine_function(reconcile):
            raise SyncAsyncMismatch(f"stage {self._name!r}: reconcile= is a coroutine function, and this stage is sync")
        args, kwargs = self._arguments
        return functools.partial(self._called, reconcile, args, kwargs)

    def _ainquiry(self) -> Inquiry | None:
        reconcile = self._terms.reconcile
        if reconcile is None:
            return None
        args, kwargs = self._arguments

        async def inquire() -> Reconciled:
            reply: Any = reconcile(*args, **kwargs)
            reconciled: Reconciled = await reply if inspect.isawaitable(reply) else reply
            return reconciled

        return inquire

    # Around a function

    def run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function unless the stage is done. Returns the value on record."""
        self._check(function)
        if is_coroutine_function(function):
            raise SyncAsyncMismatch(f"stage {self._name!r} is a coroutine function: use `await idem.arun(...)`")
        self._arguments = args, kwargs
        with self as stage:
            if not stage.done:
                stage.save(self._called(function, args, kwargs))
        return stage.value

    def expected(self, coroutine: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, Any]:
        """Note the coroutine of this stage in the attempt, so that a missing await is reported. Returns it."""
        found = running.get()
        if found is not None and found[0].lease is not None and found[0].phase is Phase.RUNNING:
            calls = found[0].calls
            if not isinstance(calls, StageCalls):
                calls = StageCalls()
                found[0].expect(calls)
            self._calls = calls
            calls.waiting[self] = self._name, coroutine
        return coroutine

    def _begun(self) -> None:
        calls, self._calls = self._calls, None
        if calls is not None:
            calls.waiting.pop(self, None)

    async def arun(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """``run``, awaited."""
        self._begun()
        self._check(function)
        self._arguments = args, kwargs
        async with self as stage:
            if not stage.done:
                result = function(*args, **kwargs)
                stage.save(await result if inspect.isawaitable(result) else result)
        return stage.value

    def _check(self, function: object) -> None:
        if not callable(function):
            if inspect.iscoroutine(function):
                function.close()
            raise TypeError(
                f"stage {self._name!r}: pass the function and its arguments separately, not its result, which is made "
                "before the stage begins: idem.run(name, function, argument)"
            )

    def _called(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = function(*args, **kwargs)
        if inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()
            raise SyncAsyncMismatch(f"stage {self._name!r} returned an awaitable: use `await idem.arun(...)`")
        return result

    def __call__(self, function: F) -> F:
        """Decorate a function: every call of it is this stage."""

        @functools.wraps(function)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            return await self._for_call(function, args, kwargs).arun(function, args, kwargs)

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            return self._for_call(function, args, kwargs).run(function, args, kwargs)

        staged: Any = awaited if is_coroutine_function(function) else called
        return cast("F", staged)

    def _for_call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> StageBlock:
        key = self._key(*args, **kwargs) if callable(self._key) else self._key
        return StageBlock(self._name, key, self._terms_for(args, kwargs), function)

    def _terms_for(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Terms:
        make = self._terms.tx
        if not callable(make) or is_transaction(make):
            return self._terms
        if isinstance(make, type):
            raise ConfigurationError(
                f"stage {self._name!r}: tx= is the class {make.__name__}; give the session that has your rows, or a "
                "callable that returns it"
            )
        tx = make(*args, **kwargs)
        if tx is None:  # elsewhere None means no transaction
            raise ConfigurationError(f"stage {self._name!r}: the callable tx= returned None instead of a transaction")
        return dataclasses.replace(self._terms, tx=tx)


def check_sync_or_async(what: str, transaction: bool | None, block: bool) -> None:
    """Raise ``SyncAsyncMismatch`` if one of transaction and block is sync and the other is async (S-08)."""
    if transaction is None or transaction is block:
        return
    use = "`async with` or `await idem.arun(...)`" if transaction else "`with` or `idem.run(...)`"
    raise SyncAsyncMismatch(f"{what}: tx= is {'' if transaction else 'not '}asynchronous; use {use}")


_AWAITED = "`await idem.arun(...)`, `await idem.asave_stage(...)` or `async with idem.stage(...)`"


def refuse_loop(what: str, instead: str = _AWAITED) -> None:
    """Raise ``SyncAsyncMismatch`` on an event loop: a sync call would stop every other request of it (S-08)."""
    if loops.current_library() is not None:
        raise SyncAsyncMismatch(f"{what}: this is an event loop; use {instead}")


def needs_loop(verb: str) -> None:
    """Raise ``SyncAsyncMismatch`` outside an event loop, at the call, since an unawaited coroutine raises nothing."""
    if loops.current_library() is None:
        raise SyncAsyncMismatch(f"{verb}: no event loop is running here; use the verb without the 'a'")


def response_of(response: Any) -> Response:
    """The core form of a framework's response. Raises ``TypeError`` for one without a whole body, such as a stream."""
    if isinstance(response, Response):
        return response
    for read in (_of_starlette, _of_werkzeug, _of_django):
        found = read(response)
        if found is not None:
            return found
    raise TypeError(
        f"block.respond() takes a whole response of Starlette's, Flask's or Django's, not {type(response).__name__}; "
        "in Flask make_response(...) makes one, in FastAPI JSONResponse(...)"
    )


def _of_starlette(response: Any) -> Response | None:
    headers, body = getattr(response, "raw_headers", None), getattr(response, "body", None)
    if headers is None or not isinstance(body, bytes):
        return None
    return Response(response.status_code, list(headers), body)


def _of_werkzeug(response: Any) -> Response | None:
    if not hasattr(response, "get_wsgi_headers") or not response.is_sequence:
        return None
    return Response(response.status_code, _pairs(response.headers.items()), response.get_data())


def _of_django(response: Any) -> Response | None:
    if getattr(response, "streaming", True) or not hasattr(response, "content"):
        return None
    cookies = [("Set-Cookie", cookie.OutputString()) for cookie in response.cookies.values()]
    return Response(response.status_code, _pairs([*response.items(), *cookies]), response.content)


def _pairs(items: Any) -> Headers:
    return [(name.encode("latin-1"), str(value).encode("latin-1")) for name, value in items]


# The whole response as a block (S-06)

R = TypeVar("R")
_WHAT = "idem.atomic"


def _entering(transaction: Transaction, attempt: Attempt) -> Steps[None]:
    """Enter the transaction. If the lease may have ended unnoticed, its owner is queried before any effect (S-07)."""
    if clocks.elapsed() > attempt.sure_until:
        yield from make_sure(attempt)
    yield from fence(transaction, attempt, whole=True)


class AtomicBlock:
    """A block of a view whose response commits with the caller's rows; ``Idem.atomic`` returns it.

    ``optional``: the block may end without a response, since the caller then rolls back.
    """

    __slots__ = ("_attempt", "_entered", "_optional", "_response", "_tx", "kept")

    def __init__(self, tx: object, *, optional: bool = False) -> None:
        self._tx = tx
        self._optional = optional
        self._attempt: Attempt | None = None
        self._response: Response | None = None
        #: at the block's end: whether the response is in the transaction; None without a key or a response. If it is
        #: false, such as for a 503, a retry runs again, so the caller should roll back
        self.kept: bool | None = None
        #: None without a key, where nothing is stored
        self._entered: tuple[Transaction, Attempt, Performers] | None = None

    def respond(self, response: R) -> R:
        """Set the response to store, and return it: a response of Starlette, Flask or Django, with its body.

        In a call of ``Once`` it is the result, which the function then returns. Raises ``TypeError`` for any other
        object and for a stream; ``StageValueError`` for a result that cannot be stored.
        """
        make = None if self._attempt is None else self._attempt.as_response
        self._response = response_of(response) if make is None else make(response)
        return response

    def _enter(self, awaited: bool) -> tuple[Steps[None], Performers] | None:
        attempt, performers = here()
        attempt.check_running()
        self._attempt = attempt
        if attempt.lease is None and attempt.policy.strict_stages:
            raise NotStarted("this request has no idempotency key, and strict_stages asks for one")
        # A wrong transaction is reported for requests without a key, too.
        transaction = transaction_of(self._tx)
        check_sync_or_async(_WHAT, transaction.awaited, awaited)
        if attempt.lease is None:
            return None
        self._entered = transaction, attempt, performers
        return _entering(transaction, attempt), performers

    def _leave(self, error: BaseException | None) -> tuple[Steps[bool], Performers] | None:
        if error is not None:
            return None
        if self._response is None:
            self._refuse_silence()
            return None
        if self._entered is None:
            return None
        transaction, attempt, performers = self._entered
        return save_response(transaction, attempt, self._response), performers

    def _refuse_silence(self) -> None:
        """Refuse a block without a response: its rows would commit without one, and a retry would make them again."""
        if not self._optional and self._attempt is not None and self._attempt.keep is not False:
            raise ConfigurationError(
                f"{_WHAT}: the block ended without a response; pass it to block.respond(response), or call "
                "idem.discard() and roll back if there is none to store"
            )

    def __enter__(self) -> AtomicBlock:
        refuse_loop(_WHAT, "`async with idem.atomic(...)` with a transaction that is awaited, or a `def` view")
        if todo := self._enter(awaited=False):
            todo[1].sync.run(todo[0])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if todo := self._leave(error):
            self.kept = todo[1].sync.run(todo[0])

    async def __aenter__(self) -> AtomicBlock:
        if todo := self._enter(awaited=True):
            await todo[1].aio.run(todo[0])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if todo := self._leave(error):
            self.kept = await todo[1].aio.run(todo[0])
