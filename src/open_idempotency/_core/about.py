"""What a record says about its request, for operators: method, route, caller, key and the worker that runs it (P-02).

A claim carries it as ``about``: at most ``MOST_ABOUT`` opaque bytes to a backend, not encrypted and never part of a
decision. What belongs to the route and the worker is encoded once, and what belongs to the request is added. Whatever
cannot be read, such as a form of a later version, is unknown and never an error: no request depends on it.

Caller and key are digests, so that all records of a caller, and all callers of a key, are found although neither is
stored. With ``secret=`` they are HMACs; without it, somebody who reads the records can try out names of callers.

The route is the framework's template where the adapter knows it before the claim (``/orders/{id}``). Otherwise it is
the path without its query. A path may hold personal data, so with ``encryption=`` none is stored: a template may be,
and of other requests the method alone.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache

from open_idempotency._core.commands import MOST_ABOUT
from open_idempotency._core.keys import SCOPE_PARAMETER, digest, scope_id
from open_idempotency._core.models import Record, Request
from open_idempotency.policy import IdempotencyPolicy

VERSION = 1
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
_NO_CALLER, _NO_KEY = bytes(CALLER_OCTETS), bytes(KEY_OCTETS)
_MOST_METHOD, _MOST_HOLDER = 20, 80
_CUT = "…"


@dataclass(frozen=True, slots=True)
class About:
    """What is known of a record's request. Each field is empty where it is not known.

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
        return _pack_head(VERSION, owner[:_OWNER_OCTETS], self.caller, self.key) + constant

    @classmethod
    def decode(cls, about: bytes, owner: bytes) -> About:
        """What the bytes of a record with this owner say. Raises nothing: what cannot be read is unknown."""
        try:
            version, begin, caller, key = _HEAD.unpack_from(about)
            method_length, holder_length = _LENGTHS.unpack_from(about, _HEAD.size)
            if version != VERSION:
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
        caller, key = b"" if caller == _NO_CALLER else caller, b"" if key == _NO_KEY else key
        return cls(method, route, caller, holder if known else "", key)

    @classmethod
    def of(cls, record: Record) -> About:
        """What a record says about its request."""
        return cls.decode(record.about, record.owner)


def caller_of(scope: str, policy: IdempotencyPolicy) -> bytes:
    """The digest that stands for the caller of this scope: the beginning of ``scope_id``."""
    return scope_id(scope, policy)[:CALLER_OCTETS]


def key_of(key: str, policy: IdempotencyPolicy) -> bytes:
    """The digest that stands for a key of this application, whoever sent it."""
    return digest(policy.secret, _KEY_PARAMETER, policy.application.encode(), key.encode())[:KEY_OCTETS]


def about_request(
    request: Request, scope: str, key: str, owner: bytes, holder: str, policy: IdempotencyPolicy
) -> bytes:
    """What a claim says about its request. ``owner``: the claim's own; ``holder``: see ``About``."""
    route = request.route
    if route is None:
        route = "" if policy.encryption is not None else request.path.decode("latin-1")
    # As in caller_of and key_of; written out here, since each request passes.
    application = policy.application.encode()
    caller = digest(policy.secret, SCOPE_PARAMETER, application, scope.encode())[:CALLER_OCTETS]
    of_key = digest(policy.secret, _KEY_PARAMETER, application, key.encode())[:KEY_OCTETS]
    return _pack_head(VERSION, owner[:_OWNER_OCTETS], caller, of_key) + _constant(request.method, route, holder)


def about_work(name: str, scope: str, key: str, owner: bytes, holder: str, policy: IdempotencyPolicy) -> bytes:
    """What a claim says about a piece of work that is no request. ``name``: of its kind, where a request has a route.

    ``scope``: what stands where a request has its caller.
    """
    return About("", name, caller_of(scope, policy), holder, key_of(key, policy)).encode(owner)


# An application has few routes. The bound is for paths that stand for themselves.
@lru_cache(maxsize=512)
def _constant(method: str, route: str, holder: str) -> bytes:
    """The part that the requests of one route to one worker have in common; cut so that the whole is short enough."""
    method_octets, holder_octets = _cut(method, _MOST_METHOD), _cut(holder, _MOST_HOLDER, keep_end=True)
    left = MOST_ABOUT - _HEAD.size - _LENGTHS.size - len(method_octets) - len(holder_octets)
    lengths = _LENGTHS.pack(len(method_octets), len(holder_octets))
    return b"".join((lengths, method_octets, holder_octets, _cut(route, left)))


def _cut(text: str, most: int, *, keep_end: bool = False) -> bytes:
    """A text in at most so many bytes. ``keep_end``: it is cut at its beginning, as the end of a holder is its pid."""
    octets = text.encode("utf-8", "replace")
    if len(octets) <= most:
        return octets
    mark = _CUT.encode()
    kept = octets[-(most - len(mark)) :] if keep_end else octets[: most - len(mark)]
    whole = kept.decode("utf-8", "ignore").encode()
    return mark + whole if keep_end else whole + mark
