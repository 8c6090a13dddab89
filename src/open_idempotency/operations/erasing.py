"""Erase what is stored about one person's requests (P-07): a caller's records, ledger entries and quotas.

A record holds a stored response, so a request for erasure covers it. Records expire by themselves; this is for erasure
before that. There is no index by caller, since each request would pay for it. So all records are read, without their
large values, and no request waits for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from open_idempotency import ledger as ledgers
from open_idempotency._core.keys import About
from open_idempotency.backend import Backend, Get, Record, Unreserve
from open_idempotency.decisions import State, state_of
from open_idempotency.operations.changing import forget
from open_idempotency.operations.errors import OperationRefused
from open_idempotency.operations.locating import callers, scope_ids


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
