"""What the ledger does inside the application's own transaction, as steps for either colour (S-05, S-06).

The fence comes first: it locks the record's row until the transaction ends, and refuses a token that was superseded. So
a worker that lost its lease cannot commit, and one that takes over waits for the transaction of the one before, and
then sees what that committed. What is saved is rolled back with the caller's rows, or committed with them.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

from open_idempotency import events
from open_idempotency._core.attempt import Attempt, End, StageId, Watch
from open_idempotency._core.commands import Call, Release
from open_idempotency._core.drivers import Steps, ask
from open_idempotency._core.keeping import small_form, stored_form
from open_idempotency._core.models import Lease, Stage
from open_idempotency._core.requests import Answer
from open_idempotency._core.sealing import ANSWER, seal_stage, unseal_stage
from open_idempotency._core.settlement import wants_kept
from open_idempotency._core.telling import warn
from open_idempotency.exceptions import AnsweredBefore, ConfigurationError, KeyReused, LeaseLost, RecordUnreadable
from open_idempotency.ledger.dialects import Dialect

Parameters = Mapping[str, object]
Rows = Sequence[Sequence[Any]]

_ENDED = "tx=: the transaction was committed or rolled back within the block; begin, commit and roll back around it"


class Kept(NamedTuple):
    """A response in a ledger: the record and the request that it belongs to, and its frame."""

    record_id: bytes
    fingerprint: bytes
    response: bytes


class Transaction(Protocol):
    """The caller's transaction, whatever library it is of, in one colour."""

    @property
    def dialect(self) -> Dialect:
        """The statements to run."""
        ...

    @property
    def awaited(self) -> bool:
        """Whether the two verbs are to be awaited."""
        ...

    #: by what the transaction is known in which the fence stands; ``fence`` sets it
    entered: object

    def current(self) -> object:
        """What the client library has as the transaction that it is in; None in none.

        The same all the time where the library cannot tell one from the next, or does not let a block end it.
        """
        ...

    def watch(self, kept: Kept | None) -> Watch:
        """Watch for the end of the transaction.

        ``kept``: what the ledger has of the whole response, so that the database can be asked; None for a stage.
        """
        ...

    def execute(self, statement: str, parameters: Parameters) -> Rows | Awaitable[Rows]:
        """Run a statement in the transaction; its rows, none where it returns none."""
        ...


def fence(transaction: Transaction, attempt: Attempt, *, whole: bool) -> Steps[None]:
    """Lock the record's row in the caller's transaction, and check that no other attempt has been there.

    ``whole``: for a whole response, and not for a stage. Raises ``LeaseLost``; ``AnsweredBefore`` where an earlier
    attempt has committed its response, or for a whole one this attempt itself (S-06a); and ``KeyReused`` where another
    request with this key has.
    """
    lease = attempt.lease
    assert lease is not None
    dialect = transaction.dialect
    named = {"record_id": lease.record_id, "fingerprint": lease.fingerprint, "kept": _kept(attempt, lease)}
    yield from _run(transaction, dialect.fence, {**named, "token": lease.token})
    rows = yield from _run(transaction, dialect.row, {"record_id": lease.record_id})
    if not rows:
        raise RecordUnreadable("the ledger's row was not there right after it was written")
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
        attempt.stopped = error = KeyReused("the ledger knows this key from another request")
        raise error
    if response is not None and (whole or attempt.answered is None):
        _prove(transaction, attempt)
        attempt.stopped = known = AnsweredBefore(bytes(response))
        raise known


def _prove(transaction: Transaction, attempt: Attempt) -> None:
    """The ledger has this attempt's own response: seen from another transaction, that proves its COMMIT (S-06a).

    Seen from the transaction that it was written in, it proves nothing.
    """
    if attempt.answered is None:  # an earlier attempt's
        return
    end = attempt.watches[None].end()
    if end is not End.OPEN and not (end is End.UNTOLD and transaction.entered == attempt.answered_in):
        attempt.settled(End.COMMITTED)


def find_stage(transaction: Transaction, attempt: Attempt, stage: StageId) -> Steps[bytes | None]:
    """The frame of a stage that was committed, behind the fence; None where it has to run."""
    lease = attempt.lease
    assert lease is not None
    yield from fence(transaction, attempt, whole=False)
    recorded = attempt.stages.get(stage)
    if recorded is not None:  # by a release of the application in which it had no tx= yet
        return recorded
    named = _named(lease, stage)
    if transaction.dialect.place is not None:
        yield from _run(transaction, transaction.dialect.place, named)
    found = {name: named[name] for name in ("record_id", "stage_id")}
    rows = yield from _run(transaction, transaction.dialect.stage, found)
    if not rows or rows[0][0] is None:
        return None
    return unseal_stage(Stage(*stage, bytes(rows[0][0])), lease, attempt.policy).frame


