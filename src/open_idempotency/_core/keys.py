"""What a request is known by: from the ``Idempotency-Key`` header and the caller to the id of the record (O-14).

The header is an RFC 9651 Item of type String (draft-ietf-httpapi-idempotency-key-header-07, section 2.1); http-sf
parses RFC 9651. Nothing here touches a backend: a malformed key is refused before any call. A record id is a digest of
the application, the caller and the key. ``Caller`` has the record ids that a request would have with other callers.

A claim also carries data about its request on which no decision depends. Its owner contains a digest of the host, which
reveals two services that store their keys under one application name (O-22). For operators it has ``about``: method,
route, caller, key and the worker that runs it (P-02), in at most ``MOST_ABOUT`` bytes, opaque to backends and not
encrypted. The part of the route and the worker is encoded once. Parts that cannot be read, such as those of a later
version, are unknown and never an error.

Caller and key are digests there, so that all records of a caller, and all callers of a key, are found although neither
is stored. With ``secret=`` they are HMACs. Without it, a reader of the records can try out names of callers. The
route is the framework's template where the adapter knows it before the claim (``/orders/{id}``). Otherwise it is the
path without its query. A path may hold personal data, so with ``encryption=`` no path is stored: of a request without a
template there is the method alone.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from typing import Any

import http_sf

from open_idempotency._core.identity import ScopeRefused, named_by_session, refused_status
from open_idempotency._core.models import MOST_ABOUT, Headers, Identity, Record, Request, Response
from open_idempotency.exceptions import IdempotencyError, KeyRejected, KeyRequired, ScopeUnknown
from open_idempotency.policy import ANONYMOUS, IdempotencyPolicy

MAX_KEY_OCTETS = 255
MIN_ANONYMOUS_OCTETS = 16
# Escapes can double a key's length, quotes add two, and parameters need some room; longer values are not parsed.
MAX_HEADER_OCTETS = 1024
_BARE = rb"[!#-+\--:<-\[\]-~]{1,255}"
# A String with nothing in it that is escaped, and nothing around it: what clients send.
_PLAIN_STRING = rb'"[ !#-\[\]-~]{1,255}"'
_is_bare = re.compile(_BARE).fullmatch
_is_plain: Mapping[str, Callable[[bytes], re.Match[bytes] | None]] = {
    "strict": re.compile(_PLAIN_STRING).fullmatch,
    "lenient": re.compile(_PLAIN_STRING + rb"|" + _BARE).fullmatch,
}
_is_visible = re.compile(rb"[!-~]+").fullmatch
_is_printable = re.compile(rb"[ -~]+").fullmatch
_EXAMPLE = '"8e03978e-40d5-43e8-bc93-6894a57f9324"'
_DIGEST_PARAMETER = b"oi-record-1"
SCOPE_PARAMETER = b"oi-scope-1"
_BY_CREDENTIALS = "authorization:"
_ANONYMOUS = "anonymous:"
# A tenant or a host, as a digest in hexadecimal digits, and then the caller's own scope.
_WITHIN = "within:"
#: match the scope of a caller that is known by its credentials alone, so that new credentials make a new caller; and
#: the scope that all anonymous callers share
by_credentials, is_anonymous = (
    re.compile(f"(?:{_WITHIN}[0-9a-f]{{64}}:)?{kind}").match for kind in (_BY_CREDENTIALS, _ANONYMOUS)
)
_AUTHORIZATION = b"authorization"
_NO_CALLER = (
    "it has to return a non-empty string that names the caller, or to raise open_idempotency.NotAuthenticated (401) "
    'where the request names none; if all callers may share their keys, set scope="anonymous" instead'
)


def key_names(policy: IdempotencyPolicy) -> frozenset[bytes]:
    """The lower-case names of the headers that may carry a key: the header and its aliases; none with ``key=``."""
    if policy.key is not None:
        return frozenset()
    return frozenset(name.lower().encode("ascii") for name in (policy.header, *policy.aliases))


def find_key(headers: Headers, names: frozenset[bytes]) -> list[tuple[bytes, bytes]]:
    """The header lines among ``headers`` that carry a key; ``names`` are lower-case."""
    return [header for header in headers if header[0] in names]


def parse_key(headers: Headers, policy: IdempotencyPolicy) -> str | None:
    """The client's key from the lines of the header and its aliases; None without a line.

    Raises ``KeyRejected`` (``KeyRequired`` for a missing key): two lines, empty, malformed, too long (H-01 to H-11).
    """
    if not headers:
        if policy.required:
            raise KeyRequired(f"send an {policy.header} header; this route requires it")
        return None
    if len(headers) == 1:
        return _read_header(headers[0][1], policy)
    if len({name for name, _ in headers}) < len(headers):
        raise KeyRejected(f"send one {policy.header} header, not {len(headers)}")
    keys = {_read_header(value, policy) for _, value in headers}
    if len(keys) > 1:
        raise KeyRejected(f"{policy.header} and its alias carry different keys")
    return keys.pop()


def _read_header(value: bytes, policy: IdempotencyPolicy) -> str:
    # A plain value has no quotes inside.
    plain = _is_plain[policy.profile](value)
    key = parse_value(value, policy.profile) if plain is None else value.strip(b'"').decode("ascii")
    if policy.validate is not None:
        _validate(key, policy.validate)
    return key


def parse_value(value: bytes, profile: str) -> str:
    """The key in the value of a header, by RFC 9651 and the profile. Raises ``KeyRejected``."""
    key = _parse_item(value.strip(b" \t"), profile)
    if not key:
        raise KeyRejected("the key is empty")
    if len(key) > MAX_KEY_OCTETS:
        raise KeyRejected(f"the key is longer than {MAX_KEY_OCTETS} octets")
    return key


def _parse_item(value: bytes, profile: str) -> str:
    if len(value) > MAX_HEADER_OCTETS:
        raise KeyRejected(f"the header is longer than {MAX_HEADER_OCTETS} octets")
    if profile == "lenient" and _is_bare(value):
        return value.decode("ascii")
    if not value.startswith(b'"'):
        raise KeyRejected(_why_not_bare(value))
    try:
        item = http_sf.parse(value, tltype="item")
    except http_sf.StructuredFieldError as error:
        raise KeyRejected(f"the header is not an RFC 9651 String: {_printable(error)}") from None
    key = item[0] if isinstance(item, tuple) else item
    if type(key) is not str:
        raise KeyRejected(f"the header is not an RFC 9651 String such as {_EXAMPLE}")
    return key


def _why_not_bare(value: bytes) -> str:
    """What is wrong with a key that is not in quotes; the parser's message would speak of numbers and lists."""
    if not value:
        return "the key is empty"
    if len(value) > MAX_KEY_OCTETS and _is_visible(value):
        return f"the key is longer than {MAX_KEY_OCTETS} octets"
    if not _is_printable(value):
        return f"the key has a character that is not printable ASCII; send a String such as {_EXAMPLE}"
    return f"the key has to be in double quotes, an RFC 9651 String such as {_EXAMPLE}"


