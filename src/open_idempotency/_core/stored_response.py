"""What is stored of a response, and in which bytes.

A response is captured while it is sent, within bounds (R-04). Headers that belong to one connection, one moment or one
session are not stored (R-02). CORS headers are stored for one origin (R-11). A replay is marked, and its length is
counted anew. If a hook fails while a response is stored, or memory runs out, a tombstone is stored: the status alone,
which no reader takes for a response. So the outcome is never lost.

Responses and stages become binary frames: a version byte, lengths that must add up, and strict reading. Nothing is ever
unpickled. A frame that cannot be read raises ``RecordUnreadable``, whatever its bytes are, and reading allocates no
more than the frame's own size. Header names and values are checked when written and when read.

Inside the package frames are plain. With ``encryption=`` they are sealed right before a backend gets them, and unsealed
as soon as they are read. A sealed frame is bound to its position: the record, the request's fingerprint, and its kind
(the response, the response of a failure, the stage of this name and key).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from enum import IntEnum
from functools import lru_cache

from open_idempotency import events
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.commands import Claim, Steps
from open_idempotency._core.keys import digest
from open_idempotency._core.models import Cors, Headers, Lease, Response, Stage
from open_idempotency._core.notify import cause, warn
from open_idempotency.exceptions import BackendUnavailable, RecordUnreadable
from open_idempotency.policy import CREDENTIALS_OF_RESPONSES, IdempotencyPolicy

RESPONSE_VERSION = 1
STAGE_VERSION = 1
TOMBSTONE = 0x01
#: the first header of a frame whose response lacks credentials: their names. It is never sent. Earlier versions do not
#: know it and send it, which does no harm.
OMITTED = b"idempotency-omitted"
#: the next header of a frame that holds CORS headers: the origin that they are for. The CORS headers follow, each with
#: a prefix: earlier versions send them to any origin, and no browser reads names with that prefix.
ORIGIN = b"idempotency-origin"
_PREFIX = b"idempotency-"
CORS_PREFIX = _PREFIX + b"access-control-"

#: the next header of a frame whose response Django has made: what Django needs for a replay (O-29)
NOTE = b"idempotency-django-response"
#: the next header of a frame that was stored with telemetry on: the trace of its request (P-31), as ``traceparent``.
#: Earlier versions send it, to the same caller.
TRACE = b"idempotency-traceparent"

# version, flags, status, number of headers, length of the body
_RESPONSE = struct.Struct("!BBHHI")
_HEADER = struct.Struct("!HI")
_STAGE_HEADER = struct.Struct("!BBI")
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,65535}")
_find_bad = re.compile(rb"[\x00\r\n]").search


def encode_response(response: Response) -> bytes:
    """The frame of a whole response; without a body (None) it is a tombstone.

    Raises ``ValueError`` for a status or a header that could not be sent again.
    """
    noted = response.omitted or response.cors or response.note or response.first_trace
    headers = _with_notes(response) if noted else response.headers
    check(response.status, headers)
    body = response.body or b""
    flags = TOMBSTONE if response.body is None else 0
    pieces = [_RESPONSE.pack(RESPONSE_VERSION, flags, response.status, len(headers), len(body))]
    for name, value in headers:
        pieces += (_HEADER.pack(len(name), len(value)), name, value)
    pieces.append(body)
    return b"".join(pieces)


def _with_notes(response: Response) -> Headers:
    """The headers of a frame: first the notes, which no client is sent, then the response's own."""
    notes = [(OMITTED, response.omitted)] if response.omitted else []
    if response.cors:
        notes.append((ORIGIN, response.cors.origin))
        notes += [(_PREFIX + name, value) for name, value in response.cors.headers]
    if response.note:
        notes.append((NOTE, response.note))
    if response.first_trace:
        notes.append((TRACE, response.first_trace.encode("ascii")))
    return [*notes, *response.headers]


