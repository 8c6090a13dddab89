"""What is stored of a response, and how a stored response is sent again.

A response is captured while it is sent, within bounds (R-04). Headers that belong to one connection, one moment or one
session are not stored (R-02). CORS headers are stored for one origin (R-11). A replay is marked, and its length is
counted anew.

If a hook fails while a response is stored, or memory runs out, the outcome must not be lost. So something is stored in
any case: a tombstone with the status alone, which no reader takes for a response.
"""

from __future__ import annotations

import re
from functools import lru_cache

from open_idempotency import events
from open_idempotency._core import problems
from open_idempotency._core.drivers import Steps
from open_idempotency._core.frames import CORS_PREFIX, OMITTED, ORIGIN, decode_response, encode_response
from open_idempotency._core.models import Lease
from open_idempotency._core.notify import cause, warn
from open_idempotency._core.rendering import refuse
from open_idempotency._core.requests import Cors, Headers, Response
from open_idempotency._core.sealing import seal, unseal
from open_idempotency.exceptions import BackendUnavailable, RecordUnreadable
from open_idempotency.policy import CREDENTIALS_OF_RESPONSES, IdempotencyPolicy

REPLAYED = (b"idempotent-replayed", b"true")
UNRECORDED = (b"idempotency-status", b"unrecorded")

# "Not now", and for 307 and 308 "not here": the client sends this very request again, with the same key.
_GIVEN_BACK = frozenset({307, 308, 401, 403, 407, 408, 409, 421, 423, 425, 429})

# what belongs to one connection, one moment, one session or one trace, and not to the outcome.
_NOT_STORED = frozenset(
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
        ORIGIN,
    }
)
#: what the names of CORS headers begin with
CORS = b"access-control-"
_NOT_STORED_PREFIXES = (b"proxy-", CORS, CORS_PREFIX)
# A longer Origin is no browser's. What would break the frame would cost the whole response.
_is_origin = re.compile(rb"[ -~]{0,512}").fullmatch
_CREDENTIALS = frozenset(name.encode("ascii") for name in CREDENTIALS_OF_RESPONSES)
_CONNECTION = len(b"connection")
BODILESS = frozenset({204, 304})


def is_stored_status(status: int) -> bool:
    """Whether responses of this status are stored by default: those that are the outcome of the request.

    Temporary refusals are not, nor are redirects that keep the method and so the key (307, 308).
    """
    return 200 <= status < 500 and status not in _GIVEN_BACK


# An application sends the same few names all the time. The bound is for one that makes names up.
@lru_cache(maxsize=256)
def is_stored_header(name: bytes, keep: tuple[str, ...] = (), drop: tuple[str, ...] = ()) -> bool:
    """Whether a header of this name, in any case, is stored. ``keep``, ``drop``: the policy's exceptions (O-21)."""
    name = name.lower()
    if keep or drop:
        wanted = name.decode("latin-1")
        if any(wanted == one.lower() for one in drop):
            return False
        if any(wanted == one.lower() for one in keep):
            return True
    return not (name in _NOT_STORED or name.startswith(_NOT_STORED_PREFIXES))


def storable(response: Response, policy: IdempotencyPolicy) -> Response:
    """What the policy stores of a live response, before ``redact=`` is called.

    The headers that are stored (R-02), with the policy's exceptions (O-21); with a body over ``max_response_bytes`` it
    is a tombstone (O-11).
    """
    keep, drop = policy.keep_headers, policy.drop_headers
    headers: list[tuple[bytes, bytes]] = []
    named: set[bytes] = set()
    for name, value in response.headers:
        if is_stored_header(name, keep, drop):
            headers.append((name, value))
        if len(name) == _CONNECTION and name.lower() == b"connection":
            named.update(token.strip().lower() for token in value.split(b","))
    if named:
        headers = [(name, value) for name, value in headers if name.lower() not in named]
    body = response.body
    if body is not None and len(body) > policy.max_response_bytes:
        body = None
    return Response(response.status, headers, body)


def omitted(stored: Response, live: Headers, drop: tuple[str, ...]) -> bytes:
    """The names of the credentials that are in the ``live`` headers and not in the stored response (O-21a).

    Names in ``drop`` are omitted on purpose and are not listed. A tombstone, which is not replayed, lists none.
    """
    if stored.body is None:
        return b""
    there = {name.lower() for name, _ in stored.headers}
    meant = {name.lower().encode("ascii") for name in drop}
    return b", ".join(sorted({name.lower() for name, _ in live} & _CREDENTIALS - there - meant))


