"""Encryption over real backends: what their bytes contain, and what becomes of frames that an attacker moves."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import redis

from open_idempotency import idem, open_backend
from open_idempotency.backend import Claim, Complete, Fail, Get, Lease, Leased, Record, SaveStage, Stage
from open_idempotency.encryption import EncryptionKeys
from open_idempotency.redaction import redact_json
from open_idempotency.wsgi import IdempotencyMiddleware
from tests.http.backends import WatchedBackend

KEYS = EncryptionKeys({"2026": b"n" * 32, "2025": b"o" * 32})
CARD, VALUE = b"4111-1111-1111-1111", "5222-2222-2222-2222"
Raw = Callable[[], bytes]


class Kept(WatchedBackend):
    """A real backend, and all the bytes that it stores."""

    def __init__(self, url: str, raw: Raw) -> None:
        super().__init__(open_backend(url))
        self.raw = raw

    def lease_on(self, claim: Claim) -> Lease:
        """Claim this record as another worker."""
        leased = self.inner.claim(replace(claim, owner=secrets.token_bytes(16)))
        assert isinstance(leased, Leased)
        return leased.lease

    def put(self, claim: Claim, stage: Stage) -> None:
        """Put a stage into this record, as a failed attempt would have done."""
        lease = self.lease_on(claim)
        self.inner.save_stage(SaveStage(lease, stage))
        self.inner.fail(Fail(lease))

    def record(self, claim: Claim) -> Record:
        """The stored record."""
        record = self.inner.get(Get(claim.record_id))
        assert record is not None
        return record


@pytest.fixture(params=["sqlite", "redis"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kept]:
    """A backend on a file, and one on a server."""
    if request.param == "sqlite":
        made = Kept(
            f"sqlite:///{tmp_path}/records.db", lambda: b"".join(path.read_bytes() for path in tmp_path.iterdir())
        )
    else:
        server, prefix = request.getfixturevalue("valkey_url"), f"at-rest-{uuid4()}:"
        made = Kept(f"{server}?prefix={prefix}", lambda: _redis_bytes(server, prefix))
    yield made
    made.inner.close()


def _redis_bytes(server: str, prefix: str) -> bytes:
    with redis.Redis.from_url(server) as client:
        found = [client.hgetall(key) for key in client.scan_iter(f"{prefix}*")]
    assert found
    return b"\n".join(part for fields in found for pair in fields.items() for part in pair)


class Shop:
    """An application with a stage that fails after it while ``failing`` is set, and the one key of its clients."""

    def __init__(self, backend: Kept, **fields: Any) -> None:
        self.backend = backend
        self.runs = self.charges = 0
        self.failing = False
        self._app = IdempotencyMiddleware(self._serve, backend, **{"encryption": KEYS, **fields})
        self._key = str(uuid4())

    def _serve(self, environ: Any, start_response: Any) -> list[bytes]:
        self.runs += 1
        idem.run("charge", self._charge)
        start_response("500 Oops" if self.failing else "201 Created", [])
        return [b'{"card": "%b"}' % CARD]

    def _charge(self) -> str:
        self.charges += 1
        return VALUE

    def post(self, user: str = "ann", **fields: Any) -> httpx.Response:
        """Post the same request; ``fields``: as a worker with another policy."""
        app = IdempotencyMiddleware(self._serve, self.backend, **fields) if fields else self._app
        headers = {"Idempotency-Key": self._key, "Authorization": user}
        with httpx.Client(transport=httpx.WSGITransport(app), base_url="http://test") as client:
            return client.post("/charges", content=b"{}", headers=headers)

    def fail(self, user: str = "ann") -> Claim:
        """Make a failed attempt; return its claim."""
        self.failing = True
        assert self.post(user).status_code == 500
        self.failing = False
        return self.last_claim()

    def last_claim(self) -> Claim:
        """The last claim."""
        return next(command for command in reversed(self.backend.commands) if isinstance(command, Claim))


def assert_unreadable(response: httpx.Response) -> None:
    assert response.status_code == 503, response.text
    assert response.json()["type"].endswith(":record-unreadable")


def assert_nothing_runs(shop: Shop, user: str) -> None:
    """Assert that two retries get a problem."""
    runs = shop.runs
    for _ in range(2):
        assert_unreadable(shop.post(user))
    assert shop.runs == runs


def test_without_encryption_the_bytes_can_be_found(backend: Kept) -> None:
    """The tests below look in the right place."""
    shop = Shop(backend, encryption=None)
    shop.post()
    assert CARD in backend.raw()
    assert VALUE.encode() in backend.raw()


def test_the_bytes_at_rest_hold_neither_the_response_nor_a_stage(backend: Kept) -> None:
    """The replay is the response, byte for byte."""
    shop = Shop(backend)
    shop.fail()
    first, second = shop.post(), shop.post()
    assert (first.status_code, first.content) == (second.status_code, second.content)
    assert second.headers["idempotent-replayed"] == "true"
    assert (shop.runs, shop.charges) == (2, 1)
    raw = backend.raw()
    assert b"2026" in raw, "the frames of this test are not among these bytes"
    assert CARD not in raw
    assert VALUE.encode() not in raw


def test_a_failed_response_at_rest_is_sealed_too(backend: Kept) -> None:
    """O-08: ``on_failed="replay"``."""
    shop = Shop(backend, on_failed="replay")
    shop.fail()
    replay = shop.post()
    assert (replay.status_code, CARD in replay.content, shop.runs) == (500, True, 1)
    assert CARD not in backend.raw()


def test_a_redacted_response_leaves_nothing_of_what_was_taken_out(backend: Kept) -> None:
    """The first client gets the whole response."""
    shop = Shop(backend, encryption=None, redact=redact_json("/card"))
    first, second = shop.post(), shop.post()
    assert CARD in first.content
    assert second.json() == {"card": None}
    assert second.headers["idempotent-replayed"] == "true"
    assert CARD not in backend.raw()


def test_a_response_that_was_moved_to_another_record_is_not_sent(backend: Kept) -> None:
    """B-08b: an attacker with write access cannot give Ann's response to Bob."""
    shop = Shop(backend)
    shop.post("ann")
    stolen = backend.record(shop.last_claim())
    bobs = shop.fail("bob")
    assert stolen.response is not None
    backend.inner.complete(Complete(backend.lease_on(bobs), stolen.response))
    before, runs = backend.record(bobs), shop.runs
    assert_unreadable(shop.post("bob"))
    assert (shop.runs, backend.record(bobs)) == (runs, before)


