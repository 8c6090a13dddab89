"""IdempotencyPolicy: every option of the library, in one frozen value that validates itself.

Adapters accept its fields as keyword arguments, a whole policy, or both (keywords then override the policy).
Durations are seconds or ``timedelta`` here and float seconds inside; sizes are bytes.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, cast

from open_idempotency.exceptions import ConfigurationError

if TYPE_CHECKING:
    from open_idempotency._core.models import Ledger, Request, Response, Sealer
    from open_idempotency._core.problems import Problem
    from open_idempotency.events import Listener

__all__ = ["IdempotencyPolicy"]

Seconds = float | int | timedelta
#: seconds; no duration is longer
_LONGEST = 100 * 365 * 86_400

_TOKEN_CHARS = frozenset("!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
#: in ``docs_url``: stands for the name of the problem
DOCS_URL_TYPE = "{type}"
_URL = re.compile(r"[!-;=?-~]+")
_HEADER_VALUE = re.compile(r"[!-~](?:[ \t!-~]*[!-~])?")
#: methods that no policy covers
NEVER_COVERED = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "CONNECT"})

#: headers in which clients send credentials that stay the same from one request to the next
CREDENTIAL_HEADERS = (
    "Authorization",
    "X-API-Key",
    "API-Key",
    "ApiKey",
    "X-API-Token",
    "X-Access-Token",
    "X-Auth-Key",
    "X-Auth-Token",
    "X-Authorization",
    "X-Client-Secret",
    "X-Goog-Api-Key",
    "X-RapidAPI-Key",
    "X-Secret-Key",
    "X-Service-Token",
    "X-Session-Token",
    "X-User-Token",
    "Ocp-Apim-Subscription-Key",
    "Private-Token",
)
#: entries of a session that name the user, in applications and their extensions, the most certain first
SESSION_IDENTITY = ("_user_id", "user_id", "user", "uid", "sub")
#: the parts of a request that count for its fingerprint
ALL_PARTS = ("method", "path", "query", "body")
#: the value of ``scope`` that makes all callers one caller
ANONYMOUS: Literal["anonymous"] = "anonymous"
#: session entries of frameworks that do not name the user; Flask-Login's ``_id`` is a digest of address and browser,
#: which people in one office share
NO_IDENTITY = frozenset(
    {"_id", "_fresh", "_permanent", "_flashes", "_messages", "_language", "csrf_token", "_csrftoken"}
)
#: response headers that give credentials to a client
CREDENTIALS_OF_RESPONSES = ("authorization", "set-cookie")
#: fields that take names of headers
_HEADER_NAMES = ("aliases", "credential_headers", "fingerprint_headers", "drop_headers", "keep_headers")
#: headers that belong to one connection or one message, or that the library writes: never stored
_NEVER_STORED = frozenset(
    {
        "connection",
        "content-length",
        "date",
        "idempotency-django-response",
        "idempotency-omitted",
        "idempotency-origin",
        "idempotency-status",
        "idempotency-traceparent",
        "idempotent-replayed",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
#: headers that describe one problem; the library sets them
_OF_PROBLEMS = frozenset(
    {
        "cache-control",
        "content-encoding",
        "content-type",
        "link",
        "retry-after",
        "stripe-should-retry",
        "www-authenticate",
    }
)
#: headers that differ from one request of a caller to the next
_NO_CREDENTIALS = frozenset({"date", "dpop", "proxy-authorization", "signature", "signature-input"})


@dataclass(frozen=True, kw_only=True)
class IdempotencyPolicy:
    """How a route treats idempotency keys. Raises ``ConfigurationError`` that names the wrong field.

    Coverage
        ``enabled``: False switches everything off, such as in tests: each request runs as if it had no key, and one
        warning reports it. ``cover``: ``"methods"`` covers all requests with these methods; ``"marked"`` covers only
        the routes that a decorator, a dependency or a rule by path names.
        ``methods``: HTTP methods that are covered (never GET, HEAD, OPTIONS, TRACE, CONNECT).
        ``required``: a covered request without a key gets 400. ``header``: the name of the key's header;
        ``aliases``: further names of the key's header.
        ``profile``: ``"strict"`` accepts only an RFC 9651 String, ``"lenient"`` also a bare key. ``validate``:
        called with the key; returns a true value to accept it (``uuid.UUID`` and
        ``re.compile(...).fullmatch`` do); a false value and ``ValueError`` refuse it.
        ``key``: called with the request; returns its key, or None for a request without a key, or raises
        ``KeyRejected`` (400). ``key_from`` makes such a callable. ``header`` and ``aliases`` are then not read.
        ``echo_key``: send the key back, in ``header``.

    Who and what
        ``scope``: called with the request; returns the caller's identity (``str``). Without it the caller is the
        framework's verified user, then the caller in the session, then the credentials in the headers.
        ``"anonymous"`` makes all callers one caller. ``session_identity``: the entries of the session that hold the
        caller's id; the first entry with an identity counts; a tuple of names, or one name.
        ``credential_headers``: the headers with credentials
        that stay the same from one request of a caller to the next; other credentials are another caller.
        ``scope_by_host``: the ``Host`` header belongs to the caller, if it distinguishes tenants. A client that
        retries on another host runs again.
        ``scope_by_route``: method and path belong to the key, so one key may be used on several endpoints
        independently, instead of 422. ``application``: separates applications that share a backend.
        ``fingerprint``: ``"auto"``, ``"json"``, ``"jcs"`` (numbers by value, RFC 8785; needs the extra ``jcs``),
        ``"none"`` (the body is not compared) or a callable that returns the bytes to compare.
        ``fingerprint_parts``: which of method, path, query and body are compared. ``fingerprint_headers``: names of
        request headers that are compared as well. ``fingerprint_ignore``: JSON pointers to values that are not
        compared (needs ``"json"`` or ``"jcs"``). ``secret``: HMAC key of the digests.
        ``max_live_keys``: how many live keys one caller may have at the same time, None for no limit; a new key
        beyond the limit gets 429.

    Liveness
        ``lease``: seconds a claim lasts unless it is renewed. ``ttl``: seconds a record is stored after completion or
        last activity. ``error_ttl``: seconds a record is stored if its response has status 400 or above, unless its
        attempt has recorded a stage or committed in a transaction (None: one hour, or ttl if that is shorter).
        ``max_run``: the most seconds for which a lease is renewed.
        ``wait``: seconds a duplicate waits for the first request before its 409;
        ``max_wait``: the most seconds that a duplicate with ``Prefer: wait=N`` waits; 0 ignores the header.
        ``max_waiting``: how many duplicates of one process may wait at the same time; further ones get their 409 at
        once (None: 2 where waiting holds a thread, otherwise no limit).
        ``respond_within``: the most seconds that a client waits for its finished response while the backend fails;
        then the client gets the response, marked as unrecorded. ``record_within``: seconds for which recording
        a response is tried in total, including the background (None: as long as max_run, or ttl if that is
        shorter).
        ``stream_grace``: seconds for which a stream may go on after its client has left; a stream that has not ended
        by then is closed, and its attempt has failed.

    After a failure
        ``on_failed``: ``"resume"`` runs again, ``"replay"`` repeats the failed response, ``"reject"`` gives 409.
        ``on_abandoned``: after the worker died, ``"resume"`` or ``"reject"``. ``max_attempts``: how often a request
        may run at most, None for no limit. ``ledger``: where to look for a committed response before a retry is
        refused:
        a callable that opens a transaction, such as ``engine.begin``, or a Django database alias; ``atomic=True`` of a
        Django view sets it. ``fail_open``: run unprotected while the backend is down.

    What is stored
        ``store``: called with a copy of the response: status, headers and body (None if it is too
        long to be stored); returns True to store it, False to discard it, None for the rule of the status.
        ``drop_headers``: names of further response headers that are not stored, and so not replayed. Naming
        ``Set-Cookie`` or ``Authorization`` here omits them without a warning. ``keep_headers``: names of headers that
        are stored although they are not by default; ``Set-Cookie`` and ``Authorization`` only if ``encryption`` is set.
        ``redact``: called with the response that is about to be stored; returns the response to store. The live
        response is unchanged. ``on_replay``: called with a copy of the stored response that is about to be sent again,
        and with the request that gets it; returns the response to send. The stored response is unchanged.
        ``encryption``: seals stored responses and stage values, such as ``EncryptionKeys``.
        ``plain_records``: while encryption is being switched on, ``"accept"`` reads records that are not encrypted, and
        ``"write"`` also writes them; ``"refuse"`` gives 503.
        ``max_request_bytes``: a request with a key and a longer body gets 413. ``max_response_bytes``: of a response
        with a longer body only status and headers are stored. ``max_stage_bytes``: a longer stage value is an error.
        ``spool_bytes``: longer request bodies are written to disk while they are hashed. ``strict_stages``: stages
        without a key raise NotStarted.

    Reporting
        ``docs_url``: linked from problems; ``{type}`` in it stands for the problem's name, such as ``in-progress``.
        ``problem_headers``: additional headers of every problem, as a
        mapping such as ``{"Access-Control-Allow-Origin": "https://app.example"}``. ``compat``: ``"stripe"`` writes
        problems as Stripe's API writes its errors, with its statuses. ``render_problem``: makes the response of a
        problem itself, and overrides ``compat``.
        ``on_event``: called with each event.
    """

    enabled: bool = True
    cover: Literal["methods", "marked"] = "methods"
    methods: frozenset[str] = frozenset({"POST", "PATCH"})
    required: bool = False
    header: str = "Idempotency-Key"
    aliases: tuple[str, ...] = ()
    profile: Literal["lenient", "strict"] = "lenient"
    validate: Callable[[str], object] | None = None
    key: Callable[[Request], str | None] | None = None
    echo_key: bool = False

    scope: Callable[[Request], str] | Literal["anonymous"] | None = None
    session_identity: tuple[str, ...] = SESSION_IDENTITY
    credential_headers: tuple[str, ...] = CREDENTIAL_HEADERS
    scope_by_host: bool = False
    scope_by_route: bool = False
    application: str = ""
    fingerprint: Literal["auto", "json", "jcs", "none"] | Callable[[Request], bytes] = "auto"
    fingerprint_parts: tuple[str, ...] = ALL_PARTS
    fingerprint_headers: tuple[str, ...] = ()
    fingerprint_ignore: tuple[str, ...] = ()
    secret: bytes | None = dataclasses.field(default=None, repr=False)
    max_live_keys: int | None = None

    lease: float = 30.0
    ttl: float = 86_400.0
    error_ttl: float | None = None
    max_run: float = 3_600.0
    wait: float = 0.0
    max_wait: float = 0.0
    max_waiting: int | None = None
    respond_within: float = 5.0
    record_within: float | None = None
    stream_grace: float = 5.0

    on_failed: Literal["resume", "replay", "reject"] = "resume"
    on_abandoned: Literal["resume", "reject"] = "resume"
    max_attempts: int | None = None
    ledger: Ledger | None = None
    fail_open: bool = False

    store: Callable[[Response], bool | None] | None = None
    drop_headers: tuple[str, ...] = ()
    keep_headers: tuple[str, ...] = ()
    redact: Callable[[Response], Response] | None = None
    on_replay: Callable[[Response, Request], Response] | None = None
    encryption: Sealer | None = dataclasses.field(default=None, repr=False)
    plain_records: Literal["refuse", "accept", "write"] = "refuse"
    max_request_bytes: int = 10 * 1024 * 1024
    max_response_bytes: int = 1024 * 1024
    max_stage_bytes: int = 64 * 1024
    spool_bytes: int = 1024 * 1024
    strict_stages: bool = False

    docs_url: str | None = None
    problem_headers: Mapping[str, str] | tuple[tuple[str, str], ...] = ()
    compat: Literal["stripe"] | None = None
    render_problem: Callable[[Problem], Response] | None = None
    on_event: Listener | None = None

    def __post_init__(self) -> None:
        for name in _DURATIONS:
            self._normalise(name, _seconds(name, getattr(self, name)))
        self._normalise("methods", frozenset(m.upper() for m in _names("methods", self.methods)))
        for name in (*_HEADER_NAMES, "fingerprint_ignore"):
            self._normalise(name, tuple(_names(name, getattr(self, name))))
        self._normalise("fingerprint_parts", _parts("fingerprint_parts", self.fingerprint_parts))
        self._normalise("session_identity", _entries("session_identity", self.session_identity))
        self._normalise("problem_headers", _pairs("problem_headers", self.problem_headers))
        for check in (
            _check_coverage,
            _check_choices,
            _check_durations,
            _check_sizes,
            _check_hooks,
            _check_headers,
            _check_problem_headers,
        ):
            check(self)

    def _normalise(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def refuses_retries(self) -> bool:
        """Whether a retry may be refused before any attempt has completed the request."""
        return self.on_failed != "resume" or self.on_abandoned != "resume" or self.max_attempts is not None

    @property
    def ttl_of_errors(self) -> float:
        """Seconds for which a response with status 400 or above is stored, if its attempt has recorded nothing else."""
        return min(_ERROR_TTL, self.ttl) if self.error_ttl is None else self.error_ttl

    def replace(self, **fields: Any) -> IdempotencyPolicy:
        """This policy with some fields changed; the result is validated like a new one."""
        refuse_unknown(fields)
        return dataclasses.replace(self, **fields)


_DURATIONS = (
    "lease", "ttl", "error_ttl", "max_run", "wait", "max_wait", "respond_within", "record_within", "stream_grace",
)  # fmt: skip
#: the most seconds for which an error is stored, unless ``error_ttl`` is set
_ERROR_TTL = 3_600.0


def make_policy(policy: IdempotencyPolicy | None, fields: Mapping[str, Any]) -> IdempotencyPolicy:
    """The policy from an adapter's arguments: a whole policy, fields, or a whole policy with fields changed."""
    if policy is not None and not isinstance(policy, IdempotencyPolicy):
        raise ConfigurationError(f"policy: expected an IdempotencyPolicy, got {policy!r}")
    return (policy or IdempotencyPolicy()).replace(**fields)