def replayed(stored: Response, request_headers: Headers = ()) -> Response:
    """A stored response as it is sent again: marked, with its length counted anew, and with CORS headers for the origin
    that they are for. ``request_headers``: of the request that gets it.
    """
    headers = [*stored.headers, REPLAYED]
    if stored.cors and stored.cors.origin == _origin(request_headers):
        headers += stored.cors.headers
    if stored.status in BODILESS:
        return Response(stored.status, headers, b"")
    body = stored.body or b""
    return Response(stored.status, [*headers, (b"content-length", b"%d" % len(body))], body)


def _cors(live: Headers, request_headers: Headers, policy: IdempotencyPolicy) -> Cors | None:
    """The CORS headers of a live response, which its pages alone may be given again (R-11); None where it has none.

    Of those that ``keep_headers`` names every origin gets a copy, and of those in ``drop_headers`` nobody does.
    """
    dropped = {name.lower() for name in policy.drop_headers}
    lower = [(name.lower(), value) for name, value in live]
    headers = [
        (name, value)
        for name, value in lower
        if name.startswith(CORS)
        and not is_stored_header(name, policy.keep_headers, policy.drop_headers)
        and name.decode("latin-1") not in dropped
    ]
    origin = _origin(request_headers) if headers else None
    return None if origin is None else Cors(origin, headers)


def _origin(request_headers: Headers) -> bytes | None:
    """The ``Origin`` of a request, empty without one; None where it is none that a browser sends."""
    found = [value for name, value in request_headers if name == b"origin"]
    if len(found) > 1 or not all(map(_is_origin, found)):
        return None
    return found[0] if found else b""


def location(headers: Headers) -> bytes | None:
    """The Location of a response, if it has one."""
    return next((value for name, value in headers if name.lower() == b"location"), None)


_LENGTH = len(b"content-length")


class Capture:
    """Collects one response. A body over ``max_bytes`` is dropped, which makes it a tombstone (R-04, O-11)."""

    __slots__ = ("_chunks", "_max", "_promised", "_size", "headers", "status")

    def __init__(self, max_bytes: int) -> None:
        self._max = max_bytes
        self._size = 0
        self._promised: int | None = None
        self._chunks: list[bytes] | None = []
        self.status = 0
        self.headers: Headers = ()

    def start(self, status: int, headers: Headers) -> None:
        """Take the status and the headers."""
        self.status = status
        self.headers = headers
        self._promised = _promised_bytes(status, headers)

    def add(self, chunk: bytes) -> None:
        """Take the next bytes of the body."""
        self._size += len(chunk)
        if self._chunks is None or not chunk:
            return
        if self._size > self._max:
            self._chunks = None
        else:
            self._chunks.append(chunk)

    @property
    def whole(self) -> bool:
        """Whether a client takes what was added so far for the whole response, even if the application goes on.

        A client counts to the Content-Length, so these bytes are the last ones for the promise of R-03.
        """
        return self._promised is not None and self._size >= self._promised

    @property
    def open_ended(self) -> bool:
        """Whether the length of the body is known only at its end."""
        return self._promised is None

    @property
    def outgrown(self) -> bool:
        """Whether the body is over the bound, so that it is not stored."""
        return self._chunks is None

    def response(self) -> Response:
        """The collected response. Its body is None if it outgrew the bound, or the memory that is left (O-11)."""
        try:
            body = None if self._chunks is None else b"".join(self._chunks)
        except MemoryError:
            body = self._chunks = None
        return Response(self.status, self.headers, body)


def _promised_bytes(status: int, headers: Headers) -> int | None:
    """The length that the body is going to have; None if it is known only at the end."""
    if status in BODILESS:
        return 0
    for name, value in headers:
        if len(name) == _LENGTH and name.lower() == b"content-length":
            return int(value) if value.isdigit() else None
    return None


_SESSION_COOKIE = (b"set-cookie", b"")


def small_form(response: Response, policy: IdempotencyPolicy, request_headers: Headers = ()) -> Response:
    """What the policy stores of a live response to a request with these headers, before ``redact=`` is called."""
    small = storable(response, policy)
    if len(small.headers) != len(response.headers) and small.body is not None:
        small.cors = _cors(response.headers, request_headers, policy)
    return small