def _printable(error: Exception) -> str:
    """A parser's message, safe to send back: it may contain any bytes of the client's."""
    return "".join(char if " " <= char <= "~" else "?" for char in str(error))[:200]


def echo_of(key: str, headers: Headers, policy: IdempotencyPolicy) -> tuple[bytes, bytes]:
    """The header that sends a key back: as the client wrote it, or bare, or as a String where it cannot be bare."""
    name = policy.header.lower().encode("ascii")
    sent = [value.strip(b" \t") for header, value in headers if header == name]
    if sent:
        return name, sent[0]
    raw = key.encode("ascii")
    return name, raw if _is_bare(raw) else b'"%b"' % raw.replace(b"\\", b"\\\\").replace(b'"', b'\\"')


def with_echo(response: Response, echo: tuple[bytes, bytes]) -> Response:
    """The response with the client's key, unless it has such a header of its own."""
    if any(name.lower() == echo[0] for name, _ in response.headers):
        return response
    return replace(response, headers=[*response.headers, echo])


def check_key(key: str, policy: IdempotencyPolicy) -> None:
    """Raise ``KeyRejected`` for a key that no header could carry, and for one that ``validate=`` refuses."""
    if not key:
        raise KeyRejected("the key is empty")
    if len(key) > MAX_KEY_OCTETS:
        raise KeyRejected(f"the key is longer than {MAX_KEY_OCTETS} octets")
    if not key.isascii() or not key.isprintable():
        raise KeyRejected("the key has a character that is not printable ASCII")
    if policy.validate is not None:
        _validate(key, policy.validate)


def _validate(key: str, validate: Callable[[str], object]) -> None:
    try:
        verdict = validate(key)
    except ValueError as error:
        raise KeyRejected(str(error) or "the key does not have the form that this service requires") from error
    if not verdict:
        raise KeyRejected("the key does not have the form that this service requires")


# Who sent the key, and the record ids that follow from it (O-14)


