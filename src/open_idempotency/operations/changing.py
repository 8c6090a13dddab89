"""Operations that change a record: forget, release, resolve. They never affect an attempt unseen by the operator.

``forget`` and ``release`` are one atomic call each, which compares token and status with the record that was seen.
``resolve`` claims the record as a request does. So it never writes a stage while an attempt runs, and a worker that was
presumed dead is fenced off.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from open_idempotency import ledger as ledgers
from open_idempotency._core import intents
from open_idempotency._core.attempt import StageId
from open_idempotency._core.keys import About
from open_idempotency._core.models import Lease
from open_idempotency._core.stored_response import StageKind, encode_stage, seal_stage, unseal_stage
from open_idempotency._stages import values
from open_idempotency._stages.stages import stage_id
from open_idempotency.backend import (
    Backend,
    Busy,
    Claim,
    Finished,
    Free,
    Freed,
    Get,
    Leased,
    Record,
    Release,
    SaveStage,
    Stage,
    Status,
    Unreserve,
)
from open_idempotency.decisions import State, state_of
from open_idempotency.exceptions import BackendUnavailable, LeaseLost, StageValueError
from open_idempotency.operations.errors import (
    NotInDoubt,
    OperationRefused,
    RecordAlive,
    RecordChanged,
    RecordSealed,
    RecordUnknown,
)
from open_idempotency.operations.finding import callers, scope_ids
from open_idempotency.operations.views import is_sealed, opening
from open_idempotency.policy import IdempotencyPolicy

#: seconds for which an operator's claim holds a record, at most; several times what the slowest call takes
_LEASE = 60.0


class NotDone(Enum):
    """The ``found`` of ``resolve`` for an effect that has not happened and will not."""

    NOT_DONE = "not_done"


NOT_DONE = NotDone.NOT_DONE


def forget(backend: Backend, seen: Record, *, force: bool = False) -> None:
    """Delete a record with its stages and its response: the next request with the key runs again (P-13).

    ``seen``: the record as it was read. ``force``: also while an attempt holds it. Such an attempt is not stopped, and
    if it ends before the next claim, it creates the record again; ``release`` fences it off. A record that is gone by
    now counts as forgotten. Raises ``RecordAlive``, ``RecordChanged``, and what the backend raises. Since 0.1.
    """
    freed = backend.free(Free(seen.record_id, seen.token, seen.status, False, force))
    if freed is Freed.ALIVE:
        raise held(seen)
    if freed is Freed.CHANGED:
        raise _changed(seen)


def held(seen: Record) -> RecordAlive:
    """The refusal to forget a record that an attempt holds."""
    return RecordAlive(
        f"record {_short(seen)} is held by an attempt; wait for its lease to end, release it if its worker "
        "is known to be dead, or use force (--force)"
    )


def release(backend: Backend, seen: Record) -> None:
    """Free the key of an attempt whose worker is known to be dead (P-14).

    The stages stay. The worker is fenced off: it can no longer renew, save or complete. The next request runs, whatever
    the policy says about failed and abandoned attempts, and counts as the first attempt. ``seen``: the record as it was
    read, in any state except completed. Raises ``RecordChanged``, ``OperationRefused`` for a completed record, and
    what the backend raises. Since 0.1.
    """
    if seen.status is Status.COMPLETED:
        raise OperationRefused(
            f"record {_short(seen)} is completed: no attempt holds its key, and a retry gets the stored response; "
            "forget it if the request is to run again"
        )
    freed = backend.free(Free(seen.record_id, seen.token, seen.status, True, True))
    if freed is Freed.DONE or (freed is not Freed.ALIVE and _is_free(backend.get(Get(seen.record_id)))):
        return  # an earlier call may have arrived although its reply was lost
    raise _changed(seen)


def _is_free(record: Record | None) -> bool:
    """Whether nothing holds the key, and no policy refuses the next attempt."""
    return record is None or (record.status is Status.FAILED and not record.final and record.attempt == 0)


def _changed(seen: Record) -> RecordChanged:
    return RecordChanged(
        f"record {_short(seen)} has changed since it was read: an attempt has ended or begun. Nothing was done; "
        "look again"
    )


def resolve(
    backend: Backend,
    seen: Record,
    name: str,
    key: str | int | None = None,
    *,
    found: Any,
    policy: IdempotencyPolicy | None = None,
) -> None:
    """Resolve a stage in doubt, and free the key, so that the next request resumes (P-15).

    ``name``, ``key``: of the stage. ``found``: the value that the stage would have had, as JSON values, which becomes
    its value; or ``NOT_DONE`` if the effect has not happened and will not, so that the stage runs again. ``policy``:
    that of the application, if the record is encrypted. The record is claimed meanwhile, as a request claims it.

    Raises ``NotInDoubt``, ``RecordAlive`` while an attempt runs, ``RecordChanged`` if another attempt has run since the
    record was read, ``RecordSealed`` without the keys, ``RecordUnknown``, ``OperationRefused`` for a record that is
    completed or failed for good, ``StageValueError`` for a value that cannot be stored, and what the backend raises.
    Since 0.1.
    """
    stage = stage_id(name, key)
    if is_sealed(seen) and (policy is None or policy.encryption is None):
        raise RecordSealed(
            f"record {_short(seen)} is encrypted; to resolve a stage of it, give the application's policy "
            "(--app module:attribute)"
        )
    payload = None if found is NOT_DONE else _payload(found, policy)
    _check_state(seen, state_of(seen, backend.now()))
    _in_doubt(_opened(seen.stages, seen, policy), stage, seen)
    leased = _claimed(backend, seen)
    saved = False
    try:
        if leased.lease.attempt != seen.attempt + 1:  # the effect may be of an attempt unseen by the operator
            raise _changed(seen)
        opened = _opened(leased.stages, seen, policy)
        made = _made(stage, _in_doubt(opened, stage, seen), payload, leased.lease)
        backend.save_stage(SaveStage(leased.lease, _sealed(made, leased.lease, policy)))
        saved = True
    except LeaseLost as error:
        raise _changed(seen) from error
    finally:
        _end(backend, leased, saved)


def _made(stage: StageId, number: int, payload: bytes | None, lease: Lease) -> Stage:
    """The stage to record: its value, or the withdrawal of the intent with this number."""
    if payload is not None:
        return Stage(*stage, encode_stage(StageKind.TYPED, payload))
    withdrawn = encode_stage(StageKind.WITHDRAWN, b"%d" % lease.attempt)
    return Stage(*intents.intent_of(stage, number + 1), withdrawn)


def _payload(found: Any, policy: IdempotencyPolicy | None) -> bytes:
    """The JSON text of a value, as the stage would have recorded it, so that its declared type can read it."""
    most = (policy or IdempotencyPolicy(scope="anonymous")).max_stage_bytes
    try:
        json.dumps(found, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StageValueError(f"found: expected JSON values, {error}") from error
    _, payload = values.encode(found, None, most)
    return payload


def _check_state(seen: Record, state: State) -> None:
    if state is State.ALIVE:
        raise _alive(seen)
    if state is State.COMPLETED:
        raise OperationRefused(f"record {_short(seen)} is completed; its stages change no more")
    if state is State.FINAL:
        raise OperationRefused(f"record {_short(seen)} has failed for good; release it first, then resolve the stage")


def _alive(seen: Record) -> RecordAlive:
    return RecordAlive(
        f"record {_short(seen)} is held by an attempt, which may record the stage itself; wait for its lease to "
        "end, or release it if its worker is known to be dead"
    )


def _opened(stages: tuple[Stage, ...], record: Record, policy: IdempotencyPolicy | None) -> dict[StageId, bytes]:
    lease = Lease(record.record_id, record.owner, record.token, record.attempt, record.fingerprint, 0.0, record.ttl)
    opens = policy is not None and policy.encryption is not None
    found: dict[StageId, bytes] = {}
    for each in stages:
        plain = unseal_stage(each, lease, opening(policy)) if policy is not None and opens else each
        found[each.name, each.key] = plain.frame
    return found


def _in_doubt(opened: dict[StageId, bytes], stage: StageId, seen: Record) -> int:
    """The number of the intent that is in doubt. Raises ``NotInDoubt``."""
    names = {intents.stage_of(each) for each in opened}
    doubtful = [
        f"--stage {shlex.quote(name)}" + (f" --stage-key {shlex.quote(key)}" if key else "")
        for name, key in sorted(names - set(opened))
        if intents.last_intent(opened, (name, key))[1] is StageKind.BEGUN
    ]
    number, kind = intents.last_intent(opened, stage)
    if stage not in opened and kind is StageKind.BEGUN:
        return number
    hint = f"in doubt: {'; '.join(doubtful)}" if doubtful else "no stage of it is in doubt"
    label = stage[0] + (f" with key {stage[1]}" if stage[1] else "")
    why = "is done" if stage in opened else "was withdrawn" if kind is not None else "is not on record"
    raise NotInDoubt(f"stage {label} of record {_short(seen)} {why}; {hint}")


def _claimed(backend: Backend, seen: Record) -> Leased:
    owner = os.urandom(16)
    about = replace(About.of(seen), holder=f"{socket.gethostname()}:{os.getpid()} (resolve)").encode(owner)
    result = backend.claim(Claim(seen.record_id, seen.fingerprint, owner, _LEASE, seen.ttl, about=about))
    if isinstance(result, Leased):
        if not result.stages:  # it was forgotten or has expired, and this claim has created it again
            backend.release(Release(result.lease))
            raise RecordUnknown(f"record {_short(seen)} was forgotten or has expired since it was read")
        return result
    if isinstance(result, Busy):
        raise _alive(seen)
    if isinstance(result, Finished):
        raise OperationRefused(f"record {_short(seen)} is completed by now; its stages change no more")
    raise _changed(seen)


def _sealed(stage: Stage, lease: Lease, policy: IdempotencyPolicy | None) -> Stage:
    return stage if policy is None else seal_stage(stage, lease, policy)


def _end(backend: Backend, leased: Leased, saved: bool) -> None:
    """End the operator's claim: free the key, or release the claim if nothing was recorded."""
    lease = leased.lease
    if not saved:
        try:
            backend.release(Release(lease))
        except (BackendUnavailable, LeaseLost):
            return  # the first error is raised already; the claim ends by itself after a minute
        return
    freed = backend.free(Free(lease.record_id, lease.token, Status.IN_PROGRESS, True, True))
    if freed is not Freed.DONE and not _is_free(backend.get(Get(lease.record_id))):
        raise RecordChanged(
            f"the stage of record {lease.record_id.hex()[:12]} is resolved, and another attempt has begun since"
        )