def stored_form(
    response: Response,
    kind: bytes,
    lease: Lease,
    policy: IdempotencyPolicy,
    request_headers: Headers = (),
    session_changed: bool = False,
) -> Steps[tuple[bytes, bool]]:
    """What is stored of a response, and whether its body is in it. ``kind``: ``sealing.RESPONSE`` or ``FAILURE``.

    ``request_headers``: of its request. ``session_changed``: a layer around the middleware sets a cookie that is not in
    the response yet.
    """
    small = small_form(response, policy, request_headers)
    live = [*response.headers, _SESSION_COOKIE] if session_changed else response.headers
    if policy.redact is not None:
        frame, whole = yield from _redacted(small, live, lease, policy)
    else:
        if len(small.headers) != len(live):
            small.omitted = omitted(small, live, policy.drop_headers)
        try:
            frame, whole = encode_response(small), small.body is not None
        except (ValueError, MemoryError):
            # A response that no server would send, or no memory for a copy of it. The work is done all the same,
            # so a tombstone is stored: a retry that ran again would be a second run.
            frame, whole = _bare_tombstone(small.status), False
    if policy.encryption is None:
        return frame, whole
    try:
        return seal(frame, kind, lease, policy), whole
    except BackendUnavailable as error:
        # Nothing but the status may be stored in plain form. Its reader refuses it (503), and nothing runs.
        yield from _report_failed_hook(policy, lease, "encryption", error)
        return _bare_tombstone(response.status), False


def _redacted(small: Response, live: Headers, lease: Lease, policy: IdempotencyPolicy) -> Steps[tuple[bytes, bool]]:
    assert policy.redact is not None
    try:
        redacted = policy.redact(small)
        if not isinstance(redacted, Response):
            raise TypeError(f"redact= returned {type(redacted).__name__}, not a Response")
        # The same rules apply again: the hook may have added a header that is not stored, or made the body longer.
        again = storable(redacted, policy)
        again.omitted = omitted(again, live, policy.drop_headers)
        again.cors = small.cors if again.body is not None else None
        return encode_response(again), again.body is not None
    except Exception as error:
        yield from _report_failed_hook(policy, lease, "redact", error)
        return _bare_tombstone(small.status), False


def _bare_tombstone(status: int) -> bytes:
    return encode_response(Response(status if 200 <= status <= 999 else 500, (), None))


def smaller(frame: bytes, kind: bytes, lease: Lease, policy: IdempotencyPolicy) -> bytes | None:
    """What is stored instead of a stored form that the backend refuses for its size: a tombstone (O-11).

    First one with the headers, then one with the status alone. None: there is nothing smaller.
    """
    try:
        stored = decode_response(unseal(frame, kind, lease, policy))
        headers = stored.headers if stored.body is not None else ()
        left = seal(encode_response(Response(stored.status, headers, None)), kind, lease, policy)
    except (BackendUnavailable, RecordUnreadable):  # encryption= fails; nothing but the status may be stored plain
        return None
    return left if len(left) < len(frame) else None


def _report_failed_hook(policy: IdempotencyPolicy, lease: Lease, hook: str, error: Exception) -> Steps[None]:
    yield from warn(policy, events.HookFailed(events.short(lease.record_id), hook, cause(error)))


def sendable(
    stored: Response, request_headers: Headers, record_id: bytes, instance: str, policy: IdempotencyPolicy
) -> Steps[Response]:
    """A stored response as it is sent again; for one whose body was not stored, the problem that says so (O-11).

    ``request_headers`` and ``instance``, the path: of the request that gets it.
    """
    if stored.body is not None:
        return replayed(stored, request_headers)
    target = location(stored.headers)
    problem = problems.not_replayable(stored.status, target.decode("latin-1") if target else None)
    return (yield from refuse(problem, policy, instance, record_id))


def replay(
    stored: Response, request_headers: Headers, record_id: bytes, instance: str, policy: IdempotencyPolicy
) -> Steps[Response]:
    """``sendable``, and an event if credentials of the first response are missing in this one (O-21a)."""
    if stored.omitted:
        lacking = stored.omitted.decode("latin-1")
        yield from warn(policy, events.ReplayedWithoutCredentials(events.short(record_id), stored.status, lacking))
    return (yield from sendable(stored, request_headers, record_id, instance, policy))
