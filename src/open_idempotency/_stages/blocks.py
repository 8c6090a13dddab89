"""One stage as a block, as a call or as a decorator, sync and async: what ``Idem.stage`` and ``Idem.run`` make.

What is recorded, and when, is in ``stages`` and the core; here it is carried out around the code of a view.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar, cast

from open_idempotency._core.drivers import Steps
from open_idempotency._core.intents import Inquiry, Reconciled
from open_idempotency._engine.current import Performers, here
from open_idempotency._runtime import loops
from open_idempotency._stages.stages import PLAIN, StageUse, Terms, is_coroutine_function, stage_id
from open_idempotency.exceptions import ConfigurationError, SyncAsyncMismatch
from open_idempotency.ledger.transactions import is_transaction

F = TypeVar("F", bound=Callable[..., Any])
Key = str | int | None
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class StageBlock:
    """One stage to be entered; see ``Idem.stage``."""

    __slots__ = ("_arguments", "_function", "_key", "_name", "_performers", "_result", "_saved", "_terms", "_use")

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
        #: what the stage was called with; ``reconcile`` is asked with the same
        self._arguments: Arguments = ((), {})
        self._performers: Performers | None = None
        self._use: StageUse | None = None
        self._saved: Any = None
        self._result: Any = None

    @property
    def done(self) -> bool:
        """Whether the stage is on record: an earlier attempt recorded it, or ``reconcile`` found its value.

        Then it must not run again, whether its value was kept or not.
        """
        return self._entered().done

    @property
    def value(self) -> Any:
        """The value on record; within the block that makes it, what was handed to ``save``."""
        use = self._entered()
        if self._performers is not None:
            return use.recall() if use.done else self._saved
        return self._result

    def save(self, value: Any) -> None:
        """Hand over the value to record where the block ends. Ignored if the stage is ``done``."""
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
            self._entered().leave()  # the transaction may be rolled back, and the stage tried again in another

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
        """Call the function unless the stage is done; the value on record."""
        self._check(function)
        if is_coroutine_function(function):
            raise SyncAsyncMismatch(f"stage {self._name!r} is a coroutine function: use `await idem.arun(...)`")
        self._arguments = args, kwargs
        with self as stage:
            if not stage.done:
                stage.save(self._called(function, args, kwargs))
        return stage.value

    async def arun(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """``run``, awaited."""
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
                f"stage {self._name!r}: pass the function and its arguments apart, and not what it returned, which is "
                "made before the stage begins: idem.run(name, function, argument)"
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
        if tx is None:  # which elsewhere means: in no transaction
            raise ConfigurationError(f"stage {self._name!r}: tx= was called, and returned no transaction but None")
        return dataclasses.replace(self._terms, tx=tx)


def check_sync_or_async(what: str, transaction: bool | None, block: bool) -> None:
    """Raise ``SyncAsyncMismatch`` where one of transaction and block is sync and the other async (S-08)."""
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
    """Raise ``SyncAsyncMismatch`` outside an event loop, at the call: a coroutine that nobody awaits raises nothing."""
    if loops.current_library() is None:
        raise SyncAsyncMismatch(f"{verb}: no event loop is running here; use the verb without the 'a'")