def _short(record: Record) -> str:
    return record.record_id.hex()[:12]


# Erase what is stored about one person's requests (P-07): a caller's records, ledger entries and quotas.
# A record holds a stored response, so a request for erasure covers it. Records expire by themselves; this is for
# erasure before that. There is no index by caller, since each request would pay for it. So all records are read,
# without their large values, and no request waits for that.


@dataclass(frozen=True, slots=True)
class Erasure:
    """What ``erase`` has done, or would do in a ``dry_run``. Since 0.1.

    ``scanned``: how many live records were read. ``found``: ids of the caller's records. ``erased``: ids of the records
    that are gone now. ``live``: ids of records that were left, since an attempt holds them. ``ledger``: how many
    entries were deleted in the application's database. ``unknown``: how many records do not name their caller, since an
    earlier version made them, or a running attempt created them again after the backend had lost them. ``elsewhere``:
    how many records of callers that may be the same person were left, by what names the caller: for a ``user``, those
    of sessions with this id.
    """

    scanned: int = 0
    found: tuple[str, ...] = ()
    erased: tuple[str, ...] = ()
    live: tuple[str, ...] = ()
    ledger: int = 0
    unknown: int = 0
    elsewhere: dict[str, int] = field(default_factory=dict[str, int])
    dry_run: bool = False

    @property
    def is_complete(self) -> bool:
        """Whether no record of the caller is left, as far as records name their caller."""
        return not self.dry_run and not self.live and not self.unknown and not self.elsewhere


