"""The ledger inside the application's own transaction (S-05, S-06), as steps for sync and async callers.

The fence comes first: it locks the record's row until the transaction ends, and refuses the token of a stale owner. So
a stale owner cannot commit. A worker that takes over waits for the transaction of the worker before it, and then sees
what was committed. The ledger's rows are committed or rolled back together with the caller's rows.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import os
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from operator import methodcaller
from typing import Any, NamedTuple, Protocol, TypeVar

from open_idempotency import events
from open_idempotency._core.attempt import Attempt, End, LedgerResponse, StageId, Watch
from open_idempotency._core.commands import AsyncDriver, Call, Driver, Handlers, Release, Steps, ask
from open_idempotency._core.models import Lease, Response, Stage
from open_idempotency._core.notify import warn
from open_idempotency._core.settlement import wants_kept
from open_idempotency._core.stored_response import RESPONSE, seal_stage, storable, stored_form, unseal_stage
from open_idempotency._runtime.loops import current_library, in_thread
from open_idempotency._runtime.processes import PerProcess
from open_idempotency.exceptions import AlreadyCommitted, ConfigurationError, KeyReused, LeaseLost, RecordUnreadable
from open_idempotency.ledger.dialects import COUNT_ENTRIES, FORGET_ENTRY, Dialect

T = TypeVar("T")

Parameters = Mapping[str, object]
Rows = Sequence[Sequence[Any]]

# Every 16th new entry deletes up to 64 expired ones. Each process begins counting at another number.
_PURGED_EVERY, _PURGED_AT_ONCE = 16, 64
_NEW_ENTRIES = PerProcess(lambda: itertools.count(os.getpid()))
_ENDED = "tx=: the transaction was committed or rolled back within the block; begin, commit and roll back around it"


class StoredResponse(NamedTuple):
    """A response in a ledger: its record, the fingerprint of its request, and its sealed frame."""

    record_id: bytes
    fingerprint: bytes
    response: bytes


class Transaction(Protocol):
    """The application's transaction in one client library, sync or async."""

    @property
    def dialect(self) -> Dialect:
        """The statements for its database."""
        ...

    @property
    def awaited(self) -> bool:
        """Whether ``execute`` is async."""
        ...

    #: identifies the transaction that holds the fence; set by ``fence``
    entered: object

    def current(self) -> object:
        """The client library's present transaction; None outside of one.

        It is constant if the library does not distinguish transactions, or does not let a block end one.
        """
        ...

    def watch(self, stored: StoredResponse | None) -> Watch:
        """Watch for the end of the transaction.

        ``stored``: the response in this transaction, so that the database can be asked whether it was committed; None
        for a stage.
        """
        ...

    def execute(self, statement: str, parameters: Parameters) -> Rows | Awaitable[Rows]:
        """Run a statement in the transaction. Returns its rows; empty for a statement without rows."""
        ...


def fence(transaction: Transaction, attempt: Attempt, *, whole: bool) -> Steps[None]:
    """Lock the record's row in the caller's transaction, and check that no later attempt has locked it.

    ``whole``: whether a response follows, not a stage. Raises ``LeaseLost`` for a stale owner,
    ``AlreadyCommitted`` if an earlier attempt has committed its response, or with ``whole`` this attempt (S-06a), and
    ``KeyReused`` if the row belongs to another request with this key.
    """
    lease = attempt.lease
    assert lease is not None
    dialect = transaction.dialect
    named = {"record_id": lease.record_id, "fingerprint": lease.fingerprint, "retention": _retention(attempt, lease)}
    yield from _run(transaction, dialect.fence, {**named, "token": lease.token})
    rows = yield from _run(transaction, dialect.row, {"record_id": lease.record_id})
    if not rows:
        raise RecordUnreadable("the ledger's row was absent right after it was written")
    token, fingerprint, expired, response, number = rows[0]
    transaction.entered = transaction.current(), number
    if token > lease.token:
        yield from _superseded(attempt, lease)
        raise LeaseLost(f"the ledger has token {token}; this attempt has {lease.token}")
    if expired:
        yield from _run(transaction, dialect.forget_stages, {"record_id": lease.record_id})
        yield from _run(transaction, dialect.renew, named)
        return
    if not hmac.compare_digest(bytes(fingerprint), lease.fingerprint):
        raise attempt.interrupt(KeyReused("the ledger knows this key from another request"))
    if response is not None and (whole or attempt.ledger is None or attempt.ledger.stored is None):
        _prove(transaction, attempt)
        raise attempt.interrupt(AlreadyCommitted(bytes(response)))


