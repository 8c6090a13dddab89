"""What is stored of a response, and how a stored response is sent again.

A response is captured while it is sent, within bounds (R-04). Headers that belong to one connection, one moment or one
session are not stored (R-02). A replay is marked, and its length is counted anew.

If a hook fails while a response is stored, or memory runs out, the outcome must not be lost. So something is stored in
any case: a tombstone with the status alone, which no reader takes for a response.
"""

from __future__ import annotations

from functools import lru_cache

from open_idempotency import events
from open_idempotency._core import problems
from open_idempotency._core.drivers import Steps
from open_idempotency._core.frames import OMITTED, decode_response, encode_response
from open_idempotency._core.models import Lease
from open_idempotency._core.notify import cause, warn
from open_idempotency._core.rendering import render
from open_idempotency._core.requests import Headers, Response
from open_idempotency._core.sealing import seal, unseal
from open_idempotency.exceptions import BackendUnavailable
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
    }
)
_NOT_STORED_PREFIXES = (b"proxy-", b"access-control-")
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


def storable(response: Response, max_bytes: int, keep: tuple[str, ...] = (), drop: tuple[str, ...] = ()) -> Response:
    """The part of a live response that is stored. With more than ``max_bytes`` of body it is a tombstone (O-11).

    ``keep``, ``drop``: the policy's exceptions to the rule which headers are stored (O-21).
    """
    headers = [(name, value) for name, value in response.headers if is_stored_header(name, keep, drop)]
    named = _named_by_connection(response.headers)
    if named:
        headers = [(name, value) for name, value in headers if name.lower() not in named]
    body = response.body
    if body is not None and len(body) > max_bytes:
        body = None
    return Response(response.status, headers, body)


def _named_by_connection(headers: Headers) -> set[bytes]:
    lines = [value for name, value in headers if len(name) == _CONNECTION and name.lower() == b"connection"]
    return {token.strip().lower() for value in lines for token in value.split(b",")} if lines else set()


def omitted(stored: Response, live: Headers, drop: tuple[str, ...]) -> bytes:
    """The names of the credentials that are in the ``live`` headers and not in the stored response (O-21a).

    Names in ``drop`` are omitted on purpose and are not listed. A tombstone, which is not replayed, lists none.
    """
    if stored.body is None:
        return b""
    there = {name.lower() for name, _ in stored.headers}
    meant = {name.lower().encode("ascii") for name in drop}
    return b", ".join(sorted({name.lower() for name, _ in live} & _CREDENTIALS - there - meant))


def replayed(stored: Response) -> Response:
    """A stored response as it is sent again: marked, with its length counted anew."""
    headers = [*stored.headers, REPLAYED]
    if stored.status in BODILESS:
        return Response(stored.status, headers, b"")
    body = stored.body or b""
    return Response(stored.status, [*headers, (b"content-length", b"%d" % len(body))], body)


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


def small_form(response: Response, policy: IdempotencyPolicy) -> Response:
    """What the policy stores of a live response, before ``redact=`` is called."""
    return storable(response, policy.max_response_bytes, policy.keep_headers, policy.drop_headers)


def stored_form(
    response: Response, kind: bytes, lease: Lease, policy: IdempotencyPolicy, session_changed: bool = False
) -> Steps[tuple[bytes, bool]]:
    """What is stored of a response, and whether its body is in it. ``kind``: ``sealing.RESPONSE`` or ``FAILURE``.

    ``session_changed``: a layer around the middleware sets a cookie that is not in the response yet.
    """
    small = small_form(response, policy)
    live = [*response.headers, _SESSION_COOKIE] if session_changed else response.headers
    if policy.redact is not None:
        frame, whole = yield from _redacted(small, live, lease, policy)
    else:
        if len(small.headers) != len(live):
            small.omitted = omitted(small, live, policy.drop_headers)
        frame, whole = _framed(small)
    try:
        return seal(frame, kind, lease, policy), whole
    except BackendUnavailable as error:
        # Nothing but the status may be stored in plain form. Its reader refuses it (503), and nothing runs.
        yield from _report_failed_hook(policy, lease, "encryption", error)
        return _bare_tombstone(response.status), False


def _framed(small: Response) -> tuple[bytes, bool]:
    try:
        return encode_response(small), small.body is not None
    except (ValueError, MemoryError):
        # A response that no server would send, or no memory for a copy of it. The work is done all the same,
        # so a tombstone is stored: a retry that ran again would be a second run.
        return _bare_tombstone(small.status), False


def _redacted(small: Response, live: Headers, lease: Lease, policy: IdempotencyPolicy) -> Steps[tuple[bytes, bool]]:
    assert policy.redact is not None
    try:
        redacted = policy.redact(small)
        if not isinstance(redacted, Response):
            raise TypeError(f"redact= returned {type(redacted).__name__}, not a Response")
        # The same rules apply again: the hook may have added a header that is not stored, or made the body longer.
        again = small_form(redacted, policy)
        again.omitted = omitted(again, live, policy.drop_headers)
        return encode_response(again), again.body is not None
    except Exception as error:
        yield from _report_failed_hook(policy, lease, "redact", error)
        return _bare_tombstone(small.status), False


def without_body(stored: bytes, kind: bytes, lease: Lease, policy: IdempotencyPolicy) -> bytes | None:
    """A shorter form of what is stored of a response, which its store refuses for its size; None for the shortest one.

    First the body goes, then the headers, of which one may be what is too long. Raises ``BackendUnavailable`` where the
    short form cannot be sealed, and ``RecordUnreadable``.
    """
    response = decode_response(unseal(stored, kind, lease, policy))
    if response.body is not None:
        return seal(encode_response(Response(response.status, response.headers, None)), kind, lease, policy)
    if response.headers:
        return seal(_bare_tombstone(response.status), kind, lease, policy)
    return None


def _bare_tombstone(status: int) -> bytes:
    return encode_response(Response(status if 200 <= status <= 999 else 500, (), None))


def _report_failed_hook(policy: IdempotencyPolicy, lease: Lease, hook: str, error: Exception) -> Steps[None]:
    yield from warn(policy, events.HookFailed(events.short(lease.record_id), hook, cause(error)))


def sendable(stored: Response, instance: str, policy: IdempotencyPolicy) -> Response:
    """A stored response as it is sent again; for one whose body was not stored, the problem that says so (O-11)."""
    if stored.body is not None:
        return replayed(stored)
    target = location(stored.headers)
    problem = problems.not_replayable(stored.status, target.decode("latin-1") if target else None)
    return render(problem, policy, instance)


def replay(stored: Response, record_id: bytes, instance: str, policy: IdempotencyPolicy) -> Steps[Response]:
    """``sendable``, and an event if credentials of the first response are missing in this one (O-21a)."""
    if stored.omitted:
        lacking = stored.omitted.decode("latin-1")
        yield from warn(policy, events.ReplayedWithoutCredentials(events.short(record_id), stored.status, lacking))
    return sendable(stored, instance, policy)
