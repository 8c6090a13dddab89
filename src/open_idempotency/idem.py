"""The request-scoped helper ``idem``: record stages, so that a retry after a crash resumes instead of repeating.

Usable from any depth of the code that a view calls, in coroutines and in threads that inherit the context. A stage is
known by its name and optional key, never by its position (S-01). The ``a…`` verbs are the awaited ones.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar, cast

from open_idempotency._core.attempt import Attempt, Phase
from open_idempotency._core.drivers import Steps
from open_idempotency._core.keys import downstream_key
from open_idempotency._perform import loops
from open_idempotency._perform.context import Performers, Running, running
from open_idempotency._perform.stages import Errors, StageUse, is_coroutine_function, plain_value, read_frame, stage_id
from open_idempotency.exceptions import AlreadyCompleted, NotStarted, WrongColour

F = TypeVar("F", bound=Callable[..., Any])
Key = str | int | None


@dataclass(frozen=True, slots=True)
class RecordedStage:
    """A stage on record: its name, its key (None without one) and its plain JSON value.

    Of a memoised error the value is its class name and arguments: ``{"error": ..., "arguments": [...]}``.
    """

    name: str
    key: str | None
    value: Any


class Idem:
    """The idempotent request that is running in this context.

    Outside of one its verbs raise ``NotStarted`` (ERR_NOT_STARTED), after the response ``AlreadyCompleted``
    (ERR_COMPLETED). On a covered route without a key stages run plainly and nothing is stored.
    """

    __slots__ = ()

    # Facts

    @property
    def active(self) -> bool:
        """Whether a request with a key is running here and its response is not recorded yet. Never raises."""
        here = running.get()
        return here is not None and here[0].lease is not None and here[0].phase is Phase.RUNNING

    @property
    def attempt(self) -> int:
        """The number of this attempt at the request, from 1. Raises ``NotStarted``."""
        lease = _here()[0].lease
        return lease.attempt if lease is not None else 1

    @property
    def resumed(self) -> bool:
        """Whether an earlier attempt failed or died. Raises ``NotStarted``."""
        return self.attempt > 1

    @property
    def stages(self) -> tuple[RecordedStage, ...]:
        """What is on record, earlier attempts' stages first. Raises ``NotStarted``."""
        recorded = _here()[0].stages.items()
        return tuple(RecordedStage(name, key or None, plain_value(frame)) for (name, key), frame in recorded)

    def load(self, name: str, *, key: Key = None, default: Any = None, returns: object = None) -> Any:
        """The value of a recorded stage, or ``default``. ``returns``: the type to build it as.

        Raises ``NotStarted``.
        """
        frame = _here()[0].stages.get(stage_id(name, key))
        return default if frame is None else read_frame(frame, returns)

    def key_for(self, name: str) -> str:
        """A key for a downstream API such as a payment provider: the same on every attempt of this request.

        35 characters of ``[a-z0-9-]``; another one for each name. Nothing about the client can be read from it.
        Raises ``NotStarted``.
        """
        attempt = _here()[0]
        if not attempt.seed:
            attempt.seed = os.urandom(32)
        return downstream_key(attempt.seed, name, attempt.policy.secret)

    # The answer

    def keep(self) -> None:
        """Store this request's answer, whatever its status. Raises ``NotStarted``, ``AlreadyCompleted``."""
        _unfinished().keep = True

    def discard(self) -> None:
        """Do not store this request's answer: a retry runs again. Raises ``NotStarted``, ``AlreadyCompleted``."""
        _unfinished().keep = False

    # Stages

    def save_stage(self, name: str, value: Any = None, *, key: Key = None) -> Any:
        """Record that the request got this far. Returns the value on record, which is the first one ever saved.

        ``value`` is JSON, of at most ``max_stage_bytes``. Raises ``NotStarted``, ``AlreadyCompleted``, ``LeaseLost``,
        ``StageConflict`` (twice in one attempt), ``StageValueError``, ``WrongColour``, ``BackendUnavailable``.
        """
        with StageBlock(name, key) as stage:
            stage.save(value)
        return stage.value

    def asave_stage(self, name: str, value: Any = None, *, key: Key = None) -> Awaitable[Any]:
        """``save_stage``, awaited."""
        _needs_loop("asave_stage")
        return self._asave_stage(name, value, key)

    async def _asave_stage(self, name: str, value: Any, key: Key) -> Any:
        async with StageBlock(name, key) as stage:
            stage.save(value)
        return stage.value

    def run(
        self,
        name: str,
        function: Callable[..., Any],
        /,
        *args: Any,
        key: Key = None,
        returns: object = None,
        memo_errors: Errors = (),
        **kwargs: Any,
    ) -> Any:
        """Call ``function(*args, **kwargs)`` once, and record what it returns; on later attempts return that.

        The value is JSON, or a dataclass or pydantic model that the function's return annotation or ``returns=``
        declares; it passes through JSON on the first attempt too. An exception is not recorded, unless its class is in
        ``memo_errors``. A ``key`` tells several uses of one name apart. Raises as ``save_stage`` does.
        """
        return StageBlock(name, key, returns, memo_errors, function).run(function, args, kwargs)

    def arun(
        self,
        name: str,
        function: Callable[..., Any],
        /,
        *args: Any,
        key: Key = None,
        returns: object = None,
        memo_errors: Errors = (),
        **kwargs: Any,
    ) -> Awaitable[Any]:
        """``run``, awaited; ``function`` may be a coroutine function or an ordinary one that does not block."""
        _needs_loop("arun")
        return StageBlock(name, key, returns, memo_errors, function).arun(function, args, kwargs)

    def stage(
        self,
        name: str,
        *,
        key: Key | Callable[..., Key] = None,
        returns: object = None,
        memo_errors: Errors = (),
    ) -> StageBlock:
        """A stage as a block (``with``, ``async with``) or as a decorator of a ``def`` or ``async def``.

        In a block ask ``s.done`` before the effect, hand the result to ``s.save(value)``, and read ``s.value``; the
        stage is recorded where the block ends without an exception. A decorated function runs as with ``run``; its
        ``key`` may be a callable that makes one from the call's arguments.
        """
        return StageBlock(name, key, returns, memo_errors)


