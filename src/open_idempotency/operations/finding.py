"""Finding records by their id or its beginning, listing them, and counting them."""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

from open_idempotency._core.keys import About, caller_of, caller_scope, key_of, parse_value, record_id, scope_id, within
from open_idempotency._core.models import Headers, Identity, Request
from open_idempotency._engine.engine import Covered, Engine, Protected, protected_in
from open_idempotency.backend import Backend, Get, Record
from open_idempotency.decisions import State
from open_idempotency.exceptions import ConfigurationError, IdempotencyError, RecordUnreadable
from open_idempotency.operations.errors import CallerNeeded, RecordUnknown, SeveralRecords
from open_idempotency.operations.views import STUCK_AFTER, RecordView, view_of
from open_idempotency.policy import ANONYMOUS, IdempotencyPolicy

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
            f"{text[:80]!r} is not a record id: 4 to 64 hexadecimal digits, as events, logs and problems show them"
        )
    matching = _matching(backend, text)
    if len(matching) > 1:
        shown = ", ".join(each[:SHORT] for each in matching[:_SHOWN])
        more = " and more" if len(matching) > _SHOWN else ""
        raise SeveralRecords(f"several records begin with {text}: {shown}{more}; give more digits", matching)
    record = backend.get(Get(bytes.fromhex(matching[0]))) if matching else None
    if record is None:
        raise RecordUnknown(
            f"no record begins with {text}: it was never created, was released or forgotten, or has expired"
        )
    return record


