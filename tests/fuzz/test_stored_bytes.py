"""Any bytes in place of a stored response or a stage: an error that says so, and never a second run.

The backend's own verbs store the bytes, and requests go through the ASGI middleware.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from open_idempotency._core.commands import Claim, Complete, Fail, Get, SaveStage
from open_idempotency._core.models import Lease, Leased, Record, Response, Stage
from open_idempotency._core.stored_response import (
    StageKind,
    decode_response,
    decode_stage,
    encode_response,
    encode_stage,
)
from open_idempotency.asgi import IdempotencyMiddleware
from open_idempotency.backend import Backend
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.backends.sqlite import SqliteBackend
from open_idempotency.exceptions import RecordUnreadable
from tests.effort import times
from tests.http.backends import WatchedBackend

RESPONSE = encode_response(Response(201, [(b"location", b"/charges/1"), (b"x-ledger", b"main")], b'{"charge": 1}'))
TOMBSTONE = encode_response(Response(201, [(b"location", b"/charges/1")], None))
STAGE = encode_stage(StageKind.VALUE, b'{"amount": 5}')
ERROR = encode_stage(StageKind.ERROR, b'["Declined", []]')

bounded = settings(
    max_examples=times(25),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@st.composite
def damaged(draw: st.DrawFn, *frames: bytes) -> bytes:
    """A valid frame with a few bytes changed, missing or added."""
    frame = bytearray(draw(st.sampled_from(frames)))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(frame)))
        frame[place : place + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(frame)


@pytest.fixture(params=["memory", "sqlite"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[WatchedBackend]:
    """A real backend of each kind."""
    made: Backend = MemoryBackend()
    if request.param == "sqlite":
        made = SqliteBackend(str(tmp_path / "records.db"), synchronous="normal", timeout=9)
    yield WatchedBackend(made)
    made.close()


class Shop:
    """An application that fails at its first run, behind the middleware, and one client's key."""

    def __init__(self, backend: WatchedBackend) -> None:
        self.backend = backend
        self.runs = 0
        self._app = IdempotencyMiddleware(self._charge, backend)
        self._key = str(uuid4())

    async def _charge(self, scope: Any, receive: Any, send: Any) -> None:
        self.runs += 1
        status = 500 if self.runs == 1 else 201
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"charged"})

    async def post(self) -> httpx.Response:
        """Send the same request."""
        transport = httpx.ASGITransport(self._app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/charges", content=b"{}", headers={"Idempotency-Key": self._key})

    async def fail_and_claim(self) -> Lease:
        """Run the request once, so that there is a record; the lease of another worker on it."""
        self.backend.commands.clear()
        assert (await self.post()).status_code == 500
        claim = next(command for command in self.backend.commands if isinstance(command, Claim))
        leased = self.backend.inner.claim(replace(claim, owner=secrets.token_bytes(16)))
        assert isinstance(leased, Leased)
        return leased.lease

    def record(self, lease: Lease) -> Record:
        """The stored record."""
        record = self.backend.inner.get(Get(lease.record_id))
        assert record is not None
        return record


def readable(decode: Any, frame: bytes) -> bool:
    try:
        decode(frame)
    except RecordUnreadable:
        return False
    return True


def assert_unreadable(response: httpx.Response) -> None:
    assert response.status_code == 503, response.text
    assert response.json()["type"].endswith(":record-unreadable")


@bounded
@given(frame=st.binary(max_size=80) | damaged(RESPONSE, TOMBSTONE))
def test_any_bytes_as_a_stored_response_never_run_again(backend: WatchedBackend, frame: bytes) -> None:
    """B-08b: invalid bytes are 503 `record-unreadable`, and stay as they are."""

    async def check() -> None:
        shop = Shop(backend)
        lease = await shop.fail_and_claim()
        backend.inner.complete(Complete(lease, frame))
        stored = shop.record(lease)

        response = await shop.post()

        if not readable(decode_response, frame):
            assert_unreadable(response)
        elif decode_response(frame).body is None:
            assert response.json()["type"].endswith(":not-replayable")
        else:
            assert response.status_code == decode_response(frame).status
            assert response.headers["idempotent-replayed"] == "true"
        assert shop.runs == 1
        assert shop.record(lease) == stored

    asyncio.run(check())


@bounded
@given(frames=st.lists(st.binary(max_size=40) | damaged(STAGE, ERROR) | st.just(STAGE), min_size=1, max_size=3))
def test_any_bytes_as_a_stage_never_run_again(backend: WatchedBackend, frames: list[bytes]) -> None:
    """B-08b: the claim is released, so that the next request gets the same error; valid stages are used."""

    async def check() -> None:
        shop = Shop(backend)
        lease = await shop.fail_and_claim()
        for number, frame in enumerate(frames):
            backend.inner.save_stage(SaveStage(lease, Stage("charge", str(number), frame)))
        backend.inner.fail(Fail(lease))
        stored = shop.record(lease)

        responses = [await shop.post() for _ in range(2)]

        if all(readable(decode_stage, frame) for frame in frames):
            assert [response.status_code for response in responses] == [201, 201]
            assert shop.runs == 2
            return
        for response in responses:
            assert_unreadable(response)
        assert shop.runs == 1
        kept = shop.record(lease)
        assert (kept.status, kept.attempt, kept.stages) == (stored.status, stored.attempt, stored.stages)

    asyncio.run(check())