class StageBlock:
    """One stage to be entered; see ``Idem.stage``."""

    __slots__ = ("_errors", "_function", "_key", "_name", "_performers", "_result", "_returns", "_saved", "_use")

    def __init__(
        self,
        name: str,
        key: Key | Callable[..., Key] = None,
        returns: object = None,
        memo_errors: Errors = (),
        function: Callable[..., Any] | None = None,
    ) -> None:
        self._name = name
        self._key = key
        self._returns = returns
        self._errors = memo_errors
        self._function = function
        self._performers: Performers | None = None
        self._use: StageUse | None = None
        self._saved: Any = None
        self._result: Any = None

    @property
    def done(self) -> bool:
        """Whether an earlier attempt recorded this stage."""
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

    # Entering and leaving, in both colours

    def _enter(self) -> StageBlock:
        if callable(self._key):
            raise TypeError(f"stage {self._name!r}: a callable key= is for decorators; pass the key itself")
        if self._use is not None:
            raise RuntimeError(f"stage {self._name!r} was entered already; call idem.stage() for each use")
        attempt, self._performers = _here()
        self._use = StageUse(attempt, stage_id(self._name, self._key), self._returns, self._errors, self._function)
        return self

    def _leave(self, error: BaseException | None) -> Steps[Any] | None:
        """The steps that record how the block ended, if there is anything to record."""
        use = self._entered()
        if use.done:
            self._result = use.recall() if error is None else None
            return None
        if error is None:
            return use.save(self._saved)
        if isinstance(error, self._errors):
            return use.save_error(error)
        use.leave()
        return None

    def __enter__(self) -> StageBlock:
        _refuses_loop(self._name)
        return self._enter()

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

    async def __aenter__(self) -> StageBlock:
        return self._enter()

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

    # Around a function

    def run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function unless the stage is done; the value on record."""
        if is_coroutine_function(function):
            raise WrongColour(f"stage {self._name!r} is a coroutine function: use `await idem.arun(...)`")
        with self as stage:
            if not stage.done:
                stage.save(self._called(function, args, kwargs))
        return stage.value

    async def arun(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """``run``, awaited."""
        async with self as stage:
            if not stage.done:
                result = function(*args, **kwargs)
                stage.save(await result if inspect.isawaitable(result) else result)
        return stage.value

    def _called(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = function(*args, **kwargs)
        if inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()
            raise WrongColour(f"stage {self._name!r} returned an awaitable: use `await idem.arun(...)`")
        return result

    def __call__(self, function: F) -> F:
        """Decorate a function: every call of it is this stage."""

        @functools.wraps(function)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            return await self._for_call(function, args, kwargs).arun(function, args, kwargs)

        @functools.wraps(function)
        def blocking(*args: Any, **kwargs: Any) -> Any:
            return self._for_call(function, args, kwargs).run(function, args, kwargs)

        staged: Any = awaited if is_coroutine_function(function) else blocking
        return cast("F", staged)

    def _for_call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> StageBlock:
        key = self._key(*args, **kwargs) if callable(self._key) else self._key
        return StageBlock(self._name, key, self._returns, self._errors, function)


def _here() -> Running:
    here = running.get()
    if here is None:
        raise NotStarted(
            "no idempotent request is running here: is the middleware installed, and does it cover this route?"
        )
    return here


def _unfinished() -> Attempt:
    attempt = _here()[0]
    if attempt.phase is not Phase.RUNNING:
        raise AlreadyCompleted("the response is recorded already")
    return attempt


def _refuses_loop(name: str) -> None:
    """A blocking call would stop every other request of this loop (S-08)."""
    if loops.current_library() is not None:
        raise WrongColour(
            f"stage {name!r}: this is an event loop; use `await idem.arun(...)`, `await idem.asave_stage(...)` "
            "or `async with idem.stage(...)`"
        )


def _needs_loop(verb: str) -> None:
    """Told at the call, since a coroutine that nobody awaits would say nothing (S-08)."""
    if loops.current_library() is None:
        raise WrongColour(f"{verb}: no event loop is running here; use the verb without the 'a'")


#: the request that is running in this context
idem = Idem()