def save_stage(transaction: Transaction, attempt: Attempt, stage: StageId, frame: bytes) -> Steps[None]:
    """Put a stage into the caller's transaction, which ``find_stage`` has fenced. Raises as ``_check_held``."""
    attempt.check_running()
    lease = attempt.lease
    assert lease is not None
    sealed = seal_stage(Stage(*stage, frame), lease, attempt.policy).frame
    dialect, named = transaction.dialect, {**_named(lease, stage), "frame": sealed}
    current = transaction.current()
    rows = yield from _run(transaction, dialect.save_stage, {**named, "token": lease.token} if dialect.told else named)
    number = rows[0][0] if rows else (yield from _check_held(transaction, attempt, lease))
    if (dialect.told and not rows) or (current, number) != transaction.entered:
        raise ConfigurationError(_ENDED)
    attempt.watch(stage, transaction.watch(None))


def save_answer(transaction: Transaction, attempt: Attempt, answer: Answer) -> Steps[bool]:
    """Put the whole answer into the caller's transaction, behind the fence, if it is one that is kept (S-06).

    Whether it is: after one that is not, a retry runs again. Raises as ``_check_held``.
    """
    attempt.check_running()
    lease = attempt.lease
    assert lease is not None
    if not (yield from wants_kept(attempt, lease, answer.status)):
        return False
    # The record gets these very bytes in the end, unless something between view and middleware changes the answer: so
    # either can stand for the other, and no hook runs twice.
    response, whole = yield from stored_form(answer, ANSWER, lease, attempt.policy)
    named = {"record_id": lease.record_id, "token": lease.token}
    values = {**named, "response": response, "kept": _kept(attempt, lease)}
    current = transaction.current()
    yield from _run(transaction, transaction.dialect.answer, values)
    number = yield from _check_held(transaction, attempt, lease)
    if (current, number) != transaction.entered:
        raise ConfigurationError(_ENDED)
    attempt.answered = small_form(answer, attempt.policy), response, whole
    attempt.answered_in = transaction.entered
    attempt.watch(None, transaction.watch(Kept(lease.record_id, lease.fingerprint, response)))
    return True


def find_response(transaction: Transaction, record_id: bytes, fingerprint: bytes) -> Steps[bytes | None]:
    """The response that the ledger has for this request; nothing is locked, and nothing changes."""
    rows = yield from _run(transaction, transaction.dialect.look, {"record_id": record_id})
    if not rows:
        return None
    found, expired, response = rows[0]
    if expired or response is None or not hmac.compare_digest(bytes(found), fingerprint):
        return None
    return bytes(response)


def _kept(attempt: Attempt, lease: Lease) -> float:
    """Seconds for which an entry is kept: as long as the record at least, whose time to live begins with the end of the
    attempt, and the attempt may go on until its lease is no more renewed."""
    return attempt.policy.max_run + lease.duration + lease.ttl


def _check_held(transaction: Transaction, attempt: Attempt, lease: Lease) -> Steps[int]:
    """Make sure that the fence is still there: it went if the caller's block ended the transaction that has it.

    The number of the present transaction, since a row that was committed is there in the next one as well.
    Raises ``LeaseLost`` where another attempt has come since, and ``ConfigurationError`` where the row was rolled back.
    """
    rows = yield from _run(transaction, transaction.dialect.token, {"record_id": lease.record_id})
    if rows and rows[0][0] == lease.token:
        return int(rows[0][1])
    if rows and rows[0][0] > lease.token:
        yield from _superseded(attempt, lease)
        raise LeaseLost("the transaction ended before what it was for was kept, and another attempt has come since")
    raise ConfigurationError(_ENDED)


def _superseded(attempt: Attempt, lease: Lease) -> Steps[None]:
    """Note that another attempt owns the request by now, and tell it once."""
    if not attempt.lost:
        attempt.lost = True
        record = events.short(lease.record_id)
        yield from warn(attempt.policy, events.OwnershipLost(record, lease.attempt))
        # The backend may think that this attempt is the owner, if its clock is behind: then nobody else would be.
        try:
            yield from ask(Release(lease))
        except LeaseLost:
            pass
        except Exception as error:  # the claim ends with its lease
            yield from warn(attempt.policy, events.BackendFailed.of(record, "release", error))


def purge(transaction: Transaction, limit: int) -> Steps[int]:
    """Delete about ``limit`` entries that have expired, with their stages; how many there were to delete."""
    dialect = transaction.dialect
    ((expired, until),) = yield from _run(transaction, dialect.expired, {"limit": limit})
    if expired:
        values = {"limit": limit, "until": until}
        for statement in dialect.purge:
            named = {name: value for name, value in values.items() if f":{name}" in statement}
            yield from _run(transaction, statement, named)
    return int(expired)


def _run(transaction: Transaction, statement: str, parameters: Parameters) -> Steps[Rows]:
    run: Callable[[], Rows | Awaitable[Rows]] = partial(transaction.execute, statement, parameters)
    return (yield from ask(Call(run)))


def _named(lease: Lease, stage: StageId) -> dict[str, object]:
    name, key = stage
    return {"record_id": lease.record_id, "stage_id": _digest(stage), "name": name, "key": key}


def _digest(stage: StageId) -> bytes:
    """What stands for name and key in an index, whose entries some databases keep short."""
    name = stage[0].encode("utf-8", "surrogatepass")
    return hashlib.sha256(struct.pack("!I", len(name)) + name + stage[1].encode("utf-8", "surrogatepass")).digest()