#: fields of a whole application, which a route cannot set
OF_APPLICATIONS = frozenset({"cover", "enabled"})
FIELD_NAMES = frozenset(f.name for f in dataclasses.fields(IdempotencyPolicy))


def refuse_unknown(fields: Iterable[str]) -> None:
    """Raise ``ConfigurationError`` for an unknown field, with the nearest name."""
    import difflib

    for name in fields:
        if name not in FIELD_NAMES:
            near = difflib.get_close_matches(name, FIELD_NAMES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(FIELD_NAMES))}"
            raise ConfigurationError(f"{name}: no such policy field; {hint}")


def _seconds(name: str, value: object) -> float | None:
    if value is None and name in ("record_within", "error_ttl"):
        return None
    number = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(min(number, _LONGEST)):
        raise ConfigurationError(f"{name}: expected seconds or a timedelta, got {value!r}")
    if number > _LONGEST:  # the system's clocks and waits count no further than some hundred years
        raise ConfigurationError(f"{name}: must be at most {_LONGEST} seconds, 100 years, got {value!r}")
    return float(number)


def _names(name: str, value: object) -> list[str]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise ConfigurationError(f"{name}: expected a list of strings, got {value!r}")
    items: list[object] = list(value)
    if not all(isinstance(item, str) for item in items):
        raise ConfigurationError(f"{name}: expected a list of strings, got {value!r}")
    return [str(item) for item in items]


