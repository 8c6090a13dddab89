"""A response or a stage whose size the backend refuses: a retry never runs again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from open_idempotency import OutcomeUnknown, events, idem
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.commands import KeepAlive
from open_idempotency._core.models import Completed, Leased, Refused, Response
from open_idempotency._core.settlement import Fate, finish
from open_idempotency._core.stored_response import FAILURE, RESPONSE, decode_response, unseal
from open_idempotency._engine.engine import Engine
from open_idempotency.backend import Claim, Complete, Fail, Get, SaveStage, StageSaved
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.encryption import EncryptionKeys
from open_idempotency.exceptions import BackendUnavailable, RecordTooLarge
from tests.unit.builders import PRINT, Listener, engine_of, eventually
from tests.unit.stages.stage_client import Client, Counted

RECORD = b"r" * 32
LARGE = Response(201, [(b"location", b"/orders/1"), (b"content-type", b"text/plain")], bytes(5000))


class Narrow(MemoryBackend):
    """A memory backend that refuses more than ``most`` bytes, and has an ``away`` switch."""

    def __init__(self, most: int = 1000) -> None:
        super().__init__()
        self.most = most
        self.away = threading.Event()

    def complete(self, c: Complete, /) -> Completed:
        """Complete, if the response is within the limit."""
        self._measure(len(c.response))
        return super().complete(c)

    def fail(self, c: Fail, /) -> None:
        """Fail, if the response is within the limit."""
        self._measure(len(c.response or b""))
        super().fail(c)

    def save_stage(self, c: SaveStage, /) -> StageSaved:
        """Save the stage, if it is within the limit."""
        self._measure(len(c.stage.frame))
        return super().save_stage(c)

    def _measure(self, size: int) -> None:
        if self.away.is_set():
            raise BackendUnavailable("away")
        if size > self.most:
            raise RecordTooLarge(f"{size} bytes are too many")


class Desk:
    """An engine on such a backend. ``end`` responds to one request."""

    def __init__(self, backend: Narrow, **fields: Any) -> None:
        self.backend = backend
        self.listener = Listener()
        self.engine: Engine = engine_of(backend, **{"respond_within": 0, "on_event": self.listener, **fields})

    def admit(self) -> Attempt:
        """Begin an attempt."""
        leased = self.claim()
        assert isinstance(leased, Leased)
        attempt = Attempt.of(leased.lease, leased.stages, self.engine.policy, "/")
        self.engine.heartbeat.keep(KeepAlive(attempt))
        return attempt

    def claim(self) -> Any:
        """Claim as the next request with the key."""
        policy = self.engine.policy
        return self.backend.claim(
            Claim(RECORD, PRINT, b"o" * 16, policy.lease, 60.0, resume_failed=policy.on_failed == "resume")
        )

    def end(self, response: Response) -> Fate | Response:
        """Respond to a new request."""
        attempt = self.admit()
        try:
            return self.engine.sync.run(finish(attempt, response))
        finally:
            self.engine.heartbeat.forget(attempt)

    def stored(self, kind: bytes = RESPONSE) -> Response:
        """The stored response."""
        record = self.backend.get(Get(RECORD))
        assert record is not None
        assert record.response is not None
        of = Claim(record.record_id, record.fingerprint, record.owner, 1.0, 1.0)
        return decode_response(unseal(record.response, kind, of, self.engine.policy))


@pytest.fixture(params=["plain", "encrypted"])
def desk(request: pytest.FixtureRequest) -> Iterator[Desk]:
    """A desk on a narrow backend."""
    fields = {"encryption": EncryptionKeys({"k": bytes(32)})} if request.param == "encrypted" else {}
    desk = Desk(Narrow(), **fields)
    yield desk
    desk.engine.heartbeat.close()


def test_a_response_whose_size_is_refused_leaves_a_tombstone_with_its_headers(desk: Desk) -> None:
    """B-17, O-11: the client gets its response, and the event says that the body is not stored."""
    assert desk.end(LARGE) is Fate.KEPT
    stored = desk.stored()
    assert (stored.status, stored.body) == (201, None)
    assert (b"location", b"/orders/1") in stored.headers
    completed = next(event for event in desk.listener.seen if isinstance(event, events.Completed))
    assert completed.stored is False
    assert events.BackendFailed in desk.listener.kinds()


def test_where_the_headers_are_too_large_the_status_alone_is_left(desk: Desk) -> None:
    """B-17, O-11: a retry gets 409 with the status."""
    desk.end(Response(202, [(b"x-large", b"x" * 3000)], bytes(5000)))
    stored = desk.stored()
    assert (stored.status, list(stored.headers), stored.body) == (202, [], None)


def test_a_response_within_the_limit_is_stored_as_ever(desk: Desk) -> None:
    """B-17: nothing is reported."""
    assert desk.end(Response(201, [], b"made")) is Fate.KEPT
    assert desk.stored().body == b"made"
    assert events.BackendFailed not in desk.listener.kinds()


def test_a_failed_response_whose_size_is_refused_leaves_a_tombstone() -> None:
    """B-17, O-08: with ``on_failed="replay"`` its retry does not run either."""
    desk = Desk(Narrow(), on_failed="replay")
    desk.end(Response(500, [], bytes(5000)))
    assert desk.stored(FAILURE).body is None
    assert isinstance(desk.claim(), Refused)
    desk.engine.heartbeat.close()


def test_it_is_noticed_in_the_background_as_well() -> None:
    """B-17, L-08: the backend was unavailable first, and the client has its response."""
    desk = Desk(Narrow())
    desk.backend.away.set()
    assert desk.end(LARGE) is Fate.UNRECORDED
    desk.backend.away.clear()
    eventually(lambda: events.RecordedLate in desk.listener.kinds())
    assert (desk.stored().status, desk.stored().body) == (201, None)
    desk.engine.heartbeat.close()


def test_a_backend_that_refuses_everything_is_unavailable() -> None:
    """B-17: a response that cannot become smaller is lost, and that is reported; no write is tried for ever."""
    desk = Desk(Narrow(most=0))
    assert desk.end(LARGE) is Fate.UNRECORDED
    eventually(lambda: events.RecordingLost in desk.listener.kinds())
    (lost,) = [event for event in desk.listener.seen if isinstance(event, events.RecordingLost)]
    assert lost.reason == "size"
    desk.engine.heartbeat.close()


def test_a_stage_whose_size_is_refused_is_done_without_its_value() -> None:
    """B-17, S-02a: its effect is not repeated; the first attempt has the value, and later ones report that there is
    none.
    """
    listener = Listener()
    client = Client(backend=Narrow(), on_event=listener)
    charge = Counted("x" * 5000)
    with client.request():
        assert idem.run("charge", charge) == charge.result
    for _ in range(2):
        with client.request(), pytest.raises(OutcomeUnknown):
            idem.run("charge", charge)
    assert charge.calls == 1
    assert listener.kinds().count(events.StageValueNotKept) == 1
