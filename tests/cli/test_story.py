"""A stuck client's key: its record is found, explained and freed in three commands, on each backend."""

from __future__ import annotations

import asyncio
import json
import sys
import types
from typing import Any

import httpx
import pytest

from open_idempotency import IdempotencyPolicy, idem
from open_idempotency.asgi import IdempotencyMiddleware
from open_idempotency.backend import Backend, Claim, Get, Status
from tests.cli.running import Shell
from tests.operations.stores import Maker, begun

KEY = "8e03978e-40d5-43e8-bc93-6894a57f9324"
USER = "Bearer ann"
HEADERS = {"Idempotency-Key": f'"{KEY}"', "Authorization": USER}


class Shop:
    """An application that charges a card, with a policy that does not resume abandoned requests."""

    def __init__(self, backend: Backend) -> None:
        self.charged = 0
        self._backend = backend
        policy = IdempotencyPolicy(application="shop", on_abandoned="reject", lease=60)
        self.app = IdempotencyMiddleware(self._view, backend, policy=policy)

    async def _charge(self) -> str:
        self.charged += 1
        return "ch_2"

    async def _view(self, scope: Any, receive: Any, send: Any) -> None:
        charge = await idem.arun("charge", self._charge, external=True)
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": str(charge).encode()})

    def post(self) -> httpx.Response:
        """The client's request, with its key."""

        async def post() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app)
            try:
                async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
                    return await client.post("/charges", json={"amount": 10}, headers=HEADERS)
            finally:
                await self._backend.to_async().close()  # the loop ends here

        return asyncio.run(post())


@pytest.fixture
def shop(stored: Backend, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A shop whose worker was killed during a charge, some time ago."""
    shop = Shop(stored)
    module = types.ModuleType("shop_of_the_story")
    module.app = shop.app  # type: ignore[attr-defined]  # what --app names
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert shop.post().status_code == 201
    (record,) = stored.scan()
    # What a killed worker leaves behind: the record of this very request, its lease ended, the charge begun.
    assert stored.delete(record.record_id)
    maker = Maker(stored)
    lease = maker.lease(0.001, record_id=record.record_id, fingerprint=record.fingerprint)
    maker.save(lease, begun("charge"))
    maker.await_end(lease)
    shop.charged = 0
    return shop


@pytest.fixture
def operator(store: str, capsys: pytest.CaptureFixture[str]) -> Shell:
    """The operator's shell on the same backend."""
    return Shell(store, capsys)


APP = ("--app", "shop_of_the_story:app", "--authorization", USER)


def test_a_stuck_client_is_freed_in_three_commands(shop: Shop, operator: Shell) -> None:
    """P-10 to P-15: the provider confirms the charge, and it is not made again."""
    assert (shop.post().status_code, shop.charged) == (409, 0)

    found = operator("show", KEY, *APP)
    assert found.code == 0, found.err
    assert "state    abandoned, in doubt" in found.out
    assert "A retry is refused: the policy has on_abandoned='reject'. Release frees the key." in found.out
    assert "Stage 'charge' is in doubt" in found.out

    record = found.out.split()[1]
    freed = operator("resolve", record, "--stage", "charge", "--found", '"ch_1"', "--yes")
    assert (freed.code, freed.err) == (0, "")

    reported = json.loads(operator("show", KEY, *APP, "--json").out)
    assert (reported["stuck"], reported["in_doubt"]) == (False, [])
    retried = shop.post()
    assert (retried.status_code, retried.text, shop.charged) == (201, "ch_1", 0)
    assert shop.post().headers["Idempotent-Replayed"] == "true"


def test_a_charge_that_has_not_happened_is_made(shop: Shop, operator: Shell) -> None:
    """P-15: once, by the next retry."""
    assert operator("resolve", KEY, *APP, "--stage", "charge", "--not-done", "--yes").code == 0
    for _ in range(2):
        assert shop.post().text == "ch_2"
    assert shop.charged == 1


def test_a_worker_that_is_dead_is_released_by_the_key(shop: Shop, operator: Shell, stored: Backend) -> None:
    """P-14: and a forgotten key can be used as a new one."""
    assert operator("release", KEY, *APP, "--yes").code == 0
    (record,) = stored.scan()
    assert (record.status, record.attempt) == (Status.FAILED, 0)
    assert operator("forget", KEY, *APP, "--yes").code == 0
    assert stored.get(Get(record.record_id)) is None
    assert operator("show", KEY, *APP).code == 3
    assert (shop.post().status_code, shop.charged) == (201, 1)


def test_all_records_of_a_caller_are_erased(shop: Shop, operator: Shell, stored: Backend) -> None:
    """P-24: they are counted first; records of other callers remain."""
    Maker(stored).completed()
    assert operator("forget", KEY, *APP, "--yes").code == 0
    shop.post()
    assert "found 1 of 2 records" in operator("erase", *APP, "--dry-run").out
    assert operator("erase", *APP).code == 10
    assert len(list(stored.scan())) == 2
    erased = operator("erase", *APP, "--yes")
    assert (erased.code, erased.out) == (0, "erased 1 of 2 records\n")
    (left,) = stored.scan()
    assert left.status is Status.COMPLETED


def test_an_erasure_that_may_have_left_something_is_11(shop: Shop, operator: Shell, stored: Backend) -> None:
    """P-24: records of earlier versions do not store the caller; the exit code reports that."""
    stored.claim(Claim(b"\x07" * 32, b"\x01 a request", bytes(16), 30.0, 60.0))
    for options in (["--dry-run"], ["--yes"]):
        done = operator("erase", *APP, *options)
        assert (done.code, done.out.split()[1]) == (11, "0")
        assert "1 records do not name their caller" in done.err