def _entries(name: str, value: object) -> tuple[str, ...]:
    """Names in order, or one name. A set has another order in each process, so it would change the caller."""
    entries: tuple[object, ...] = (value,) if isinstance(value, str) else ()
    if isinstance(value, list | tuple):
        entries = tuple(cast("Sequence[object]", value))
    elif not entries:
        raise ConfigurationError(f"{name}: expected the name of a session's entry or a tuple of names, got {value!r}")
    for entry in entries:
        if not isinstance(entry, str) or not entry.strip():
            raise ConfigurationError(
                f"{name}: {entry!r} cannot be the name of a session's entry; pass non-empty strings"
            )
        if entry in NO_IDENTITY:
            raise ConfigurationError(
                f"{name}: {entry} does not say who the caller is, as callers share one value or have several; name the "
                "entry that holds the caller's id"
            )
    return tuple(str(entry) for entry in entries)


def _parts(name: str, value: object) -> tuple[str, ...]:
    """Parts of a request in their own order. All parts are the one object ``ALL_PARTS``, which is the fast path."""
    if value is ALL_PARTS:
        return ALL_PARTS
    named = _names(name, value)
    for part in named:
        if part not in ALL_PARTS:
            raise ConfigurationError(f"{name}: expected some of {', '.join(ALL_PARTS)}, got {part!r}")
    if not named:
        raise ConfigurationError(
            f"{name}: empty, so all requests would be the same; name some of {', '.join(ALL_PARTS)}"
        )
    parts = tuple(part for part in ALL_PARTS if part in named)
    return ALL_PARTS if parts == ALL_PARTS else parts


