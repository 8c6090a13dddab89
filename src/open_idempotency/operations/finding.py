"""Finding records by their id or its beginning, listing them, and counting them."""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from open_idempotency.backend import Backend, Get, Record
from open_idempotency.decisions import State
from open_idempotency.exceptions import RecordUnreadable
from open_idempotency.operations.errors import RecordUnknown, SeveralRecords
from open_idempotency.operations.views import STUCK_AFTER, RecordView, view_of
from open_idempotency.policy import IdempotencyPolicy

#: characters of a record id that events and logs show
SHORT = 12
_LEAST = 4
_ID_CHARACTERS = 64
_SHOWN = 20
_is_id = re.compile(rf"[0-9a-f]{{{_LEAST},{_ID_CHARACTERS}}}").fullmatch

#: the records of each filter, by its name. The second argument: seconds that an attempt may run
FILTERS: dict[str, Callable[[RecordView, float], bool]] = {
    "stuck": lambda view, after: view.is_stuck(after),
    "abandoned": lambda view, after: view.state is State.ABANDONED,
    "failed": lambda view, after: view.state is State.FINAL or (view.state is State.FAILED and view.attempt > 0),
    "in-progress": lambda view, after: view.state is State.ALIVE,
    "completed": lambda view, after: view.state is State.COMPLETED,
    "in-doubt": lambda view, after: bool(view.in_doubt),
}


#: the filters that depend on a record's stages
_BY_STAGES = frozenset({"stuck", "in-doubt"})
_STATES = [state.value for state in State if state is not State.ABSENT]


@dataclass(frozen=True, slots=True)
class Listing:
    """The oldest records that match. ``matched``: how many match; ``unreadable``: how many could not be read."""

    records: tuple[RecordView, ...]
    matched: int
    unreadable: int = 0


@dataclass(slots=True)
class Stats:
    """All live records, counted. ``oldest``: the greatest age in each state, in seconds. Since 0.1.

    ``in_doubt``: records with a stage in doubt. ``unreadable``: of a newer version, or corrupt. ``routes``: records by
    route, where routes are known; a busy application without templates of routes has many.
    """

    total: int = 0
    states: dict[str, int] = field(
        default_factory=lambda: {state.value: 0 for state in State if state.value != "absent"}
    )
    oldest: dict[str, float] = field(default_factory=dict)
    stuck: int = 0
    in_doubt: int = 0
    unreadable: int = 0
    routes: dict[str, int] = field(default_factory=dict)


def is_record_id(text: str) -> bool:
    """Whether a text may be a record id or the beginning of one: 4 to 64 hexadecimal digits in lower case."""
    return _is_id(text) is not None


def find_record(backend: Backend, text: str) -> Record:
    """The live record whose id is, or begins with, ``text`` in hexadecimal digits (P-11).

    Raises ``RecordUnknown`` if there is no such record or ``text`` is no id; ``SeveralRecords`` if several ids begin
    with it; ``RecordUnreadable``; ``BackendUnavailable``. Since 0.1.
    """
    text = text.strip().lower()
    if not is_record_id(text):
        raise RecordUnknown(
            f"{text[:80]!r} is no record id: 4 to 64 hexadecimal digits, as events, logs and problems show them"
        )
    matching = _matching(backend, text)
    if len(matching) > 1:
        shown = ", ".join(each[:SHORT] for each in matching[:_SHOWN])
        more = " and more" if len(matching) > _SHOWN else ""
        raise SeveralRecords(f"several records begin with {text}: {shown}{more}; give more digits", matching)
    record = backend.get(Get(bytes.fromhex(matching[0]))) if matching else None
    if record is None:
        raise RecordUnknown(
            f"no record begins with {text}: it was never made, was released or forgotten, or has expired"
        )
    return record


