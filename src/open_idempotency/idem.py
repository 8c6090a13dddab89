"""The request-scoped helper ``idem``: it records stages, so that a retry after a crash resumes instead of repeating.

It works at any depth of the code that a view calls, in coroutines and in threads that inherit the context. A stage is
known by its name and optional key, never by its position (S-01). The ``a…`` verbs are async.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from open_idempotency._core.attempt import Attempt, Phase
from open_idempotency._core.intents import OnDoubt, is_intent
from open_idempotency._core.keys import downstream_key
from open_idempotency._engine.engine import here, running
from open_idempotency._stages.blocks import AtomicBlock, Key, StageBlock, needs_loop
from open_idempotency._stages.stages import (
    UNSET,
    Errors,
    Reconcile,
    Terms,
    loaded,
    plain_value,
    refuse_shared_names,
    stage_id,
)
from open_idempotency.events import short
from open_idempotency.exceptions import AlreadyCompleted

__all__ = ["AtomicBlock", "Idem", "RecordedStage", "StageBlock", "idem"]


@dataclass(frozen=True, slots=True)
class RecordedStage:
    """A stage on record: its name, its key (None without one) and its plain JSON value.

    For a memoised error the value is its class name and arguments: ``{"error": ..., "arguments": [...]}``. For a stage
    whose value could not be stored it is the name of the type: ``{"not_kept": ...}``.
    """

    name: str
    key: str | None
    value: Any


class Idem:
    """The idempotent request that is running in this context.

    Outside of such a request its verbs raise ``NotStarted`` (ERR_NOT_STARTED); after the response they raise
    ``AlreadyCompleted`` (ERR_COMPLETED). On a covered route without a key, stages run and nothing is stored.
    """

    __slots__ = ()

    # Facts

    @property
    def active(self) -> bool:
        """Whether a request with a key is running here and its response is not recorded yet. Never raises."""
        found = running.get()
        return found is not None and found[0].lease is not None and found[0].phase is Phase.RUNNING

    @property
    def attempt(self) -> int:
        """The number of this attempt at the request, from 1. Raises ``NotStarted``."""
        lease = here()[0].lease
        return lease.attempt if lease is not None else 1

    @property
    def resumed(self) -> bool:
        """Whether an earlier attempt failed or died. Raises ``NotStarted``."""
        return self.attempt > 1

    @property
    def stages(self) -> tuple[RecordedStage, ...]:
        """The stages on record, those of earlier attempts first. Raises ``NotStarted``."""
        recorded = [(stage, frame) for stage, frame in here()[0].stages.items() if not is_intent(stage)]
        return tuple(RecordedStage(name, key or None, plain_value(frame)) for (name, key), frame in recorded)

    @property
    def record(self) -> str:
        """The id of the request's record as events, logs and problems show it: 12 hexadecimal digits.

        ``open-idempotency show`` and ``operations.find_record`` take it. Empty on a route without a key, where nothing
        is stored. Raises ``NotStarted``.
        """
        lease = here()[0].lease
        return "" if lease is None else short(lease.record_id)

    def load(self, name: str, *, key: Key = None, default: Any = None, returns: object = None) -> Any:
        """The value of a stage, or ``default`` if the stage is not on record. ``returns``: the type of the value.

        Raises ``NotStarted``, and ``OutcomeUnknown`` for a stage of an earlier attempt whose value was not stored.
        """
        return loaded(here()[0], stage_id(name, key), default, returns)

    def key_for(self, name: str) -> str:
        """A key for a downstream API such as a payment provider: the same on every attempt of this request.

        It has 35 characters of ``[a-z0-9-]`` and differs for each name. It reveals nothing about the client.
        Raises ``NotStarted``.
        """
        attempt = here()[0]
        return downstream_key(attempt.seeded(partial(os.urandom, 32)), name, attempt.policy.secret)

    # The response

    def keep(self) -> None:
        """Store this request's response, whatever its status. Raises ``NotStarted``, ``AlreadyCompleted``."""
        _unfinished().wish(True)

    def discard(self) -> None:
        """Do not store this request's response: a retry runs again. Raises ``NotStarted``, ``AlreadyCompleted``."""
        _unfinished().wish(False)

    # Stages

    def save_stage(self, name: str, value: Any = None, *, key: Key = None) -> Any:
        """Record that the request got this far. Returns the value on record, which is the first one ever saved.

        ``value`` is JSON, of at most ``max_stage_bytes``. Of any other value only the fact that the request got this
        far is stored, and an error is logged. Raises ``NotStarted``, ``AlreadyCompleted``, ``LeaseLost``,
        ``StageConflict`` (twice in one attempt), ``StageValueError`` (for a bad name), ``OutcomeUnknown``,
        ``SyncAsyncMismatch``, ``BackendUnavailable``.
        """
        with StageBlock(name, key) as stage:
            stage.save(value)
        return stage.value

    def asave_stage(self, name: str, value: Any = None, *, key: Key = None) -> Awaitable[Any]:
        """``save_stage``, async."""
        needs_loop("asave_stage")
        stage = StageBlock(name, key)
        return stage.expected(stage.asave(value))

    def run(
        self,
        name: str,
        function: Callable[..., Any],
        /,
        *args: Any,
        key: Key = None,
        returns: object = None,
        memo_errors: Errors = (),
        external: bool = False,
        on_doubt: OnDoubt | None = None,
        reconcile: Reconcile | None = None,
        not_done: Errors = (),
        tx: object = None,
        default: object = UNSET,
        **kwargs: Any,
    ) -> Any:
        """Call ``function(*args, **kwargs)`` once and record its result. Later attempts return the recorded result.

        The result is JSON, or of a type that the function's return annotation or ``returns=`` declares: a dataclass, a
        pydantic model, dates, decimals and the like. It passes through JSON on the first attempt too. A result that
        cannot be stored is returned to this attempt only, and the stage is done: later attempts get ``default``, or
        what ``reconcile`` finds, else ``OutcomeUnknown`` (S-02a). An exception is not recorded, unless its class is in
        ``memo_errors``. A ``key`` distinguishes several uses of one name. If an argument of the stage (``key``, ``tx``
        ...) is also a parameter of the function, ``TypeError`` is raised; ``functools.partial`` gives the function its
        own.

        ``external=True`` also records the stage before the call, which costs one more round trip: if this attempt dies
        in between, the stage is *in doubt* on the next one (S-04). Then ``reconcile``, called with the function's
        arguments, queries the other system and returns ``Found(value)``, ``NOT_DONE`` or ``UNKNOWN``. Without it,
        ``on_doubt="raise"`` (default) raises ``OutcomeUnknown``, and ``"rerun"`` calls the function again. An exception
        leaves the stage in doubt too, unless its class is in ``not_done``, which lists errors after which nothing has
        happened.

        ``tx`` puts the stage into the application's own transaction (S-05): it commits or rolls back with the rows that
        it makes, and a worker that lost its lease cannot commit. It is a SQLAlchemy ``Session``, ``Connection``,
        ``AsyncSession`` or ``AsyncConnection``, a Django database alias, a psycopg connection or a
        ``sqlite3.Connection``; its database needs the tables of ``open_idempotency.ledger``. Later attempts find such a
        stage when they enter it, but ``stages`` and ``load`` do not have it.

        Raises what ``save_stage`` raises, and ``StageValueError`` before the call if no value of the declared type can
        be stored. For ``OutcomeUnknown`` the client gets 409 ``outcome-unknown``. With ``tx`` a value that cannot be
        stored raises ``StageValueError`` as well, so that the transaction rolls back; a wrong ``tx`` raises
        ``ConfigurationError``, and another request's entry in the ledger raises ``KeyReused``.
        """
        terms = Terms(returns, memo_errors, external, on_doubt, reconcile, not_done, tx, default)
        refuse_shared_names(name, function, key, terms)
        return StageBlock(name, key, terms, function).run(function, args, kwargs)

    def arun(
        self,
        name: str,
        function: Callable[..., Any],
        /,
        *args: Any,
        key: Key = None,
        returns: object = None,
        memo_errors: Errors = (),
        external: bool = False,
        on_doubt: OnDoubt | None = None,
        reconcile: Reconcile | None = None,
        not_done: Errors = (),
        tx: object = None,
        default: object = UNSET,
        **kwargs: Any,
    ) -> Awaitable[Any]:
        """``run``, async; ``function`` may be a coroutine function or an ordinary one that does not block."""
        needs_loop("arun")
        terms = Terms(returns, memo_errors, external, on_doubt, reconcile, not_done, tx, default)
        refuse_shared_names(name, function, key, terms)
        stage = StageBlock(name, key, terms, function)
        return stage.expected(stage.arun(function, args, kwargs))

    def stage(
        self,
        name: str,
        *,
        key: Key | Callable[..., Key] = None,
        returns: object = None,
        memo_errors: Errors = (),
        external: bool = False,
        on_doubt: OnDoubt | None = None,
        reconcile: Reconcile | None = None,
        not_done: Errors = (),
        tx: object = None,
        default: object = UNSET,
    ) -> StageBlock:
        """A stage as a block (``with``, ``async with``) or as a decorator of a ``def`` or ``async def``.

        In a block, check ``s.done`` before the effect, pass the result to ``s.save(value)``, and read ``s.value``. The
        stage is recorded when the block ends without an exception. A decorated function runs as with ``run``; its
        ``key`` and its ``tx`` may be callables that take the call's arguments. The ``reconcile`` of a block is called
        without arguments; if it finds the effect done, ``s.done`` is true.
        """
        if callable(name):
            raise TypeError("a stage has a name: write @idem.stage('name')")
        terms = Terms(returns, memo_errors, external, on_doubt, reconcile, not_done, tx, default)
        return StageBlock(name, key, terms)

    def atomic(self, tx: object) -> AtomicBlock:
        """A block whose response is saved in the caller's transaction, and so commits with its rows (S-06).

        Pass the response to ``respond(response)`` of the block, within the transaction. It commits when the caller
        commits. A block that ends without a response raises ``ConfigurationError``, unless ``discard()`` was called.
        After the commit a retry gets that response, even if its record was lost: entering the block raises
        ``AlreadyCommitted``, and the middleware sends the response. A second block of the same attempt raises it too,
        unless the first was rolled back. ``tx``: as for a stage; its database needs the ledger's tables. With
        ``on_failed``, ``on_abandoned`` or ``max_attempts``, name that database in the policy's ``ledger=`` as well.
        Raises ``LeaseLost``, ``KeyReused``, ``ConfigurationError``, ``SyncAsyncMismatch``, ``NotStarted``.
        """
        return AtomicBlock(tx)


def _unfinished() -> Attempt:
    attempt = here()[0]
    if attempt.phase is not Phase.RUNNING:
        raise AlreadyCompleted("the response is recorded already")
    return attempt


#: the request that is running in this context
idem = Idem()