def caller_scope(request: Request, caller: Identity, key: str, policy: IdempotencyPolicy) -> str:
    """Who the caller is, as text with a kind in front, so that no two kinds collide.

    The first that applies: the result of ``scope=``, the framework's verified user, the caller whom the session names,
    all credentials in the headers of ``credential_headers``, anonymous. With ``scope="anonymous"`` all callers are
    anonymous. The same caller has another scope in each tenant, and on each host with ``scope_by_host``.

    Raises ``ScopeUnknown`` if ``scope=`` fails or names nobody, ``ScopeRefused`` if it refuses the request,
    ``KeyRejected`` for a guessable anonymous key.
    """
    if callable(policy.scope):
        scope: str | None = "custom:" + _call_scope(request, policy)
    else:
        scope = None if policy.scope == ANONYMOUS else _known_caller(request, caller, policy)
    if scope is None:
        if len(key) < MIN_ANONYMOUS_OCTETS:
            raise KeyRejected(
                f"without credentials a key needs at least {MIN_ANONYMOUS_OCTETS} characters; send a random UUID"
            )
        scope = _ANONYMOUS
    return within(scope, request, caller, policy) if caller.tenant or policy.scope_by_host else scope


def within(scope: str, request: Request, caller: Identity, policy: IdempotencyPolicy) -> str:
    """A scope inside the caller's tenant, and on the request's host with ``scope_by_host``."""
    host = b"\0".join(request.header(b"host")).lower() if policy.scope_by_host else b""
    if not caller.tenant and not host:
        return scope
    return f"{_WITHIN}{digest(None, caller.tenant.encode(), host).hex()}:{scope}"


def _known_caller(request: Request, caller: Identity, policy: IdempotencyPolicy) -> str | None:
    if caller.user == "":
        raise ScopeUnknown("the framework's user has no name; no request runs in a shared scope")
    if caller.user is not None:
        return "user:" + caller.user
    named = named_by_session(caller.session, policy.session_identity) if caller.session else None
    if named is not None:
        return "session-user:" + named
    names = _lower(policy.credential_headers)
    # An empty header has no credentials: it would be one scope for all callers that send it.
    credentials = [header for header in request.headers if header[0] in names and header[1].strip()]
    return _BY_CREDENTIALS + _digest_of_credentials(credentials) if credentials else None


def _digest_of_credentials(credentials: Sequence[tuple[bytes, bytes]]) -> str:
    if len(credentials) == 1 and credentials[0][0] == _AUTHORIZATION:
        return hashlib.sha256(credentials[0][1]).hexdigest()
    if all(name == _AUTHORIZATION for name, _ in credentials):
        return hashlib.sha256(b"\0".join([value for _, value in credentials])).hexdigest()
    # Sorted, since proxies reorder headers; by name only, since two values of one name have an order.
    ordered = sorted(credentials, key=itemgetter(0))
    return digest(None, *chain.from_iterable(ordered)).hex()


@lru_cache(maxsize=64)
def _lower(names: tuple[str, ...]) -> frozenset[bytes]:
    return frozenset(name.lower().encode("ascii") for name in names)


def _call_scope(request: Request, policy: IdempotencyPolicy) -> str:
    assert callable(policy.scope)
    try:
        scope = policy.scope(request)
    except Exception as error:
        status = refused_status(error)
        if status is not None:
            raise ScopeRefused(error, status) from error
        raise ScopeUnknown(f"the scope= callable raised {type(error).__name__}; {_NO_CALLER}") from error
    if not isinstance(scope, str) or not scope:
        found = "an empty string" if scope == "" else type(scope).__name__
        raise ScopeUnknown(f"the scope= callable returned {found}; {_NO_CALLER}")
    return scope


def record_id(scope: str, key: str, request: Request, policy: IdempotencyPolicy) -> bytes:
    """The 32-byte digest of (application, scope, key), each part length-prefixed; an HMAC when a secret is set.

    With ``scope_by_route`` the request's method and raw path are digested too.
    """
    application, caller, name = policy.application.encode(), scope.encode(), key.encode()
    if policy.scope_by_route:
        route = request.method.encode(), request.path
        return digest(policy.secret, _DIGEST_PARAMETER, application, caller, name, *route)
    return digest(policy.secret, _DIGEST_PARAMETER, application, caller, name)


def scope_id(scope: str, policy: IdempotencyPolicy) -> bytes:
    """The 32-byte digest of (application, scope), for the quota; an HMAC when a secret is set."""
    return digest(policy.secret, SCOPE_PARAMETER, policy.application.encode(), scope.encode())


def downstream_key(seed: bytes, name: str, secret: bytes | None) -> str:
    """A key for a downstream API: the same on every attempt of one request, another for each name."""
    raw = digest(secret, b"oi-downstream-1", seed, name.encode())
    return "oi-" + base64.b32encode(raw[:20]).decode("ascii").lower()


