"""One accident at a time: a killed worker, a lost reply, a backend that is down, a duplicate in flight."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from flask import Flask

from open_idempotency import Status, flask, idem
from open_idempotency.fastapi import IdempotencyMiddleware
from open_idempotency.testing import Clock, Kit, KitError, NoResponse
from tests.unit.testing.bank import Bank

KEY = {"Idempotency-Key": "a-key-of-the-test-0001"}


@pytest.fixture
def bank() -> Bank:
    return Bank()


@pytest.fixture
def trail() -> list[str]:
    """The steps that the endpoint has reached."""
    return []


def _app(bank: Bank, trail: list[str], **policy: Any) -> FastAPI:
    app = FastAPI()
    app.add_middleware(IdempotencyMiddleware, backend="memory://", **policy)

    @app.post("/pay")
    async def pay() -> Any:
        trail.append("began")
        charge = await idem.arun("charge", bank.acharge, 1, idem.key_for("charge"))
        trail.append("charged")
        mail = await idem.arun("mail", str, "sent")
        trail.append("mailed")
        return {"charge": charge["id"], "mail": mail, "attempt": idem.attempt}

    return app


@pytest.fixture
def client(bank: Bank, trail: list[str]) -> TestClient:
    return TestClient(_app(bank, trail))


@pytest.mark.parametrize(("when", "stages", "charges"), [("before", 0, 0), ("unrecorded", 0, 1), ("after", 1, 1)])
def test_a_killed_attempt_goes_no_further(
    idempotency: Kit, client: TestClient, bank: Bank, trail: list[str], when: Any, stages: int, charges: int
) -> None:
    """T-09: nothing of it is recorded or released, and its lease continues."""
    with idempotency.crash_at("charge", when=when):
        client.post("/pay", headers=KEY)
    (record,) = idempotency.records
    assert (record.status, len(record.stages), bank.count()) == (Status.IN_PROGRESS, stages, charges)
    assert trail == ["began"]
    assert client.post("/pay", headers=KEY).status_code == 409
    assert trail == ["began"]


def test_the_next_request_resumes_when_the_lease_has_ended(
    idempotency: Kit, client: TestClient, bank: Bank, trail: list[str]
) -> None:
    """T-09: by the test's clock, so no real time passes."""
    began = time.monotonic()
    with idempotency.crash_at("charge"):
        client.post("/pay", headers=KEY)
    idempotency.advance(29)
    assert client.post("/pay", headers=KEY).status_code == 409
    idempotency.advance(timedelta(seconds=2))
    assert client.post("/pay", headers=KEY).json()["attempt"] == 2
    assert bank.count() == 1
    assert time.monotonic() - began < 30


def test_one_call_moves_the_clock_past_the_leases_of_killed_attempts(idempotency: Kit, client: TestClient) -> None:
    """T-09: the clock moves no further."""
    with idempotency.crash_at("mail"):
        client.post("/pay", headers=KEY)
    before = idempotency.clock()
    idempotency.end_leases()
    assert 30 < idempotency.clock() - before < 32
    idempotency.end_leases()
    assert idempotency.clock() - before < 32
    assert client.post("/pay", headers=KEY).status_code == 200


def test_the_caller_of_a_killed_request_gets_no_response(idempotency: Kit, client: TestClient) -> None:
    """T-09: its exception ends the block, and the rest of the block does not run."""
    with idempotency.crash_at("charge"):
        client.post("/pay", headers=KEY)
        pytest.fail("a killed worker has responded")


def test_the_end_of_another_worker_is_raised(idempotency: Kit) -> None:
    """T-09: a block catches only the exception of its own crash."""
    with pytest.raises(NoResponse), idempotency.crash_at("charge"):
        raise NoResponse("of another block")


def test_a_failed_assertion_in_the_block_is_raised(idempotency: Kit, client: TestClient) -> None:
    """T-09: the block catches only the exceptions of killed workers."""
    client = TestClient(client.app, raise_server_exceptions=False)
    with pytest.raises(AssertionError, match="reported so"), idempotency.crash_at("charge"):
        assert client.post("/pay", headers=KEY).status_code == 200, "reported so"


def test_a_crash_at_the_end_leaves_no_response(idempotency: Kit, client: TestClient, trail: list[str]) -> None:
    """T-09: the handler has run, and its response is not recorded."""
    with idempotency.crash_at_end():
        client.post("/pay", headers=KEY)
    assert trail == ["began", "charged", "mailed"]
    (record,) = idempotency.records
    assert record.status is Status.IN_PROGRESS
    idempotency.end_leases()
    assert client.post("/pay", headers=KEY).json()["attempt"] == 2


