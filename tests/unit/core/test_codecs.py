"""Binary frames of responses and stages: decoding returns what was encoded, or refuses the frame."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from open_idempotency._core.models import Response
from open_idempotency._core.stored_response import (
    StageKind,
    decode_response,
    decode_stage,
    encode_response,
    encode_stage,
)
from open_idempotency.exceptions import RecordUnreadable

names = st.from_regex(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,12}", fullmatch=True)
fields = st.tuples(names, st.binary(max_size=20).filter(lambda v: not set(v) & {0, 10, 13}))
responses = st.builds(Response, st.integers(200, 999), st.lists(fields, max_size=5), st.none() | st.binary(max_size=50))
FRAME = encode_response(Response(201, [(b"Location", b"/1"), (b"x-a", b"")], b"\x00body"))


@given(responses)
def test_a_response_comes_back_as_it_was(response: Response) -> None:
    """R-01: status, headers in order with duplicates, body bytes, tombstones."""
    assert decode_response(encode_response(response)) == response


def test_duplicates_and_case_of_header_names_are_kept() -> None:
    """R-01."""
    headers = [(b"X-B", b"1"), (b"x-a", b"2"), (b"X-B", b"1")]
    assert decode_response(encode_response(Response(200, headers, b""))).headers == headers


def test_an_empty_body_is_not_a_tombstone() -> None:
    """O-11, R-01."""
    assert decode_response(encode_response(Response(204, [], b""))).body == b""
    assert decode_response(encode_response(Response(204, [], None))).body is None


@given(st.binary(max_size=80))
@example(b"")
@example(b"\x01\x00\x00\xc8\xff\xff\xff\xff\xff\xff")
@example(b"\x01\x00\x00\xc8\x00\x01\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff")
@example(b"\x01\x02\x00\xc8\x00\x00\x00\x00\x00\x00")
def test_any_bytes_are_a_valid_response_or_refused(frame: bytes) -> None:
    """B-08b: a refusal is a typed error; a decoded response is no larger than its frame."""
    try:
        response = decode_response(frame)
    except RecordUnreadable:
        return
    read = sum(len(n) + len(v) for n, v in response.headers) + len(response.body or b"")
    assert read <= len(frame)
    assert encode_response(response) == frame


@given(responses, st.data())
def test_a_flipped_byte_never_crashes(response: Response, data: st.DataObject) -> None:
    """B-08b."""
    frame = bytearray(encode_response(response))
    frame[data.draw(st.integers(0, len(frame) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        decode_response(bytes(frame))
    except RecordUnreadable:
        return


@pytest.mark.parametrize("length", range(len(FRAME)))
def test_a_truncated_response_is_refused(length: int) -> None:
    """B-08b."""
    with pytest.raises(RecordUnreadable):
        decode_response(FRAME[:length])


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (FRAME + b"x", "add up"),
        (b"\x02" + FRAME[1:], "version 2"),
        (FRAME[:1] + b"\x02" + FRAME[2:], "flags 2"),
        (FRAME[:1] + b"\x01" + FRAME[2:], "add up"),
        (FRAME[:2] + struct.pack("!H", 199) + FRAME[4:], "status"),
        (FRAME[:2] + struct.pack("!H", 1000) + FRAME[4:], "status"),
        (FRAME.replace(b"/1", b"\r\n"), "framing"),
        (FRAME.replace(b"/1", b"\x00\x00"), "framing"),
        (FRAME.replace(b"x-a", b"x a"), "framing"),
        (FRAME.replace(b"x-a", b"x:a"), "framing"),
    ],
)
def test_a_foreign_or_hostile_response_is_refused_when_it_is_read(frame: bytes, why: str) -> None:
    """B-08b: newer versions, unknown flags, header injection."""
    with pytest.raises(RecordUnreadable, match=why):
        decode_response(frame)


@pytest.mark.parametrize(
    "field",
    [
        (b"x", b"a\r\nset-cookie: b"),
        (b"x", b"a\nb"),
        (b"x", b"a\x00"),
        (b"", b"v"),
        (b"x y", b"v"),
        (b"x:", b"v"),
        (b"x\r\n", b"v"),
        (b"\xc3\xa9", b"v"),
        (b"n" * 0x10000, b"v"),
    ],
)
def test_a_header_field_that_breaks_framing_is_refused_when_it_is_written(field: tuple[bytes, bytes]) -> None:
    """Headers are validated when they are stored."""
    with pytest.raises(ValueError, match="framing"):
        encode_response(Response(200, [field], b""))


@pytest.mark.parametrize("status", [-1, 0, 99, 103, 199, 1000, 65536])
def test_a_status_that_is_none_is_refused_when_it_is_written(status: int) -> None:
    with pytest.raises(ValueError, match="status"):
        encode_response(Response(status, [], b""))


def test_more_header_fields_than_a_frame_holds_are_refused_when_they_are_written() -> None:
    """I11: settlement handles this error, so the response becomes a tombstone."""
    with pytest.raises(ValueError, match="too many"):
        encode_response(Response(200, [(b"a", b"b")] * 0x10000, b""))


@given(st.sampled_from(StageKind), st.binary(max_size=50))
def test_a_stage_comes_back_as_it_was(kind: StageKind, payload: bytes) -> None:
    """B-07."""
    assert decode_stage(encode_stage(kind, payload)) == (kind, payload)


@given(st.binary(max_size=40))
@example(b"\x01\x02\x00\x00\x00\x00")
def test_any_bytes_are_a_valid_stage_or_refused(frame: bytes) -> None:
    """B-08b."""
    try:
        kind, payload = decode_stage(frame)
    except RecordUnreadable:
        return
    assert encode_stage(kind, payload) == frame


STAGE = encode_stage(StageKind.VALUE, b"[1]")


@pytest.mark.parametrize("frame", [*[STAGE[:n] for n in range(len(STAGE))], STAGE + b" ", b"\x02" + STAGE[1:]])
def test_a_truncated_longer_or_newer_stage_is_refused(frame: bytes) -> None:
    """B-08b."""
    with pytest.raises(RecordUnreadable):
        decode_stage(frame)


def test_an_unknown_kind_of_stage_is_refused() -> None:
    """B-08b: a newer version may have written it."""
    with pytest.raises(RecordUnreadable):
        decode_stage(STAGE[:1] + b"\x07" + STAGE[2:])