def pairs_of(headers: Mapping[str, str] | tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """The headers in a policy's field, as pairs."""
    return headers if isinstance(headers, tuple) else tuple(headers.items())


def _pairs(name: str, value: object) -> tuple[tuple[str, str], ...]:
    """Headers as pairs, from a mapping or from pairs."""
    wrong = ConfigurationError(f"{name}: expected a mapping of header names to values, both strings, got {value!r}")
    items: object = value.items() if isinstance(value, Mapping) else value  # pyright: ignore[reportUnknownMemberType]  # checked below
    if isinstance(items, str | bytes) or not isinstance(items, Iterable):
        raise wrong
    pairs: list[tuple[str, str]] = []
    for item in cast("Iterable[object]", items):
        pair: tuple[object, ...] = tuple(cast("Sequence[object]", item)) if isinstance(item, list | tuple) else ()
        if len(pair) != 2 or not all(isinstance(each, str) for each in pair):
            raise wrong
        pairs.append((str(pair[0]), str(pair[1])))
    return tuple(pairs)


def _check_coverage(p: IdempotencyPolicy) -> None:
    if not p.methods:
        raise ConfigurationError("methods: empty, so no request would be covered; name at least one")
    never = p.methods & NEVER_COVERED
    if never:
        raise ConfigurationError(f"methods: {', '.join(sorted(never))} can never be covered")
    tokens = {"methods": p.methods, "header": (p.header,), **{field: getattr(p, field) for field in _HEADER_NAMES}}
    for field, names in tokens.items():
        for name in names:
            if not isinstance(name, str) or not name or not _TOKEN_CHARS.issuperset(name):
                raise ConfigurationError(f"{field}: {name!r} is not a name that HTTP allows")
    for name in p.credential_headers:
        if name.lower() == "cookie":
            raise ConfigurationError(
                "credential_headers: Cookie contains all cookies of a browser, which sites and scripts change between "
                "two tries of one caller, so each retry would run as another caller's; put the middleware inside "
                "authentication, or let scope= read the one cookie that names the caller"
            )
        if name.lower() in _NO_CREDENTIALS or name.lower() in {p.header.lower(), *map(str.lower, p.aliases)}:
            raise ConfigurationError(
                f"credential_headers: {name} differs between two tries of one caller, so each retry would run as "
                "another caller's; name headers whose credentials stay the same, and use scope= for everything else"
            )
    for pointer in p.fingerprint_ignore:
        if not pointer.startswith("/"):
            raise ConfigurationError(
                f"fingerprint_ignore: {pointer!r} is not a JSON pointer such as '/metadata/sent_at'"
            )
    if p.fingerprint_ignore and p.fingerprint not in ("json", "jcs"):
        raise ConfigurationError('fingerprint_ignore: needs fingerprint="json" or "jcs"')
    _check_parts(p)


def _check_parts(p: IdempotencyPolicy) -> None:
    lacking = [part for part in ("method", "path") if part not in p.fingerprint_parts]
    if lacking and not p.scope_by_route:
        raise ConfigurationError(
            f"fingerprint_parts: without {' and '.join(lacking)} a key used on another endpoint would get this "
            "endpoint's response; add it, or set scope_by_route=True, which gives each endpoint its own keys"
        )
    if "body" not in p.fingerprint_parts and p.fingerprint not in ("auto", "none"):
        raise ConfigurationError(
            'fingerprint_parts: without "body" the body does not count, and fingerprint= says how it is compared; add '
            '"body", or omit fingerprint='
        )


_CHOICES: Mapping[str, tuple[object, ...]] = {
    "profile": ("lenient", "strict"),
    "on_failed": ("resume", "replay", "reject"),
    "on_abandoned": ("resume", "reject"),
    "required": (True, False),
    "enabled": (True, False),
    "cover": ("methods", "marked"),
    "fail_open": (True, False),
    "echo_key": (True, False),
    "strict_stages": (True, False),
    "scope_by_host": (True, False),
    "scope_by_route": (True, False),
    "compat": (None, "stripe"),
    "plain_records": ("refuse", "accept", "write"),
}


def _check_choices(p: IdempotencyPolicy) -> None:
    for name, choices in _CHOICES.items():
        if getattr(p, name) not in choices:
            known = ", ".join(repr(choice) for choice in choices)
            raise ConfigurationError(f"{name}: expected one of {known}, got {getattr(p, name)!r}")
    if not callable(p.fingerprint) and p.fingerprint not in ("auto", "json", "jcs", "none"):
        raise ConfigurationError(
            f"fingerprint: expected 'auto', 'json', 'jcs', 'none' or a callable, got {p.fingerprint!r}"
        )


def _check_durations(p: IdempotencyPolicy) -> None:
    for name in ("lease", "ttl", "max_run"):
        if not getattr(p, name) > 0:
            raise ConfigurationError(f"{name}: must be more than 0 seconds, got {getattr(p, name)}")
    for name in ("wait", "max_wait", "respond_within", "record_within", "stream_grace"):
        value = getattr(p, name)
        if value is not None and not value >= 0:
            raise ConfigurationError(f"{name}: must not be negative, got {value}")
    for name in ("ttl", "max_run"):
        if getattr(p, name) < p.lease:
            raise ConfigurationError(
                f"{name}: {getattr(p, name)} s is shorter than lease ({p.lease} s); raise {name} or shorten the lease"
            )
    if p.error_ttl is not None and not 0 < p.error_ttl <= p.ttl:
        raise ConfigurationError(
            f"error_ttl: must be more than 0 and at most ttl ({p.ttl} s), got {p.error_ttl}; omit it for an hour"
        )
    if p.record_within is not None and p.record_within > p.ttl:
        raise ConfigurationError(
            f"record_within: {p.record_within} s is longer than ttl ({p.ttl} s), after which the key is free again; "
            "raise ttl or lower record_within"
        )


def _check_sizes(p: IdempotencyPolicy) -> None:
    for name in ("max_request_bytes", "max_response_bytes", "max_stage_bytes", "spool_bytes"):
        value = getattr(p, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ConfigurationError(f"{name}: expected a number of bytes, got {value!r}")
    waiting = p.max_waiting
    if waiting is not None and (isinstance(waiting, bool) or not isinstance(waiting, int) or waiting < 0):
        raise ConfigurationError(f"max_waiting: expected at least 0 or None, got {waiting!r}")
    for name in ("max_attempts", "max_live_keys"):
        value = getattr(p, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigurationError(f"{name}: expected at least 1 or None, got {value!r}")


def _check_headers(p: IdempotencyPolicy) -> None:
    kept = {name.lower() for name in p.keep_headers}
    both = kept & {name.lower() for name in p.drop_headers}
    if both:
        raise ConfigurationError(
            f"keep_headers: {', '.join(sorted(both))} is in drop_headers too; remove it from one of them"
        )
    for name in sorted(kept):
        if name in _NEVER_STORED or name.startswith(("proxy-", "idempotency-access-control-")):
            raise ConfigurationError(
                f"keep_headers: {name} belongs to one connection or one message (RFC 9110, section 7.6.1), so it "
                "would be wrong in a replay; remove it"
            )
        if name in CREDENTIALS_OF_RESPONSES and (p.encryption is None or p.plain_records == "write"):
            raise ConfigurationError(
                f"keep_headers: {name} carries credentials, which would be stored in plain text; set encryption= "
                '(and not plain_records="write"), or exempt the view'
            )


def _check_problem_headers(p: IdempotencyPolicy) -> None:
    seen: set[str] = set()
    for name, value in pairs_of(p.problem_headers):
        if not name or not _TOKEN_CHARS.issuperset(name):
            raise ConfigurationError(f"problem_headers: {name!r} is not a name that HTTP allows")
        if not _HEADER_VALUE.fullmatch(value):
            raise ConfigurationError(
                f"problem_headers: the value of {name} is not one that HTTP allows (RFC 9110, section 5.5): visible "
                "ASCII, with spaces only between; percent-encode anything else"
            )
        if name.lower() in seen:
            raise ConfigurationError(f"problem_headers: {name} is given twice; join its values with a comma")
        seen.add(name.lower())
        if name.lower() in _OF_PROBLEMS or name.lower() in _NEVER_STORED or name.lower().startswith("proxy-"):
            raise ConfigurationError(
                f"problem_headers: {name} belongs to one problem or to one connection, and the library or the server "
                "sets it; remove it"
            )


_HOOKS = ("validate", "store", "redact", "on_replay", "render_problem", "on_event")


def _check_hooks(p: IdempotencyPolicy) -> None:
    if p.scope is not None and not callable(p.scope) and p.scope != ANONYMOUS:
        raise ConfigurationError(
            f"scope: {p.scope!r} names no caller; pass a callable that takes the request and returns the caller's "
            f"id, or {ANONYMOUS!r} to make all callers one caller"
        )
    for name in ("key", "scope", "fingerprint", *_HOOKS):
        if inspect.iscoroutinefunction(getattr(p, name)):
            raise ConfigurationError(f"{name}: got a coroutine function, which is never awaited; pass a plain function")
    if isinstance(p.key, str):
        raise ConfigurationError(f"key: {p.key!r} is text; pass key_from({p.key!r}), or a callable of the request")
    for name in ("key", *_HOOKS):
        hook = getattr(p, name)
        if hook is not None and not callable(hook):
            raise ConfigurationError(f"{name}: expected a callable or None, got {hook!r}")
    if p.docs_url is not None and not (isinstance(p.docs_url, str) and _URL.fullmatch(p.docs_url)):
        raise ConfigurationError(
            f"docs_url: expected a URL with non-ASCII characters percent-encoded, got {p.docs_url!r}"
        )
    if p.docs_url is not None and re.search("[{}]", p.docs_url.replace(DOCS_URL_TYPE, "")):
        raise ConfigurationError(f"docs_url: the one placeholder is {DOCS_URL_TYPE}, got {p.docs_url!r}")
    if not isinstance(p.application, str):
        raise ConfigurationError(f"application: expected a string, got {p.application!r}")
    if p.ledger is not None and not isinstance(p.ledger, str) and not callable(p.ledger):
        raise ConfigurationError(
            f"ledger: expected a callable that opens a transaction, such as engine.begin, a Django alias or None, "
            f"got {type(p.ledger).__name__}"
        )
    _check_encryption(p)
    if p.secret is not None and not isinstance(p.secret, bytes):
        raise ConfigurationError("secret: expected bytes or None")
    if p.secret is not None and len(p.secret) < 16:
        raise ConfigurationError("secret: needs at least 16 bytes")


def _check_encryption(p: IdempotencyPolicy) -> None:
    if p.encryption is None:
        if p.plain_records != "refuse":
            raise ConfigurationError(f"plain_records: {p.plain_records!r} has no meaning without encryption=")
        return
    if not all(callable(getattr(p.encryption, verb, None)) for verb in ("seal", "unseal")):
        raise ConfigurationError("encryption: expected EncryptionKeys({...}), or an object with seal and unseal")