def _prove(transaction: Transaction, attempt: Attempt) -> None:
    """Settle the attempt as committed if the ledger shows its own response to another transaction (S-06a).

    The transaction that wrote the response sees it before the COMMIT as well, so there it proves nothing.
    """
    ledger = attempt.ledger
    if ledger is None or ledger.stored is None:  # the response is of an earlier attempt
        return
    end = ledger.end()
    if end is not End.OPEN and not (end is End.UNREPORTED and transaction.entered == ledger.stored.transaction):
        ledger.prove_commit()


def find_stage(transaction: Transaction, attempt: Attempt, stage: StageId) -> Steps[bytes | None]:
    """The committed frame of a stage, read behind the fence; None if the stage has to run."""
    lease = attempt.lease
    assert lease is not None
    yield from fence(transaction, attempt, whole=False)
    recorded = attempt.stages.get(stage)
    if recorded is not None:  # by a version of the application in which the stage had no tx=
        return recorded
    named = _named(lease, stage)
    if transaction.dialect.placeholder is not None:
        yield from _run(transaction, transaction.dialect.placeholder, named)
    ids = {name: named[name] for name in ("record_id", "stage_id")}
    rows = yield from _run(transaction, transaction.dialect.find_stage, ids)
    if not rows or rows[0][0] is None:
        return None
    return unseal_stage(Stage(*stage, bytes(rows[0][0])), lease, attempt.policy).frame


def save_stage(transaction: Transaction, attempt: Attempt, stage: StageId, frame: bytes) -> Steps[None]:
    """Save a stage in the caller's transaction, which ``find_stage`` has fenced.

    Raises ``LeaseLost`` if another attempt has taken over, and ``ConfigurationError`` if the transaction has ended.
    """
    attempt.check_running()
    lease = attempt.lease
    assert lease is not None
    sealed = seal_stage(Stage(*stage, frame), lease, attempt.policy).frame
    dialect, named = transaction.dialect, {**_named(lease, stage), "frame": sealed}
    current = transaction.current()
    if dialect.save_returns_row:
        named["token"] = lease.token
    rows = yield from _run(transaction, dialect.save_stage, named)
    number = rows[0][0] if rows else (yield from _check_held(transaction, attempt, lease))
    if (dialect.save_returns_row and not rows) or (current, number) != transaction.entered:
        raise ConfigurationError(_ENDED)
    attempt.in_ledger().put_stage(stage, transaction.watch(None))
    yield from _purge_sometimes(transaction)


def save_response(transaction: Transaction, attempt: Attempt, live: Response) -> Steps[bool]:
    """Save the whole response in the caller's transaction, behind the fence, if the policy stores it (S-06).

    Returns whether it was saved; if not, a retry runs again. Raises ``LeaseLost`` if another attempt has taken over,
    and ``ConfigurationError`` if the transaction has ended.
    """
    attempt.check_running()
    lease = attempt.lease
    assert lease is not None
    if not (yield from wants_kept(attempt, lease, live)):
        return False
    # The record gets the same bytes later, unless code between view and middleware changes the response. So no hook
    # runs twice.
    response, whole = yield from stored_form(live, RESPONSE, lease, attempt.policy, attempt)
    named = {"record_id": lease.record_id, "token": lease.token}
    values = {**named, "response": response, "retention": _retention(attempt, lease)}
    current = transaction.current()
    yield from _run(transaction, transaction.dialect.save_response, values)
    number = yield from _check_held(transaction, attempt, lease)
    if (current, number) != transaction.entered:
        raise ConfigurationError(_ENDED)
    watch = transaction.watch(StoredResponse(lease.record_id, lease.fingerprint, response))
    small = storable(live, attempt.policy, attempt.request_headers)
    stored = LedgerResponse(small, response, whole, transaction.entered, watch)
    attempt.in_ledger().put_response(stored)
    yield from _purge_sometimes(transaction)
    return True


def find_response(transaction: Transaction, record_id: bytes, fingerprint: bytes) -> Steps[bytes | None]:
    """The response that the ledger has for a request, or None. Read without a lock."""
    rows = yield from _run(transaction, transaction.dialect.find_response, {"record_id": record_id})
    if not rows:
        return None
    found, expired, response = rows[0]
    if expired or response is None or not hmac.compare_digest(bytes(found), fingerprint):
        return None
    return bytes(response)


def _retention(attempt: Attempt, lease: Lease) -> float:
    """Seconds for which a ledger entry is stored: at least as long as the record.

    The record's TTL begins when the attempt ends, and the attempt may run until its lease is no longer renewed.
    """
    return attempt.policy.max_run + lease.duration + lease.ttl