def digest(secret: bytes | None, *parts: bytes) -> bytes:
    """SHA-256 (HMAC with a secret) of the parts, each after its length, so that no part runs into the next."""
    framed = b""
    for part in parts:
        framed += b"%d:%b" % (len(part), part)
    if secret is None:
        return hashlib.sha256(framed).digest()
    return hmac.digest(secret, framed, "sha256")


@dataclass(slots=True)
class Caller:
    """Who sent a request with a key. ``identity``: what the framework and the session say of the caller.

    ``own``: the id of the record that belongs to the caller's scope at the claim. The request may have begun at
    another.
    """

    request: Request
    key: str
    policy: IdempotencyPolicy
    identity: Identity
    own: bytes

    @property
    def user(self) -> str | None:
        """The framework's verified user, None without one."""
        return self.identity.user

    @property
    def named(self) -> bool:
        """Whether the caller is known by more than its credentials."""
        return self.names(self.identity)

    def names(self, identity: Identity) -> bool:
        """Whether an identity names somebody: a user, the result of ``scope=``, or an entry of the session."""
        if identity.user is not None or callable(self.policy.scope):
            return True
        return named_by_session(identity.session, self.policy.session_identity) is not None

    def as_left(self, user: str | None, session: Mapping[str, Any] | None) -> Identity:
        """The caller after the view: the user; without a user the session, which may name the caller."""
        return self.identity._replace(user=user, session=None if user is not None else session)

    def record(self, identity: Identity) -> bytes | None:
        """The id of the record that this request would have from this caller; None if that cannot be known."""
        try:
            scope = caller_scope(self.request, identity, self.key, self.policy)
        except IdempotencyError:
            return None
        return record_id(scope, self.key, self.request, self.policy)

    def of_session(self, digest: str) -> bytes:
        """An id for this request under one session, by the session's digest. No user's record can have this id.

        A browser may show one session to several tenants, so each tenant has another id.
        """
        scope = within("session:" + digest, self.request, self.identity, self.policy)
        return record_id(scope, self.key, self.request, self.policy)


# What a claim says of its request: the owner's host (O-22), and what operators read (P-02)

# Owners of earlier versions are random all through. One in 16 million begins like this.
_OF_HOST = b"oi@"
_HOST_END = len(_OF_HOST) + 4


def owner_at_host(owner: bytes, request: Request, policy: IdempotencyPolicy) -> bytes:
    """The owner of a claim with a digest of the request's host in it; 9 of its 16 bytes stay random.

    The owner is unchanged if ``application=`` is set, if hosts have keys of their own, or if the request names no host.
    """
    if policy.application or policy.scope_by_host:
        return owner
    for name, value in request.headers:
        if name == b"host":
            return _begin_of(value.lower()) + owner[_HOST_END:]
    return owner


# A service has few names. The bound is for a client that makes names up.
@lru_cache(maxsize=64)
def _begin_of(host: bytes) -> bytes:
    return _OF_HOST + hashlib.sha256(host).digest()[:4]


def host_of(owner: bytes) -> bytes | None:
    """The digest of the host in an owner; None in one that names no host."""
    return owner[len(_OF_HOST) : _HOST_END] if owner.startswith(_OF_HOST) else None


ABOUT_VERSION = 1
#: bytes of the digest that stands for a caller
CALLER_OCTETS = 16
#: bytes of the digest that stands for a key
KEY_OCTETS = 8
_KEY_PARAMETER = b"oi-key-1"
# A worker that does not know ``about`` leaves it as it is when it takes a record over. So the holder counts only beside
# the owner that it was written with.
_OWNER_OCTETS = 4
# version, the first bytes of the owner, caller, key, lengths of method and holder; then method, holder and route
_HEAD = struct.Struct(f"!B{_OWNER_OCTETS}s{CALLER_OCTETS}s{KEY_OCTETS}s")
_LENGTHS = struct.Struct("!BB")
_pack_head = _HEAD.pack
_UNKNOWN_CALLER, _UNKNOWN_KEY = bytes(CALLER_OCTETS), bytes(KEY_OCTETS)
_MOST_METHOD, _MOST_HOLDER = 20, 80
_CUT = "…"