def _matching(backend: Backend, text: str) -> list[str]:
    """The ids of live records that begin with these digits, sorted; at most one more than are shown."""
    if len(text) == _ID_CHARACTERS:
        return [text]
    found: set[str] = set()
    for record_id in backend.ids(bytes.fromhex(text[: len(text) // 2 * 2])):
        if record_id.hex().startswith(text) and record_id.hex() not in found and _is_live(backend, record_id):
            found.add(record_id.hex())
            if len(found) > _SHOWN:
                break
    return sorted(found)


def _is_live(backend: Backend, record_id: bytes) -> bool:
    try:
        return backend.get(Get(record_id)) is not None
    except RecordUnreadable:
        return True


def list_records(
    backend: Backend,
    state: str | None = None,
    *,
    older: float = 0.0,
    limit: int = 100,
    policy: IdempotencyPolicy | None = None,
) -> Listing:
    """The oldest live records, at most ``limit`` (P-10).

    ``state``: a name in ``FILTERS``; None for all. ``older``: the least number of seconds since the latest attempt
    began; with ``"stuck"`` instead the seconds that an attempt in progress may run (five minutes by default).
    ``policy``: decrypts stages, so that those in doubt are known. Every live record is read, in bounded batches,
    without its response. Unreadable records are counted. Raises ``BackendUnavailable``. Since 0.1.
    """
    now, after = backend.now(), older if state == "stuck" and older else STUCK_AFTER
    least = 0.0 if state == "stuck" else older
    matched, counts = 0, _Counts()
    oldest: list[tuple[float, str]] = []
    for record in _headers(backend, counts):
        view = view_of(record, now)
        if view.age < least or (state is not None and not _matches(backend, view, state, after, policy, counts)):
            continue
        matched += 1
        heapq.heappush(oldest, (view.age, view.record))
        if len(oldest) > limit:
            heapq.heappop(oldest)
    ids = [bytes.fromhex(record_id) for _, record_id in sorted(oldest, reverse=True)]
    whole = [_view(backend, record_id, now, policy, counts) for record_id in ids]
    return Listing(tuple(each for each in whole if each is not None), matched, counts.unreadable)


def _matches(
    backend: Backend, view: RecordView, state: str, after: float, policy: IdempotencyPolicy | None, counts: _Counts
) -> bool:
    """Whether a record passes a filter. ``view``: without stages, which are read only if the filter needs them."""
    if FILTERS[state](view, after):
        return True
    if state not in _BY_STAGES or view.state in (State.ALIVE, State.COMPLETED):
        return False
    whole = _view(backend, view.seen.record_id, view.seen.claimed_at + view.age, policy, counts)
    return whole is not None and FILTERS[state](whole, after)


def _view(
    backend: Backend, record_id: bytes, now: float, policy: IdempotencyPolicy | None, counts: _Counts
) -> RecordView | None:
    """The view of a record. None if it is gone, or if it cannot be read, which is counted."""
    try:
        record = backend.get(Get(record_id))
        return None if record is None else view_of(record, now, policy=policy)
    except RecordUnreadable:
        counts.unreadable += 1
        return None


def stats(backend: Backend, *, policy: IdempotencyPolicy | None = None) -> Stats:
    """Count all live records (P-16). They are read in bounded batches, without their responses.

    ``policy``: decrypts stages, so that those in doubt are known. Raises ``BackendUnavailable``.
    Since 0.1.
    """
    now, found, counts = backend.now(), Stats(), _Counts()
    for record in _headers(backend, counts):
        view = view_of(record, now)
        name = view.state.value
        found.total += 1
        found.states[name] = found.states.get(name, 0) + 1
        found.oldest[name] = max(found.oldest.get(name, 0.0), view.age)
        found.stuck += _matches(backend, view, "stuck", STUCK_AFTER, policy, counts)
        found.in_doubt += _matches(backend, view, "in-doubt", STUCK_AFTER, policy, counts)
        if view.route:
            route = f"{view.method} {view.route}".strip()
            found.routes[route] = found.routes.get(route, 0) + 1
    found.unreadable = counts.unreadable
    return found


@dataclass(slots=True)
class _Counts:
    unreadable: int = 0


def _headers(backend: Backend, counts: _Counts) -> Iterator[Record]:
    """All live records, each once, mostly without responses and stages. Unreadable ones are counted."""
    seen: set[bytes] = set()
    try:
        for record in backend.scan_headers():
            if record.record_id not in seen:
                seen.add(record.record_id)
                yield record
    except RecordUnreadable:
        # One unreadable record fails the whole batch, so the rest are read one by one.
        for record_id in backend.ids():
            if record_id in seen:
                continue
            seen.add(record_id)
            try:
                single = backend.get(Get(record_id))
            except RecordUnreadable:
                counts.unreadable += 1
                continue
            if single is not None:
                yield single