def test_a_lost_reply_is_on_record(idempotency: Kit, client: TestClient, trail: list[str]) -> None:
    """T-10: the retry gets the recorded response at once."""
    with idempotency.lost_reply():
        client.post("/pay", headers=KEY)
    response = client.post("/pay", headers=KEY)
    assert response.json()["attempt"] == 1
    assert response.headers["Idempotent-Replayed"] == "true"
    assert trail.count("began") == 1


def test_a_crash_at_one_of_several_uses_is_named_by_its_key(idempotency: Kit, trail: list[str]) -> None:
    """T-09: the other uses run."""
    app = Flask("shop")
    flask.Idempotency(app, "memory://")

    @app.post("/pay")
    def pay() -> Any:
        for number in range(3):
            idem.run("item", trail.append, str(number), key=number)
        return {}

    with idempotency.crash_at("item", key=1):
        app.test_client().post("/pay", headers=KEY)
    assert trail == ["0", "1"]
    idempotency.end_leases()
    assert app.test_client().post("/pay", headers=KEY).status_code == 200
    assert trail == ["0", "1", "2"]


# Mistakes


@pytest.mark.parametrize(
    ("stage", "said"),
    [("charg", "no attempt came to a stage 'charg' within the block; the attempts came to 'charge', 'mail'")],
)
def test_a_stage_that_never_runs_is_reported(idempotency: Kit, client: TestClient, stage: str, said: str) -> None:
    """T-11: the error names the stages that ran."""
    with pytest.raises(KitError, match=said), idempotency.crash_at(stage):
        client.post("/pay", headers=KEY)


def test_a_block_without_a_request_with_a_key_is_reported(idempotency: Kit, client: TestClient) -> None:
    """T-11: there was no attempt that could die."""
    with pytest.raises(KitError, match="no request with an idempotency key came"), idempotency.crash_at("charge"):
        client.post("/pay")
    with pytest.raises(KitError, match="no request with an idempotency key came"), idempotency.lost_reply():
        client.post("/pay")


def test_a_stage_that_was_on_record_before_is_reported(idempotency: Kit, client: TestClient) -> None:
    """T-11: a replay runs no stage."""
    client.post("/pay", headers=KEY)
    with pytest.raises(KitError, match="no attempt came to a stage 'charge'"), idempotency.crash_at("charge"):
        client.post("/pay", headers=KEY)


def test_one_crash_is_planned_at_a_time(idempotency: Kit) -> None:
    """T-11: the second crash would hide the first."""
    with pytest.raises(KitError, match="planned already"), idempotency.crash_at("a"), idempotency.crash_at("b"):
        pytest.fail("two crashes are planned")


def test_wrong_arguments_of_accidents_are_reported(idempotency: Kit) -> None:
    """T-11: the error names the known ones."""
    with pytest.raises(KitError, match="'before', 'unrecorded', 'after'"), idempotency.crash_at("a", when="later"):  # type: ignore[arg-type]  # the mistake
        pytest.fail("begun")
    with (
        pytest.raises(KitError, match="clam is no verb of a backend; known: claim, "),
        idempotency.backend_down("clam"),
    ):
        pytest.fail("begun")
    with pytest.raises(KitError, match="moves forward only"):
        idempotency.advance(-1)


# The clock


def test_the_clock_stands_still_until_it_is_moved(idempotency: Kit) -> None:
    """T-12: no lease ends because a machine is slow."""
    assert isinstance(idempotency.clock, Clock)
    assert idempotency.clock() == idempotency.clock()


def test_an_attempt_that_runs_keeps_its_lease(idempotency: Kit, bank: Bank) -> None:
    """T-12: its worker renews it while the clock moves; a worker that stands still loses it."""
    app = FastAPI()
    app.add_middleware(IdempotencyMiddleware, backend="memory://")
    frozen = False

    @app.post("/pay")
    async def pay() -> Any:
        idempotency.advance(300, frozen=frozen)
        return await idem.arun("charge", bank.acharge, 1, idem.key_for("charge"))

    client = TestClient(app)
    assert idempotency.duplicate_in_flight(client, "POST /pay").first.status_code == 200
    frozen = True
    with idempotency.crash_at("charge", when="before"):
        client.post("/pay", headers=KEY)
    assert client.post("/pay", headers=KEY).status_code == 200  # its lease had ended