def decode_response(frame: bytes) -> Response:
    """The response in a frame. Raises ``RecordUnreadable``."""
    try:
        version, flags, status, count, body_length = _RESPONSE.unpack_from(frame)
        if version != RESPONSE_VERSION or flags & ~TOMBSTONE:
            raise RecordUnreadable(f"response frame of version {version}, flags {flags}")
        headers, start = _decode_headers(frame, count)
    except struct.error as error:
        raise RecordUnreadable("response frame is cut short") from error
    if len(frame) - start != body_length or (flags and body_length):
        raise RecordUnreadable("response frame: the lengths do not add up")
    try:
        check(status, headers)
    except ValueError as error:
        raise RecordUnreadable(f"response frame: {error}") from error
    omitted = headers.pop(0)[1] if headers and headers[0][0] == OMITTED else b""
    cors = _take_cors(headers) if headers and headers[0][0] == ORIGIN else None
    note = headers.pop(0)[1] if headers and headers[0][0] == NOTE else b""
    trace = headers.pop(0)[1].decode("latin-1") if headers and headers[0][0] == TRACE else ""
    return Response(status, headers, None if flags & TOMBSTONE else frame[start:], omitted, cors, note, trace)


def _take_cors(headers: list[tuple[bytes, bytes]]) -> Cors:
    _, origin = headers.pop(0)
    taken: list[tuple[bytes, bytes]] = []
    while headers and headers[0][0].startswith(CORS_PREFIX):
        name, value = headers.pop(0)
        taken.append((name[len(_PREFIX) :], value))
    return Cors(origin, taken)


def _decode_headers(frame: bytes, count: int) -> tuple[list[tuple[bytes, bytes]], int]:
    headers: list[tuple[bytes, bytes]] = []
    start = _RESPONSE.size
    for _ in range(count):
        name_length, value_length = _HEADER.unpack_from(frame, start)
        start += _HEADER.size
        middle = start + name_length
        end = middle + value_length
        if end > len(frame):
            raise RecordUnreadable("response frame is cut short")
        headers.append((frame[start:middle], frame[middle:end]))
        start = end
    return headers, start


def check(status: int, headers: Headers) -> None:
    if not 200 <= status <= 999:  # a client would go on waiting behind a 1xx
        raise ValueError(f"{status} is not the status of a final response")
    if len(headers) > 0xFFFF:
        raise ValueError(f"{len(headers)} headers are too many")
    for name, value in headers:
        if not _is_name(name) or _find_bad(value):
            raise ValueError("a header in the response would break HTTP framing")


# An application sends the same few names all the time.
@lru_cache(maxsize=256)
def _is_name(name: bytes) -> bool:
    return _NAME.fullmatch(name) is not None


class StageKind(IntEnum):
    """The meaning of a stage's payload. A reader that does not know a kind refuses the whole record, and nothing runs.

    ``VALUE`` is plain JSON, ``TYPED`` is JSON that needs the declared type to be read. Of an intent (``BEGUN``,
    ``WITHDRAWN``) the payload is the number of the attempt. ``NOT_KEPT`` stands for a value or an error that could not
    be stored, of a stage that is done.
    """

    VALUE = 0
    ERROR = 1
    BEGUN = 2
    WITHDRAWN = 3
    NOT_KEPT = 4
    TYPED = 5


def encode_stage(kind: StageKind, payload: bytes) -> bytes:
    """The frame of one stage: its kind and a JSON text."""
    return _STAGE_HEADER.pack(STAGE_VERSION, kind, len(payload)) + payload


def decode_stage(frame: bytes) -> tuple[StageKind, bytes]:
    """The kind and the JSON text in a stage frame. Raises ``RecordUnreadable``."""
    try:
        version, kind, length = _STAGE_HEADER.unpack_from(frame)
        if version != STAGE_VERSION or len(frame) - _STAGE_HEADER.size != length:
            raise RecordUnreadable(f"stage frame of version {version}: the lengths do not add up")
        return StageKind(kind), frame[_STAGE_HEADER.size :]
    except (struct.error, ValueError) as error:
        raise RecordUnreadable("stage frame cannot be read") from error


# Sealed frames

#: the first byte of a sealed frame; a plain one begins with its version, which is below
SEALED = b"\x80"

RESPONSE, FAILURE, _STAGE = b"answer", b"failure", b"stage"


def seal(frame: bytes, kind: bytes, of: Claim | Lease, policy: IdempotencyPolicy, *names: str) -> bytes:
    """A frame as it goes to the backend. ``kind`` and ``names``: what it is in that record.

    Raises ``BackendUnavailable``, with the sealer's own error as its cause: plain it must not be stored.
    """
    sealer = policy.encryption
    if sealer is None or policy.plain_records == "write":
        return frame
    try:
        return SEALED + sealer.seal(frame, _position(kind, of, names))
    except Exception as error:
        raise BackendUnavailable("encryption= could not seal what is to be stored") from error


