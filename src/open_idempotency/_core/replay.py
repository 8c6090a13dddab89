"""Which answers are kept, what of them, and how a kept one is sent again (SPEC sections 4 and 7)."""

from __future__ import annotations

from functools import lru_cache

from open_idempotency._core.codecs import OMITTED
from open_idempotency._core.requests import Answer, Headers
from open_idempotency.policy import CREDENTIALS_OF_RESPONSES

REPLAYED = (b"idempotent-replayed", b"true")
UNRECORDED = (b"idempotency-status", b"unrecorded")

# "Not now", and of 307 and 308 "not here": the client sends this very request again, there and with the same key.
_GIVEN_BACK = frozenset({307, 308, 401, 403, 407, 408, 409, 421, 423, 425, 429})

# what belongs to one connection, one moment, one session or one trace, and not to the outcome.
_NOT_KEPT = frozenset(
    {
        b"authorization",
        b"set-cookie",
        b"date",
        b"connection",
        b"keep-alive",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"content-length",
        b"www-authenticate",
        b"authentication-info",
        b"alt-svc",
        b"age",
        b"server-timing",
        b"traceparent",
        b"tracestate",
        b"x-request-id",
        REPLAYED[0],
        UNRECORDED[0],
        OMITTED,
    }
)
_NOT_KEPT_PREFIXES = (b"proxy-", b"access-control-")
_CREDENTIALS = frozenset(name.encode("ascii") for name in CREDENTIALS_OF_RESPONSES)
_CONNECTION = len(b"connection")
BODILESS = frozenset({204, 304})


def is_kept_status(status: int) -> bool:
    """Whether responses of this status are stored by default: outcomes are.

    Refusals of the moment are not, nor are redirects that keep the method and so the key (307, 308).
    """
    return 200 <= status < 500 and status not in _GIVEN_BACK


# An application sends the same few names all the time. The bound is for one that makes names up.
@lru_cache(maxsize=256)
def is_kept_header(name: bytes, keep: tuple[str, ...] = (), drop: tuple[str, ...] = ()) -> bool:
    """Whether a header of this name, in any case, is stored. ``keep``, ``drop``: the policy's exceptions (O-21)."""
    name = name.lower()
    if keep or drop:
        told = name.decode("latin-1")
        if any(told == one.lower() for one in drop):
            return False
        if any(told == one.lower() for one in keep):
            return True
    return not (name in _NOT_KEPT or name.startswith(_NOT_KEPT_PREFIXES))


def kept(answer: Answer, max_bytes: int, keep: tuple[str, ...] = (), drop: tuple[str, ...] = ()) -> Answer:
    """What is stored of a live response; over ``max_bytes`` of body it is a tombstone (O-11).

    ``keep``, ``drop``: the policy's exceptions from what is stored of the headers (O-21).
    """
    headers = [(name, value) for name, value in answer.headers if is_kept_header(name, keep, drop)]
    named = _named_by_connection(answer.headers)
    if named:
        headers = [(name, value) for name, value in headers if name.lower() not in named]
    body = answer.body
    if body is not None and len(body) > max_bytes:
        body = None
    return Answer(answer.status, headers, body)


def _named_by_connection(headers: Headers) -> set[bytes]:
    lines = [value for name, value in headers if len(name) == _CONNECTION and name.lower() == b"connection"]
    return {token.strip().lower() for value in lines for token in value.split(b",")} if lines else set()


def omitted(stored: Answer, live: Headers, drop: tuple[str, ...]) -> bytes:
    """The names of the credentials that a stored response lacks, of its ``live`` headers (O-21a).

    Not those that ``drop`` names, since that was meant, and none of a tombstone, which is not replayed.
    """
    if stored.body is None:
        return b""
    there = {name.lower() for name, _ in stored.headers}
    meant = {name.lower().encode("ascii") for name in drop}
    return b", ".join(sorted({name.lower() for name, _ in live} & _CREDENTIALS - there - meant))


def replayed(stored: Answer) -> Answer:
    """A stored answer as it is sent again: marked, with its length counted anew."""
    headers = [*stored.headers, REPLAYED]
    if stored.status in BODILESS:
        return Answer(stored.status, headers, b"")
    body = stored.body or b""
    return Answer(stored.status, [*headers, (b"content-length", b"%d" % len(body))], body)


def location(headers: Headers) -> bytes | None:
    """The Location of an answer, if it has one."""
    return next((value for name, value in headers if name.lower() == b"location"), None)