@dataclass(frozen=True, slots=True)
class About:
    """The request of a record, as far as it is known. A field is empty if it is not known.

    ``method``: in upper case; empty for what is no request. ``route``: the route's template or the path, or the scope
    of what is no request; cut to fit, with ``…`` at its end. ``caller``: 16 bytes that all records of one caller in one
    application have in common; ``key``: 8 bytes that all records of one key have in common. ``holder``: ``host:pid`` of
    the worker that claimed the record last.
    """

    method: str = ""
    route: str = ""
    caller: bytes = b""
    holder: str = ""
    key: bytes = b""

    def encode(self, owner: bytes) -> bytes:
        """The bytes for the claim of this owner."""
        constant = _constant(self.method, self.route, self.holder)
        return _pack_head(ABOUT_VERSION, owner[:_OWNER_OCTETS], self.caller, self.key) + constant

    @classmethod
    def decode(cls, about: bytes, owner: bytes) -> About:
        """Read the bytes of a record with this owner. Raises nothing: parts that cannot be read are unknown."""
        try:
            version, begin, caller, key = _HEAD.unpack_from(about)
            method_length, holder_length = _LENGTHS.unpack_from(about, _HEAD.size)
            if version != ABOUT_VERSION:
                return cls()
            start = _HEAD.size + _LENGTHS.size
            middle, end = start + method_length, start + method_length + holder_length
            if end > len(about):
                return cls()
            method, holder, route = (
                part.decode("utf-8") for part in (about[start:middle], about[middle:end], about[end:])
            )
        except (struct.error, UnicodeDecodeError):
            return cls()
        known = begin == owner[:_OWNER_OCTETS].ljust(_OWNER_OCTETS, b"\x00")
        caller, key = b"" if caller == _UNKNOWN_CALLER else caller, b"" if key == _UNKNOWN_KEY else key
        return cls(method, route, caller, holder if known else "", key)

    @classmethod
    def of(cls, record: Record) -> About:
        """Read what a record says about its request. Raises nothing."""
        return cls.decode(record.about, record.owner)


def caller_of(scope: str, policy: IdempotencyPolicy) -> bytes:
    """The digest that stands for the caller of this scope: the beginning of ``scope_id``."""
    return scope_id(scope, policy)[:CALLER_OCTETS]


def key_of(key: str, policy: IdempotencyPolicy) -> bytes:
    """The digest that stands for a key of this application, the same for all callers."""
    return digest(policy.secret, _KEY_PARAMETER, policy.application.encode(), key.encode())[:KEY_OCTETS]


def about_request(
    request: Request, scope: str, key: str, owner: bytes, holder: str, policy: IdempotencyPolicy
) -> bytes:
    """What a claim says about its request. ``owner``: the claim's own; ``holder``: see ``About``."""
    route = request.route
    if route is None:
        route = "" if policy.encryption is not None else request.path.decode("latin-1")
    # The same as caller_of and key_of, written out since every request with a key comes here.
    application = policy.application.encode()
    caller = digest(policy.secret, SCOPE_PARAMETER, application, scope.encode())[:CALLER_OCTETS]
    of_key = digest(policy.secret, _KEY_PARAMETER, application, key.encode())[:KEY_OCTETS]
    return _pack_head(ABOUT_VERSION, owner[:_OWNER_OCTETS], caller, of_key) + _constant(request.method, route, holder)


def about_work(name: str, scope: str, key: str, owner: bytes, holder: str, policy: IdempotencyPolicy) -> bytes:
    """What a claim says about a piece of work that is no request.

    ``name``: the kind of work, in the position of a route. ``scope``: in the position of a caller.
    """
    return About("", name, caller_of(scope, policy), holder, key_of(key, policy)).encode(owner)


# An application has few routes. The bound is for requests whose path is used because no template is known.
@lru_cache(maxsize=512)
def _constant(method: str, route: str, holder: str) -> bytes:
    """The part that the requests of one route to one worker have in common; cut so that the whole is short enough."""
    method_octets, holder_octets = _cut(method, _MOST_METHOD), _cut(holder, _MOST_HOLDER, keep_end=True)
    left = MOST_ABOUT - _HEAD.size - _LENGTHS.size - len(method_octets) - len(holder_octets)
    lengths = _LENGTHS.pack(len(method_octets), len(holder_octets))
    return b"".join((lengths, method_octets, holder_octets, _cut(route, left)))


def _cut(text: str, most: int, *, keep_end: bool = False) -> bytes:
    """A text in at most ``most`` bytes. ``keep_end``: cut its beginning, since a holder ends with its pid."""
    octets = text.encode("utf-8", "replace")
    if len(octets) <= most:
        return octets
    mark = _CUT.encode()
    kept = octets[-(most - len(mark)) :] if keep_end else octets[: most - len(mark)]
    whole = kept.decode("utf-8", "ignore").encode()
    return mark + whole if keep_end else whole + mark
