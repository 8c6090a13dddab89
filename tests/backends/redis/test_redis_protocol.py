"""The protocol of batches: commands as the client library packs them, and replies that are cut anywhere."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Connection
from redis.exceptions import InvalidResponse, NoScriptError, ResponseError

from open_idempotency.backends.redis.pipelining import Replies, packed

Reply = int | bytes | None | list[Any]
_replies = st.recursive(
    st.integers(-(2**53), 2**53) | st.binary(max_size=40) | st.none(), lambda inner: st.lists(inner, max_size=5)
)


def _encoded(reply: Reply) -> bytes:
    if reply is None:
        return b"$-1\r\n"
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if isinstance(reply, bytes):
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    return b"*%d\r\n" % len(reply) + b"".join(map(_encoded, reply))


@given(st.lists(st.binary(max_size=50) | st.integers() | st.text(max_size=20), min_size=1, max_size=80))
def test_a_command_is_packed_as_the_client_library_does(words: list[bytes | int | str]) -> None:
    """B-07: bytes of any kind, numbers and text."""
    name = b"EVALSHA"
    assert packed((name, *words)) == b"".join(Connection().pack_command(name, *words))


@given(st.lists(_replies, max_size=6), st.lists(st.integers(0, 400), max_size=6))
def test_replies_are_the_same_wherever_they_are_cut(replies: list[Reply], cuts: list[int]) -> None:
    """No caller gets another caller's reply."""
    data, reading = b"".join(map(_encoded, replies)), Replies()
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    found: list[Any] = []
    for start, end in pairwise(places):
        found += reading.feed(data[start:end])
    assert found == replies


def test_a_value_that_arrives_byte_by_byte_is_whole() -> None:
    """R-01: with line ends inside."""
    reading = Replies()
    found = [reply for byte in b"*2\r\n:2\r\n$6\r\n\r\n$1\r\n\r\n+OK\r\n" for reply in reading.feed(bytes((byte,)))]
    assert found == [[2, b"\r\n$1\r\n"], b"OK"]


def test_a_refusal_is_the_client_librarys_error() -> None:
    """B-10: so that retryable errors are distinguished from others."""
    first, second = Replies().feed(b"-NOSCRIPT No matching script.\r\n-ERR something\r\n")
    assert isinstance(first, NoScriptError)
    assert type(second) is ResponseError


@pytest.mark.parametrize("data", [b"HTTP/1.1 400 Bad Request\r\n", b":x\r\n", b"$x\r\n", b"%1\r\n"])
def test_what_is_no_reply_is_an_error(data: bytes) -> None:
    """B-08b: for example from another kind of server."""
    with pytest.raises(InvalidResponse):
        Replies().feed(data)
