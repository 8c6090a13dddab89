"""The cost of one request for its server: counts of bytes and of event loop turns, never times."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any
from uuid import uuid4

import pytest
from django.core.handlers.asgi import ASGIHandler
from django.http import HttpRequest, HttpResponse
from django.utils.decorators import async_only_middleware
from hypothesis import given
from hypothesis import strategies as st

from open_idempotency._core.commands import Sleep
from open_idempotency._core.fingerprint import (
    JSON_BYTES,
    JSON_MARKS,
    LONGEST_BOUNDARY,
    MULTIPART_PARTS,
    TURN,
    fingerprint,
    fingerprint_steps,
)
from open_idempotency._core.keys import digest
from open_idempotency._core.models import Request
from open_idempotency._engine import bodies
from open_idempotency._engine.bodies import RequestBody
from open_idempotency.asgi import IdempotencyMiddleware
from open_idempotency.policy import IdempotencyPolicy
from tests.django_project.calls import OURS, AsgiCall, project
from tests.unit.builders import request_of

AUTO, JSON = IdempotencyPolicy(), IdempotencyPolicy(fingerprint="json")
BIG = 10 * 1024 * 1024 - 64
#: bodies that an attacker makes expensive, with their media types and policies
EXPENSIVE: dict[str, tuple[Callable[[], bytes], bytes, IdempotencyPolicy]] = {
    "numbers": (lambda: b'[{"a": 1},' + b"1," * (BIG // 2 - 10) + b"1]", b"application/json", JSON),
    "objects": (lambda: b"[ " + b'{"a":1},' * (BIG // 8 - 10) + b"1]", b"application/json", JSON),
    "depth": (lambda: b"[" * BIG, b"application/json", JSON),
    "text": (lambda: b'[ "' + b"x" * (BIG - 10) + b'"]', b"application/json", JSON),
    "parts": (lambda: b"\r\n--b" * (BIG // 5), b"multipart/form-data; boundary=b", AUTO),
    "nearly parts": (lambda: b"\r\n--boundar" * (BIG // 11), b"multipart/form-data; boundary=boundary", AUTO),
    "one part": (lambda: b"--b\r\n" + b"x" * (BIG - 10), b"multipart/form-data; boundary=b", AUTO),
    "bytes": (lambda: b"x" * BIG, b"application/octet-stream", AUTO),
}


def of(body: bytes, content_type: bytes = b"application/json", policy: IdempotencyPolicy = JSON) -> bytes:
    return fingerprint(request_of(body, content_type=content_type), policy)


@pytest.mark.parametrize("name", EXPENSIVE)
def test_a_body_is_taken_in_and_compared_in_less_memory_than_three_times_its_size(name: str) -> None:
    """R-10: the server delivers it in pieces of 64 KiB."""
    make, content_type, policy = EXPENSIVE[name]
    data = make()
    tracemalloc.start()
    try:
        body = RequestBody(policy)
        for start in range(0, len(data), 65536):
            body.add(data[start : start + 65536])
        fingerprint(_request(body, content_type), policy)
        peak = tracemalloc.get_traced_memory()[1]
        body.close()
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(data)


def test_a_body_in_very_small_chunks_takes_no_more_memory() -> None:
    """R-10: the client chooses the size of its chunks."""
    chunks = [bytes([number % 256]) for number in range(512 * 1024)]
    tracemalloc.start()
    try:
        body = RequestBody(AUTO)
        for chunk in chunks:
            body.add(chunk)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(chunks)
    assert body.read() == b"".join(chunks)
    assert body.digest() == digest_of(b"".join(chunks))
    body.close()


def digest_of(data: bytes) -> bytes:
    whole = RequestBody(AUTO)
    whole.add(data)
    return whole.digest()


class CountedBody(RequestBody):
    """A body that counts the bytes that are read of it."""

    __slots__ = ("handed",)

    def chunks(self) -> Iterator[bytes]:
        for chunk in super().chunks():
            self.handed = getattr(self, "handed", 0) + len(chunk)
            yield chunk


def _request(body: RequestBody, content_type: bytes) -> Request:
    request = request_of(b"", content_type=content_type)
    request.body = body
    return request


@pytest.mark.parametrize("name", EXPENSIVE)
def test_between_two_pauses_no_more_than_a_turn_of_the_body_is_worked_on(name: str) -> None:
    """R-10: also for multipart bodies, which are read twice; bytes are hashed as they arrive."""
    make, content_type, policy = EXPENSIVE[name]
    data = make()
    body = CountedBody(policy)
    for start in range(0, len(data), 65536):
        body.add(data[start : start + 65536])
    body.handed = 0
    steps, before, worked = fingerprint_steps(_request(body, content_type), policy), 0, []
    for command in steps:
        assert command == Sleep(0)
        worked.append(body.handed - before)
        before = body.handed
    worked.append(body.handed - before)
    body.close()
    assert max(worked) <= 2 * TURN
    assert sum(worked) <= 2 * len(data)


def test_json_within_the_bounds_is_parsed_and_beyond_them_it_is_not() -> None:
    """R-10: the bounds are in bytes and in punctuation, so they are the same in every process."""

    def pair(filler: bytes) -> tuple[bytes, bytes]:
        return b'{"a": 1, "b": [%b]}' % filler, b'{"b": [%b], "a": 1}' % filler

    within, marks, size = b"1," * (JSON_MARKS - 8) + b"1", b"1," * JSON_MARKS + b"1", b'"%b"' % (b"x" * JSON_BYTES)
    assert [len({of(one), of(other)}) for one, other in map(pair, (within, marks, size))] == [1, 2, 2]
    assert of(pair(marks)[0]) == of(pair(marks)[0])


def _multipart(parts: int, boundary: bytes) -> bytes:
    return b"".join(b"--%b\r\n\r\n%d\r\n" % (boundary, part) for part in range(parts)) + b"--%b--\r\n" % boundary


@pytest.mark.parametrize(
    ("parts", "boundary", "same"),
    [
        (MULTIPART_PARTS - 2, b"b", True),
        (MULTIPART_PARTS, b"b", False),
        (1, b"b" * LONGEST_BOUNDARY, True),
        (1, b"b" * (LONGEST_BOUNDARY + 1), False),
    ],
)
def test_multipart_counts_by_its_parts_up_to_a_number_of_them(parts: int, boundary: bytes, same: bool) -> None:
    """R-10: a body with more parts than frameworks accept is compared byte for byte."""
    one, other = (
        of(_multipart(parts, name), b"multipart/form-data; boundary=" + name, AUTO) for name in (boundary, b"other")
    )
    assert (one == other) == same


@given(
    st.lists(st.sampled_from([b"\r\n--", b"b", b"ab", b"-", b"\r", b"\n", b"x", b"\r\n--b", b"aa"]), max_size=30),
    st.sampled_from([b"b", b"ab", b"-", b"aa"]),
    st.integers(1, 7),
)
def test_a_multipart_body_in_pieces_has_the_digest_that_its_parts_have_in_memory(
    pieces: list[bytes], boundary: bytes, size: int
) -> None:
    """R-10: wherever a piece ends, so stored fingerprints stay valid."""
    data = b"".join(pieces)
    body = RequestBody(IdempotencyPolicy(spool_bytes=2**20))
    for start in range(0, len(data), size):
        body.add(data[start : start + size])
    parts = (b"\r\n" + data).split(b"\r\n--" + boundary)
    request = _request(body, b"multipart/form-data; boundary=" + boundary)
    made = digest(None, b"POST", b"/charges", request.query, b"multipart/form-data", b"m" + digest(None, *parts))
    assert fingerprint(request, AUTO)[1:] == made


class Others:
    """Another task of the event loop, which counts its turns."""

    def __init__(self) -> None:
        self.turns = 0

    async def run(self) -> None:
        while True:
            self.turns += 1
            await asyncio.sleep(0)


async def _reading(scope: Any, receive: Any, send: Any) -> None:
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message["body"])
        more = message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d" % size})


async def _through_asgi(piece: int) -> tuple[int, bytes]:
    data, sent, others = b"x" * BIG, [], Others()
    pieces = [data[start : start + piece] for start in range(0, len(data), piece)]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"",
             "headers": [(b"idempotency-key", str(uuid4()).encode())]}  # fmt: skip
    other = asyncio.ensure_future(others.run())
    await IdempotencyMiddleware(_reading, "memory://")(scope, receive, send)
    other.cancel()
    return others.turns, sent[-1]["body"]


@pytest.mark.parametrize("piece", [64 * 1024, 2**30], ids=["in pieces", "at once"])
def test_while_a_body_is_taken_in_and_read_others_run(piece: int) -> None:
    """R-10: although neither the server nor the disk makes the request wait."""
    turns, said = asyncio.run(_through_asgi(piece))
    assert said == b"%d" % BIG
    assert turns >= BIG // bodies.TURN + BIG // bodies.PIECE


_seen: list[HttpRequest] = []


@async_only_middleware
def noting(get_response: Any) -> Any:
    """Middleware that gives the test its request."""

    async def middleware(request: HttpRequest) -> Any:
        _seen.append(request)
        return await get_response(request)

    return middleware


async def _sizes_seen() -> list[int]:
    """How much of a body had been read at each turn of another task."""
    sizes = [0]

    async def look() -> None:
        while True:
            exchange = getattr(_seen[-1], "_open_idempotency_exchange", None) if _seen else None
            if exchange is not None:
                sizes.append(exchange._ensure_recording()._body.size)
            await asyncio.sleep(0)

    looking = asyncio.ensure_future(look())
    call = AsgiCall(b"x" * BIG)
    await call.run(ASGIHandler())
    assert not looking.done()  # it has met no error
    looking.cancel()
    assert call.body == b"done"
    return sizes


def test_while_django_reads_a_body_others_run() -> None:
    """R-10: the body is copied from Django's file into the library's, a turn at a time."""

    async def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse("done")

    with project(view, MIDDLEWARE=[f"{__name__}.noting", OURS]):
        sizes = asyncio.run(_sizes_seen())
    assert max(after - before for before, after in pairwise(sizes)) <= bodies.TURN