def unseal(stored: bytes, kind: bytes, of: Claim | Lease, policy: IdempotencyPolicy, *names: str) -> bytes:
    """The plain frame of what a backend returned. Raises ``RecordUnreadable``, whatever the sealer raises."""
    sealer = policy.encryption
    if not stored.startswith(SEALED):
        if sealer is None or policy.plain_records != "refuse":
            return stored
        raise RecordUnreadable("a stored frame is not encrypted; plain_records= says when that is accepted")
    if sealer is None:
        raise RecordUnreadable("a stored frame is encrypted, and this policy has no encryption=")
    try:
        frame = sealer.unseal(stored[len(SEALED) :], _position(kind, of, names))
    except RecordUnreadable:
        raise
    except Exception as error:
        raise RecordUnreadable("a stored frame cannot be decrypted") from error
    if not isinstance(frame, bytes):
        raise RecordUnreadable(f"encryption= returned {type(frame).__name__} where bytes belong")
    return frame


def seal_stage(stage: Stage, of: Lease, policy: IdempotencyPolicy) -> Stage:
    """A stage as it goes to the backend; its name and key stay as they are. Raises ``BackendUnavailable``."""
    if policy.encryption is None:
        return stage
    return Stage(stage.name, stage.key, seal(stage.frame, _STAGE, of, policy, stage.name, stage.key))


def unseal_stage(stage: Stage, of: Lease, policy: IdempotencyPolicy) -> Stage:
    """A stage as attempts know it. Raises ``RecordUnreadable``."""
    return Stage(stage.name, stage.key, unseal(stage.frame, _STAGE, of, policy, stage.name, stage.key))


def _position(kind: bytes, of: Claim | Lease, names: Sequence[str]) -> bytes:
    return digest(None, b"oi-sealed-1", kind, of.record_id, of.fingerprint, *(name.encode() for name in names))


# What is stored, and what is sent again

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
        NOTE,
        TRACE,
    }
)
#: the prefix of the names of CORS headers
CORS = b"access-control-"
_NOT_STORED_PREFIXES = (b"proxy-", CORS, CORS_PREFIX)
# A longer Origin is no browser's. What would break the frame would cost the whole response.
_is_origin = re.compile(rb"[ -~]{0,512}").fullmatch
_CREDENTIALS = frozenset(name.encode("ascii") for name in CREDENTIALS_OF_RESPONSES)
_CONNECTION = len(b"connection")
BODILESS = frozenset({204, 304})


def is_stored_status(status: int) -> bool:
    """Whether responses of this status are stored by default: whether they are the outcome of the request.

    Temporary refusals are not stored, nor are redirects that keep the method and so the key (307, 308).
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


def storable(response: Response, policy: IdempotencyPolicy, request_headers: Headers = ()) -> Response:
    """The part of a live response that the policy stores, before ``redact=`` is called.

    It has the headers that are stored (R-02), with the policy's exceptions (O-21). If the body is over
    ``max_response_bytes``, it is a tombstone (O-11), else it has the CORS headers for one origin (R-11) and the note.
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
    if body is None or len(body) > policy.max_response_bytes:
        return Response(response.status, headers, None)
    cors = _cors(response.headers, request_headers, policy) if len(headers) != len(response.headers) else None
    return Response(response.status, headers, body, cors=cors, note=response.note)


def omitted(stored: Response, live: Headers, drop: tuple[str, ...]) -> bytes:
    """The names of the credentials that are in the ``live`` headers and not in the stored response (O-21a).

    Names in ``drop`` are omitted on purpose and are not listed. A tombstone, which is not replayed, lists none.
    """
    if stored.body is None:
        return b""
    there = {name.lower() for name, _ in stored.headers}
    meant = {name.lower().encode("ascii") for name in drop}
    return b", ".join(sorted({name.lower() for name, _ in live} & _CREDENTIALS - there - meant))


