"""Binary frames for what a backend keeps: a version byte, lengths that must add up, and strict reading.

Nothing is ever unpickled. A frame that cannot be read raises ``RecordUnreadable``, whatever its bytes are; reading
allocates no more than the frame's own size. Header names and values are checked when written and when read.
"""

from __future__ import annotations

import re
import struct
from enum import IntEnum
from functools import lru_cache

from open_idempotency._core.requests import Cors, Headers, Response
from open_idempotency.exceptions import RecordUnreadable

RESPONSE_VERSION = 1
STAGE_VERSION = 1
TOMBSTONE = 0x01
#: the first header of a frame whose response lacks credentials: their names. It is never sent. Earlier versions, which
#: do not know it, send it, where it is true and does no harm.
OMITTED = b"idempotency-omitted"
#: the next header of a frame that holds CORS headers: the origin that they are for. They follow, each with a prefix:
#: earlier versions, which would send them to any origin, send what no browser reads.
ORIGIN = b"idempotency-origin"
_PREFIX = b"idempotency-"
CORS_PREFIX = _PREFIX + b"access-control-"

# version, flags, status, number of headers, length of the body
_RESPONSE = struct.Struct("!BBHHI")
_HEADER = struct.Struct("!HI")
_STAGE = struct.Struct("!BBI")
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,65535}")
_find_bad = re.compile(rb"[\x00\r\n]").search


def encode_response(response: Response) -> bytes:
    """The frame of a whole response; without a body (None) it is a tombstone.

    Raises ``ValueError`` for a status or a header that could not be sent again.
    """
    headers = _with_notes(response) if response.omitted or response.cors else response.headers
    _check(response.status, headers)
    body = response.body or b""
    flags = TOMBSTONE if response.body is None else 0
    pieces = [_RESPONSE.pack(RESPONSE_VERSION, flags, response.status, len(headers), len(body))]
    for name, value in headers:
        pieces += (_HEADER.pack(len(name), len(value)), name, value)
    pieces.append(body)
    return b"".join(pieces)


def _with_notes(response: Response) -> Headers:
    """The headers, behind those that no client is sent."""
    notes = [(OMITTED, response.omitted)] if response.omitted else []
    if response.cors:
        notes.append((ORIGIN, response.cors.origin))
        notes += [(_PREFIX + name, value) for name, value in response.cors.headers]
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
        _check(status, headers)
    except ValueError as error:
        raise RecordUnreadable(f"response frame: {error}") from error
    omitted = headers.pop(0)[1] if headers and headers[0][0] == OMITTED else b""
    cors = _take_cors(headers) if headers and headers[0][0] == ORIGIN else None
    return Response(status, headers, None if flags & TOMBSTONE else frame[start:], omitted, cors)


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


def _check(status: int, headers: Headers) -> None:
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
    """What a stage's payload is. A reader that does not know a kind refuses the whole record, and nothing runs.

    ``VALUE`` is plain JSON, ``TYPED`` is JSON that needs the declared type to be read. Of an intent (``BEGUN``,
    ``WITHDRAWN``) the payload is the number of the attempt. ``NOT_KEPT`` stands for a value or an error that could not
    be kept, of a stage that is done.
    """

    VALUE = 0
    ERROR = 1
    BEGUN = 2
    WITHDRAWN = 3
    NOT_KEPT = 4
    TYPED = 5


def encode_stage(kind: StageKind, payload: bytes) -> bytes:
    """The frame of one stage: its kind and a JSON text."""
    return _STAGE.pack(STAGE_VERSION, kind, len(payload)) + payload


def decode_stage(frame: bytes) -> tuple[StageKind, bytes]:
    """The kind and the JSON text in a stage frame. Raises ``RecordUnreadable``."""
    try:
        version, kind, length = _STAGE.unpack_from(frame)
        if version != STAGE_VERSION or len(frame) - _STAGE.size != length:
            raise RecordUnreadable(f"stage frame of version {version}: the lengths do not add up")
        return StageKind(kind), frame[_STAGE.size :]
    except (struct.error, ValueError) as error:
        raise RecordUnreadable("stage frame cannot be read") from error