def erase(
    backend: Backend,
    of: object,
    *,
    force: bool = False,
    dry_run: bool = False,
    ledger: Any = None,
    progress: Callable[[int], object] | None = None,
    **who: Any,
) -> Erasure:
    """Delete the records of a caller, with their stages, responses, quotas and ledger entries (P-07).

    ``of``: the application or its policy. ``who``: the fields of ``Who``, which must name a caller. First all records
    are read, in bounded batches; if one of them cannot be read, nothing is deleted. Then the caller's records are
    deleted one by one. A record that an attempt holds is left, unless ``force``. ``dry_run``: delete nothing.
    ``ledger``: a sync transaction on the database with the ledger, as for a stage; it deletes the entries of the
    records that were found, expired entries too, and the caller commits it. ``progress``: called with the number of
    records read, every 10,000.

    Not found: records that do not name their caller, which are counted (``Erasure.unknown``); records of requests that
    were sent before their caller was known, such as a login; ledger entries whose record is gone, which expire; records
    of ``Once``, which belong to no caller (``once.forget(key)``). A retry of an erased request runs again. Raises what
    ``callers`` and the backend raise. Since 0.1.
    """
    wanted = callers(of, **who)
    mine = {caller for caller, named in wanted.items() if not _is_guess(named, who)}
    found: dict[bytes, Record] = {}
    counts = {"scanned": 0, "unknown": 0}
    elsewhere: dict[str, int] = {}
    for record in _read(backend, counts, progress):
        caller = About.of(record).caller
        if caller in mine:
            found[record.record_id] = record
        elif caller in wanted:
            elsewhere[wanted[caller]] = elsewhere.get(wanted[caller], 0) + 1
    erased, live = _delete(backend, of, list(found.values()), force, dry_run, who)
    gone = [record_id for record_id in found if record_id.hex() not in live]
    entries = 0 if ledger is None or dry_run else ledgers.forget(ledger, gone)
    return Erasure(
        counts["scanned"], tuple(record_id.hex() for record_id in found), tuple(erased), tuple(live), entries,
        counts["unknown"], elsewhere, dry_run,
    )  # fmt: skip