def _cors(live: Headers, request_headers: Headers, policy: IdempotencyPolicy) -> Cors | None:
    """The CORS headers of a live response, which are replayed to the same origin only (R-11); None without any.

    Headers in ``keep_headers`` are replayed to every origin, and headers in ``drop_headers`` to none.
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
    origin = origin_of(request_headers) if headers else None
    return None if origin is None else Cors(origin, headers)


def origin_of(request_headers: Headers) -> bytes | None:
    """The ``Origin`` of a request, empty without one; None for a value that no browser sends."""
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

    __slots__ = ("_chunks", "_max", "_promised", "_size", "headers", "note", "status")

    def __init__(self, max_bytes: int) -> None:
        self._max = max_bytes
        self._size = 0
        self._promised: int | None = None
        self._chunks: list[bytes] | None = []
        self.status = 0
        self.headers: Headers = ()
        self.note = b""

    def start(self, status: int, headers: Headers, note: bytes = b"") -> None:
        """Take the status and the headers. ``note``: see ``Response``."""
        self.status = status
        self.headers = headers
        self.note = note
        # the length that the body is going to have; None if it is known only at the end
        self._promised = None
        if status in BODILESS:
            self._promised = 0
            return
        for name, value in headers:
            if len(name) == _LENGTH and name.lower() == b"content-length":
                self._promised = int(value) if value.isdigit() else None
                return

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
        return Response(self.status, self.headers, body, note=self.note)


_SESSION_COOKIE = (b"set-cookie", b"")


def stored_form(
    response: Response,
    kind: bytes,
    lease: Lease,
    policy: IdempotencyPolicy,
    attempt: Attempt | None = None,
) -> Steps[tuple[bytes, bool]]:
    """The stored form of a response, and whether it has the body. ``kind``: ``RESPONSE`` or ``FAILURE``.

    ``attempt``: the attempt that made the response; None if it is not known.
    """
    small, live = storable(response, policy, () if attempt is None else attempt.request_headers), response.headers
    if attempt is not None:
        if attempt.session_changed:  # a layer around the middleware sets a cookie that is not in the response yet
            live = [*live, _SESSION_COOKIE]
        if attempt.trace and small.body is not None:
            small.first_trace = attempt.trace
    if policy.redact is not None:
        frame, whole = yield from _redacted(small, live, lease, policy, attempt)
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
        yield from _report_failed_hook(policy, lease, "encryption", error, attempt)
        return _bare_tombstone(response.status), False


def _redacted(
    small: Response, live: Headers, lease: Lease, policy: IdempotencyPolicy, attempt: Attempt | None
) -> Steps[tuple[bytes, bool]]:
    assert policy.redact is not None
    try:
        redacted = policy.redact(small)
        if not isinstance(redacted, Response):
            raise TypeError(f"redact= returned {type(redacted).__name__}, not a Response")
        # The same rules apply again: the hook may have added a header that is not stored, or made the body longer.
        again = storable(redacted, policy)
        again.omitted = omitted(again, live, policy.drop_headers)
        if again.body is not None:
            again.cors, again.note, again.first_trace = small.cors, small.note, small.first_trace
        return encode_response(again), again.body is not None
    except Exception as error:
        yield from _report_failed_hook(policy, lease, "redact", error, attempt)
        return _bare_tombstone(small.status), False


def _bare_tombstone(status: int) -> bytes:
    return encode_response(Response(status if 200 <= status <= 999 else 500, (), None))


def smaller(frame: bytes, kind: bytes, lease: Lease, policy: IdempotencyPolicy) -> bytes | None:
    """The tombstone that replaces a stored form that the backend refuses for its size (O-11).

    At first it keeps the headers, the next time only the status. None if there is nothing smaller.
    """
    try:
        stored = decode_response(unseal(frame, kind, lease, policy))
        headers = stored.headers if stored.body is not None else ()
        left = seal(encode_response(Response(stored.status, headers, None)), kind, lease, policy)
    except (BackendUnavailable, RecordUnreadable):  # encryption= fails; nothing but the status may be stored plain
        return None
    return left if len(left) < len(frame) else None


def _report_failed_hook(
    policy: IdempotencyPolicy, lease: Lease, hook: str, error: Exception, attempt: Attempt | None
) -> Steps[None]:
    yield from warn(policy, events.HookFailed(events.short(lease.record_id), hook, cause(error)), attempt)