def _check_held(transaction: Transaction, attempt: Attempt, lease: Lease) -> Steps[int]:
    """Check that the fence is still held: it is gone if the caller's block has ended its transaction.

    Returns the number of the present transaction, to compare with that of the fence, since the next transaction sees a
    committed row as well. Raises ``LeaseLost`` if another attempt has taken over, and ``ConfigurationError`` if the row
    was rolled back.
    """
    rows = yield from _run(transaction, transaction.dialect.token, {"record_id": lease.record_id})
    if rows and rows[0][0] == lease.token:
        return int(rows[0][1])
    if rows and rows[0][0] > lease.token:
        yield from _superseded(attempt, lease)
        raise LeaseLost("the transaction ended before its stage or response was saved, and another attempt took over")
    raise ConfigurationError(_ENDED)


def _superseded(attempt: Attempt, lease: Lease) -> Steps[None]:
    """Note that another attempt owns the request now, and report it once."""
    if attempt.lose():
        record = events.short(lease.record_id)
        yield from warn(attempt.policy, events.OwnershipLost(record, lease.attempt), attempt)
        # A backend whose clock is behind may still name this attempt as the owner, and refuse every other one.
        try:
            yield from ask(Release(lease))
        except LeaseLost:
            pass
        except Exception as error:  # without the release, the claim ends with its lease
            yield from warn(attempt.policy, events.BackendFailed.of(record, "release", error), attempt)


def _purge_sometimes(transaction: Transaction) -> Steps[None]:
    """Purge a few entries with every 16th new one, so that the ledger stays bounded if nothing else purges it.

    It runs in the caller's transaction, so a rollback undoes it. Rows that another transaction has locked are skipped.
    """
    expired = transaction.dialect.expired_in_passing
    if expired is not None and next(_NEW_ENTRIES.get()) % _PURGED_EVERY == 0:
        yield from _purge(transaction, expired, _PURGED_AT_ONCE)


def purge(transaction: Transaction, limit: int) -> Steps[int]:
    """Delete about ``limit`` expired entries with their stages; returns how many were found."""
    return (yield from _purge(transaction, transaction.dialect.expired, limit))


def _purge(transaction: Transaction, counting: str, limit: int) -> Steps[int]:
    ((expired, until),) = yield from _run(transaction, counting, {"limit": limit})
    if expired:
        values = {"limit": limit, "until": until}
        for statement in transaction.dialect.purge:
            named = {name: value for name, value in values.items() if f":{name}" in statement}
            yield from _run(transaction, statement, named)
    return int(expired)


def forget(transaction: Transaction, record_ids: Sequence[bytes]) -> Steps[int]:
    """Delete the entries of these records with their stages; returns how many were found."""
    forgotten = 0
    for record_id in record_ids:
        named = {"record_id": record_id}
        ((entries,),) = yield from _run(transaction, COUNT_ENTRIES, named)
        forgotten += int(entries)
        yield from _run(transaction, transaction.dialect.forget_stages, named)
        yield from _run(transaction, FORGET_ENTRY, named)
    return forgotten


def _run(transaction: Transaction, statement: str, parameters: Parameters) -> Steps[Rows]:
    run: Callable[[], Rows | Awaitable[Rows]] = partial(transaction.execute, statement, parameters)
    return (yield from ask(Call(run)))


def _named(lease: Lease, stage: StageId) -> dict[str, object]:
    name, key = stage
    return {"record_id": lease.record_id, "stage_id": _digest(stage), "name": name, "key": key}


def _digest(stage: StageId) -> bytes:
    """A digest of name and key for the index, since some databases limit the length of its entries."""
    name = stage[0].encode("utf-8", "surrogatepass")
    return hashlib.sha256(struct.pack("!I", len(name)) + name + stage[1].encode("utf-8", "surrogatepass")).digest()


# Running steps outside of an attempt

_CALLS: Handlers = {Call: methodcaller("function")}


def run(steps: Steps[T]) -> T:
    """Run steps of a sync transaction."""
    return Driver(_CALLS).run(steps)


async def arun(steps: Steps[T]) -> T:
    """Run steps of an async transaction. Nothing is shielded: a cancellation rolls back the caller's transaction."""
    return await AsyncDriver(_CALLS).run(steps)


def is_visible(transaction: Transaction, stored: StoredResponse) -> bool:
    """Whether a sync transaction sees a response. If another transaction wrote the response, it was committed."""
    return run(find_response(transaction, stored.record_id, stored.fingerprint)) == stored.response


async def ais_visible(transaction: Transaction, stored: StoredResponse) -> bool:
    """Whether an async transaction sees a response. If another transaction wrote the response, it was committed."""
    return await arun(find_response(transaction, stored.record_id, stored.fingerprint)) == stored.response


def in_thread_on_a_loop(ask: Callable[[], bool]) -> Callable[[], bool | Awaitable[bool]]:
    """``ask`` for sync and async callers: it runs in a thread where an event loop runs, and otherwise directly."""
    return lambda: ask() if current_library() is None else in_thread(ask)