def _is_guess(named: str, who: dict[str, Any]) -> bool:
    """Whether ``user=`` named a caller whom the session would have named: it may be another person."""
    return named.startswith("session ") and who.get("session") is None


def _read(backend: Backend, counts: dict[str, int], progress: Callable[[int], object] | None) -> Iterator[Record]:
    for record in backend.scan_headers():
        counts["scanned"] += 1
        counts["unknown"] += not About.of(record).caller
        if progress is not None and counts["scanned"] % 10_000 == 0:
            progress(counts["scanned"])
        yield record


def _delete(
    backend: Backend, of: object, found: list[Record], force: bool, dry_run: bool, who: dict[str, Any]
) -> tuple[list[str], list[str]]:
    """The ids of the records that are gone, and of those that were left because an attempt holds them."""
    scopes = scope_ids(of, **who) if backend.quotas and not dry_run else ()
    erased: list[str] = []
    live: list[str] = []
    for record in found:
        if dry_run:
            if not force and state_of(record, backend.now()) is State.ALIVE:
                live.append(record.record_id.hex())
            continue
        if _forget(backend, record, force):
            erased.append(record.record_id.hex())
            for scope_id in scopes:
                backend.unreserve(Unreserve(scope_id, record.record_id))
        else:
            live.append(record.record_id.hex())
    return erased, live


def _forget(backend: Backend, seen: Record, force: bool) -> bool:
    """Delete a record, even if it has changed since. False if an attempt holds it, or claims it again each time."""
    record: Record | None = seen
    for _ in range(3):
        if record is None:
            return True
        try:
            forget(backend, record, force=force)
        except OperationRefused:
            if not force and state_of(record, backend.now()) is State.ALIVE:
                return False
            record = backend.get(Get(seen.record_id))
        else:
            return True
    return record is None