def _matching(backend: Backend, text: str) -> list[str]:
    """The ids of live records that begin with these digits, sorted; at most one more than are shown."""
    if len(text) == _ID_CHARACTERS:
        return [text]
    found: set[str] = set()
    for each in backend.ids(bytes.fromhex(text[: len(text) // 2 * 2])):
        if each.hex().startswith(text) and each.hex() not in found and _is_live(backend, each):
            found.add(each.hex())
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


# From a key and its caller to the record, by the policy of the application (P-03 to P-06).
# A record id is a digest of the application's name, the scope of the caller and the key, by the policy of the route.
# ``locate`` computes it as a request would, without a backend call. ``find_key`` looks the record up; with the key
# alone it reads all records, since each holds a digest of its key.
# ``of`` is the application that the server runs (Starlette, FastAPI, Flask, Django's ``application``, a middleware, an
# adapter) or its ``IdempotencyPolicy``.

_METHODS = ("POST", "PATCH", "PUT", "DELETE")
# For uses in which the key does not matter; long enough for every caller.
_ANY_KEY = "0" * 36
_SHORT = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Who:
    """What is known about a caller, and about the request if routes have their own rules. Since 0.1.

    ``user``: the id of the framework's verified user, such as the primary key in Django. ``session``: the entries of a
    session that name the caller, such as ``{"user_id": 7}``. ``authorization``: the value of the ``Authorization``
    header; ``headers``: further credential headers by name. ``scope``: what the application's ``scope=`` returns for
    the caller. ``tenant``: as the framework has it; in Django ``json.dumps(["pk:7", None])``, the tenant's id and the
    schema. ``host``: the ``Host`` header, for ``scope_by_host``. ``application``: instead of the policy's.
    ``method``, ``path``: of the request, as the client sent them; needed if records belong to routes.
    """

    user: str | int | None = None
    tenant: str = ""
    session: Mapping[str, Any] | None = None
    authorization: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    scope: str | None = None
    host: str = ""
    application: str | None = None
    method: str | None = None
    path: str | None = None

    @property
    def named(self) -> bool:
        """Whether it names a caller."""
        return (self.user, self.session, self.authorization, self.scope) != (None,) * 4 or bool(self.headers)


@dataclass(frozen=True, slots=True)
class Located:
    """A record that a key may have.

    ``caller``: what names the caller: ``user``, ``session user_id``, ``credentials``, ``scope`` or ``anonymous``.
    ``caller_id``: 16 bytes that all records of this caller hold (``About.caller``).
    """

    record_id: bytes
    caller: str
    caller_id: bytes
    application: str

    @property
    def record(self) -> str:
        """The id in hexadecimal digits; events, logs and problems show the first 12."""
        return self.record_id.hex()


def protected(of: object) -> Protected:
    """What protects an application. Raises ``ConfigurationError`` if nothing or more than one middleware does."""
    found = protected_in(of)
    if len(found) == 1:
        return found[0]
    if not found:
        raise ConfigurationError(
            f"{type(of).__name__} is protected by no IdempotencyMiddleware and no Idempotency(app), and it is no "
            "IdempotencyPolicy; name the application object that the server runs"
        )
    raise ConfigurationError(
        f"{type(of).__name__} has {len(found)} IdempotencyMiddlewares; name the one that is meant, or what it is around"
    )


def engine_of(of: object) -> Engine:
    """The engine of an application. Raises ``ConfigurationError``. Since 0.1."""
    return protected(of).engine


def policy_of(of: object) -> IdempotencyPolicy:
    """The policy of an application, without the rules of routes. Raises ``ConfigurationError``. Since 0.1."""
    return of if isinstance(of, IdempotencyPolicy) else engine_of(of).policy


def locate(of: object, key: str, **who: Any) -> tuple[Located, ...]:
    """The records that a key may have, the likeliest first, without a backend call (P-03).

    ``who``: the fields of ``Who``. Several records are possible if routes have their own rules and ``path`` is not
    given, and for a ``user`` whom some requests know as the framework's user and others by their session. Without a
    caller it is the record of an anonymous caller. Raises ``CallerNeeded``, which says what else is needed;
    ``KeyRejected`` for a malformed key; ``ConfigurationError`` if the application is not protected or does not cover
    the path. Since 0.1.
    """
    given = Who(**who)
    name = _plain(key)
    found: dict[bytes, Located] = {}
    for policy in _policies(of, given):
        request = _request(policy, given)
        for caller, scope in _scopes(policy, given, name, request):
            located = record_id(scope, name, request, policy)
            found.setdefault(located, Located(located, caller, caller_of(scope, policy), policy.application))
    return tuple(found.values())


def callers(of: object, **who: Any) -> dict[bytes, str]:
    """The ids of a caller in records (``About.caller``), each with what names the caller, by all routes' policies.

    Raises what ``locate`` raises, and ``CallerNeeded`` if no caller is named. Since 0.1.
    """
    given = Who(**who)
    if not given.named:
        raise CallerNeeded("whose records? Give user=, session=, authorization= or scope=")
    found: dict[bytes, str] = {}
    for policy in _policies(of, given):
        for caller, scope in _scopes(policy, given, _ANY_KEY, _request(policy, given, route=False)):
            found.setdefault(caller_of(scope, policy), caller)
    return found


def scope_ids(of: object, **who: Any) -> tuple[bytes, ...]:
    """The ids under which a caller's keys count towards a quota, by the policies with one (``max_live_keys``)."""
    given = Who(**who)
    found: dict[bytes, None] = {}
    for policy in _policies(of, given):
        if policy.max_live_keys is not None:
            for _, scope in _scopes(policy, given, _ANY_KEY, _request(policy, given, route=False)):
                found[scope_id(scope, policy)] = None
    return tuple(found)


def find_key(backend: Backend, of: object, key: str, **who: Any) -> Record:
    """The live record of a key (P-04).

    With a caller it makes one call for each possible record. Without one it reads all records, in bounded batches,
    since each holds a digest of its key; records of earlier versions do not. Raises ``RecordUnknown``;
    ``SeveralRecords`` with their ids if several callers have used the key; and what ``locate`` and the backend raise.
    Since 0.1.
    """
    if Who(**who).named:
        return _looked_up(backend, locate(of, key, **who))
    named = _plain(key)
    wanted = {key_of(named, policy) for policy in _policies(of, Who(**who))}
    found = {r.record_id: r for r in backend.scan_headers() if About.of(r).key in wanted}
    if not found:
        # A record of an earlier version holds no digest of its key. That of an anonymous caller can be computed.
        return _looked_up(backend, _anonymous(of, key, who))
    return _only(backend, list(found.values()))


def _anonymous(of: object, key: str, who: dict[str, Any]) -> tuple[Located, ...]:
    try:
        return locate(of, key, **who)
    except IdempotencyError:
        return ()


def records_of(backend: Backend, of: object, **who: Any) -> Iterator[Record]:
    """The live records of a caller, without responses and stages (P-05); reads all records, in bounded batches.

    Not among them: records of versions that did not record the caller, and of requests that were sent before the caller
    was known, such as the login itself. Raises what ``callers`` and the backend raise. Since 0.1.
    """
    wanted = callers(of, **who)
    seen: set[bytes] = set()
    for record in backend.scan_headers():
        if About.of(record).caller in wanted and record.record_id not in seen:
            seen.add(record.record_id)
            yield record


def _looked_up(backend: Backend, located: Iterable[Located]) -> Record:
    found = [record for each in located if (record := backend.get(Get(each.record_id))) is not None]
    if not found:
        tried = ", ".join(f"{each.record[:_SHORT]} ({each.caller})" for each in located)
        raise RecordUnknown(
            "no record of this key: it was never used by this caller, was released or forgotten, or has expired"
            + (f"; looked for {tried}" if tried else "")
        )
    return _only(backend, found)


def _only(backend: Backend, found: list[Record]) -> Record:
    if len(found) == 1:
        record = backend.get(Get(found[0].record_id))
        if record is None:
            raise RecordUnknown("the record of this key disappeared during the search")
        return record
    shown = "; ".join(_described(record) for record in found[:_SHOWN])
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    raise SeveralRecords(
        f"{len(found)} records have this key, of several callers or routes: {shown}{more}. Name the caller by its "
        "user, its credentials or its scope; for records of several routes, name the path too",
        [record.record_id.hex() for record in found],
    )


def _described(record: Record) -> str:
    about = About.of(record)
    route = f"{about.method} {about.route}".strip() or "unknown route"
    return f"{record.record_id.hex()[:_SHORT]} {route}, caller {about.caller.hex()[:_SHORT] or 'unknown'}"


# Policies, requests and callers


def _plain(key: str) -> str:
    """The key without its quotes. Raises ``KeyRejected``."""
    return parse_value(key.strip().encode("utf-8"), "lenient")


def _policies(of: object, who: Who) -> list[IdempotencyPolicy]:
    """The policies that may apply to the request; of those with equal record ids only one."""
    found = [_with_application(policy, who) for policy in _known_policies(of, who)]
    distinct: dict[Any, IdempotencyPolicy] = {}
    for policy in found:
        distinct.setdefault(_identity(policy), policy)
    return list(distinct.values())


def _known_policies(of: object, who: Who) -> list[IdempotencyPolicy]:
    if isinstance(of, IdempotencyPolicy):
        return [of]
    engine, covering = protected(of)
    if covering is None:
        return [engine.policy]
    if who.path is None:
        every = list(covering.every())
        return [route.policy for route in _of_method(every, who.method)] or [engine.policy]
    methods = _METHODS if who.method is None else (who.method.upper(),)
    path = unquote(who.path.partition("?")[0])
    at = [policy for method in methods if (policy := covering.at(method, path)) is not None]
    if not at:
        raise ConfigurationError(f"{'/'.join(methods)} {path} is covered by no route of this application")
    return at


def _of_method(every: list[Covered], method: str | None) -> list[Covered]:
    return [route for route in every if method is None or route.method == method.upper()]


def _with_application(policy: IdempotencyPolicy, who: Who) -> IdempotencyPolicy:
    return policy if who.application is None else policy.replace(application=who.application)


def _identity(policy: IdempotencyPolicy) -> tuple[Any, ...]:
    scope: Callable[..., Any] | str | None = policy.scope
    return (
        policy.application, policy.secret, id(scope) if callable(scope) else scope, policy.scope_by_route,
        policy.scope_by_host, policy.session_identity, policy.credential_headers, policy.max_live_keys is None,
    )  # fmt: skip


def _request(policy: IdempotencyPolicy, who: Who, *, route: bool = True) -> Request:
    """The parts of the request on which a record id depends. ``route``: whether the route is one of them."""
    if route and policy.scope_by_route and (who.path is None or who.method is None):
        raise CallerNeeded("records belong to routes here (scope_by_route); give method= and path=, as they were sent")
    if policy.scope_by_host and not who.host:
        raise CallerNeeded("callers belong to hosts here (scope_by_host); give host=, as the client sent it")
    headers = [(b"host", who.host.encode("latin-1"))] if who.host else []
    path = quote((who.path or "/").partition("?")[0], safe="/%:@!$&'()*+,;=-._~")
    return Request((who.method or "POST").upper(), path.encode("ascii"), b"", headers, None)


def _scopes(policy: IdempotencyPolicy, who: Who, key: str, request: Request) -> Iterator[tuple[str, str]]:
    """What names the caller, and the scope, for each way to identify the caller."""
    if policy.scope == ANONYMOUS:
        yield "anonymous", caller_scope(request, Identity(None, who.tenant), key, policy)
        return
    if callable(policy.scope):
        if who.scope is None:
            raise CallerNeeded("this application names its callers by scope=; give what that returns: scope=...")
        yield "scope", within("custom:" + who.scope, request, Identity(None, who.tenant), policy)
        return
    if who.scope is not None:
        raise CallerNeeded("this application has no scope= callable; give user=, session= or authorization= instead")
    for caller, identity, headers in _identities(policy, who):
        sent = Request(request.method, request.path, b"", [*request.headers, *headers], None)
        yield caller, caller_scope(sent, identity, key, policy)


def _identities(policy: IdempotencyPolicy, who: Who) -> Iterator[tuple[str, Identity, Headers]]:
    if who.user is not None:
        yield "user", Identity(str(who.user), who.tenant), ()
        for name in policy.session_identity:
            yield f"session {name}", Identity(None, who.tenant, {name: who.user}), ()
    if who.session is not None:
        yield "session", Identity(None, who.tenant, who.session), ()
    credentials = {**({} if who.authorization is None else {"authorization": who.authorization}), **who.headers}
    if credentials:
        headers = [(name.lower().encode("ascii"), value.encode("latin-1")) for name, value in credentials.items()]
        yield "credentials", Identity(None, who.tenant), headers
    if not who.named:
        yield "anonymous", Identity(None, who.tenant), ()