def test_records_expire_by_the_clock(idempotency: Kit, client: TestClient, trail: list[str]) -> None:
    """T-12: a day passes in no real time."""
    client.post("/pay", headers=KEY)
    idempotency.advance(timedelta(days=2))
    client.post("/pay", headers=KEY)
    assert trail.count("began") == 2


# Duplicates


def test_a_duplicate_in_flight_is_refused(idempotency: Kit, client: TestClient, trail: list[str]) -> None:
    """T-13: it is sent after the claim, and before the handler."""
    first, duplicate = idempotency.duplicate_in_flight(client, "POST /pay")
    assert (first.status_code, duplicate.status_code) == (200, 409)
    assert trail.count("began") == 1


def test_a_duplicate_waits_on_the_clock_of_the_test(idempotency: Kit, bank: Bank, trail: list[str]) -> None:
    """T-13: until its timeout; the first request keeps its lease meanwhile."""
    client = TestClient(_app(bank, trail, wait=600, max_wait=600))
    began = time.monotonic()
    first, duplicate = idempotency.duplicate_in_flight(client, "POST /pay")
    assert (first.status_code, duplicate.status_code) == (200, 409)
    assert time.monotonic() - began < 60
    assert trail.count("began") == 1


def test_a_duplicate_of_an_async_client_is_sent_on_its_loop(idempotency: Kit, bank: Bank, trail: list[str]) -> None:
    """T-13: the async form of the call."""

    async def main() -> Any:
        transport = httpx.ASGITransport(app=_app(bank, trail))
        async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
            return await idempotency.aduplicate_in_flight(client, "POST /pay", key="a-key-of-the-test-0001")

    first, duplicate = asyncio.run(main())
    assert (first.status_code, duplicate.status_code) == (200, 409)


def test_a_duplicate_of_a_used_key_is_reported(idempotency: Kit, client: TestClient) -> None:
    """T-11: no attempt begins, so no request is in flight."""
    client.post("/pay", headers=KEY)
    with pytest.raises(KitError, match="no attempt began"):
        idempotency.duplicate_in_flight(client, "POST /pay", key=KEY["Idempotency-Key"])


# The backend


def test_requests_are_refused_while_the_backend_is_down(idempotency: Kit, client: TestClient, trail: list[str]) -> None:
    """T-14: they run again when it is up."""
    with idempotency.backend_down():
        assert client.post("/pay", headers=KEY).status_code == 503
    assert trail == []
    assert client.post("/pay", headers=KEY).status_code == 200


def test_a_policy_that_fails_open_is_seen(idempotency: Kit, bank: Bank, trail: list[str]) -> None:
    """T-14: the endpoint runs without protection."""
    client = TestClient(_app(bank, trail, fail_open=True))
    with idempotency.backend_down():
        assert client.post("/pay", headers=KEY).status_code == 200
    assert idempotency.records == []


@pytest.mark.parametrize("async_", [True, False])
def test_a_response_that_cannot_be_recorded_is_recorded_later(
    idempotency: Kit, bank: Bank, trail: list[str], async_: bool
) -> None:
    """T-14: this takes no real time, and the record exists when the block has ended."""
    if async_:
        client: Any = TestClient(_app(bank, trail))
    else:
        app = Flask("shop")
        flask.Idempotency(app, "memory://")
        app.post("/pay")(lambda: {"charge": bank.charge(1, "k")})
        client = app.test_client()
    began = time.monotonic()
    with idempotency.backend_down("complete"):
        response = client.post("/pay", headers=KEY)
        assert response.headers["Idempotency-Status"] == "unrecorded"
        assert client.post("/pay", headers=KEY).status_code == 409
    assert time.monotonic() - began < 30
    (record,) = idempotency.records
    assert record.status is Status.COMPLETED
    assert client.post("/pay", headers=KEY).headers["Idempotent-Replayed"] == "true"


def test_a_stage_that_cannot_be_saved_fails_the_attempt(idempotency: Kit, client: TestClient, bank: Bank) -> None:
    """T-14: after it was tried for a lease, which takes no real time; the retry runs the stage again."""
    client = TestClient(client.app, raise_server_exceptions=False)
    began = time.monotonic()
    with idempotency.backend_down("save_stage"):
        assert client.post("/pay", headers=KEY).status_code >= 500
    assert time.monotonic() - began < 30
    assert client.post("/pay", headers=KEY).json()["attempt"] == 2
    assert bank.count() == 1