def test_a_stage_that_was_moved_to_another_record_runs_nothing(backend: Kept) -> None:
    """B-08b: Bob's request would otherwise take Ann's charge for its own."""
    shop = Shop(backend)
    (stage,) = backend.record(shop.fail("ann")).stages
    bobs = shop.fail("bob")
    backend.inner.delete(bobs.record_id)
    backend.put(bobs, stage)
    assert_nothing_runs(shop, "bob")


def test_a_stage_that_was_moved_to_another_name_runs_nothing(backend: Kept) -> None:
    """B-08b: a charge would otherwise pass for a refund of the same request."""
    shop = Shop(backend)
    anns = shop.fail()
    (stage,) = backend.record(anns).stages
    backend.put(anns, replace(stage, name="refund"))
    assert_nothing_runs(shop, "ann")


def test_keys_are_rotated_under_live_records(backend: Kept) -> None:
    """Records of the old key are replayed and resumed; without that key they fail closed."""
    shop = Shop(backend, encryption=EncryptionKeys({"2025": b"o" * 32}))
    shop.fail()
    rotated = {"encryption": KEYS}
    first = shop.post(**rotated)  # resumes a stage of the old key, and seals its response with the new one
    assert (first.status_code, shop.charges) == (201, 1)
    only_new = {"encryption": EncryptionKeys({"2026": b"n" * 32})}
    assert shop.post(**only_new).content == first.content
    assert_unreadable(shop.post(encryption=EncryptionKeys({"2025": b"o" * 32})))
    assert_unreadable(shop.post(encryption=EncryptionKeys({"2026": b"x" * 32})))
    assert_unreadable(shop.post(fail_open=True))
    assert shop.runs == 2


def test_encryption_is_switched_on_under_live_records(backend: Kept) -> None:
    """At each step every worker reads what any other worker stores; in the end a plain record fails closed."""
    steps: list[dict[str, Any]] = [
        {"encryption": None},
        {"encryption": KEYS, "plain_records": "write"},
        {"encryption": KEYS, "plain_records": "accept"},
        {"encryption": KEYS},
    ]
    for before, after in pairwise(steps):
        for writer, reader in ((before, after), (after, before)):
            shop = Shop(backend)
            content = shop.post(**writer).content
            assert shop.post(**reader).content == content, (writer, reader)
            assert shop.runs == 1
    shop = Shop(backend)
    shop.post(encryption=None)
    assert_unreadable(shop.post())
    assert shop.runs == 1
