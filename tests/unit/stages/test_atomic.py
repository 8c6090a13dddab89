"""``idem.atomic``: the response commits with the caller's rows, in Flask and FastAPI with SQLAlchemy (S-06)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import flask
import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from httpx import ASGITransport, AsyncClient
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from open_idempotency import LeaseLost, NotStarted, SyncAsyncMismatch, idem, ledger
from open_idempotency._core.models import Response as CoreResponse
from open_idempotency._engine.engine import here
from open_idempotency._stages.blocks import response_of
from open_idempotency.asgi import IdempotencyMiddleware
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.encryption import EncryptionKeys
from open_idempotency.exceptions import AlreadyCommitted, ConfigurationError, KeyReused, LedgerMissing
from open_idempotency.flask import Idempotency
from tests.unit.stages.stage_client import Client

KEY = {"Idempotency-Key": "8e03978e-40d5-43e8-bc93-6894a57f9324"}
REPLAYED = "Idempotent-Replayed"


class Shop:
    """A SQLite database with the ledger's tables and a table of orders."""

    def __init__(self, folder: Path) -> None:
        self.url = f"sqlite:///{folder}/shop.db"
        self.engine = create_engine(self.url)
        self.backend = MemoryBackend()
        for statement in (ledger.schema("sqlite") + "CREATE TABLE orders (number integer PRIMARY KEY);").split(";"):
            self.run(statement)

    def run(self, statement: str) -> Any:
        """Run and commit a statement; return its first row."""
        with self.engine.begin() as connection:
            result = connection.execute(text(statement or "SELECT 1"))
            return result.first() if result.returns_rows else None

    @property
    def orders(self) -> int:
        """The number of committed orders."""
        return int(self.run("SELECT count(*) FROM orders")[0])

    def lose(self) -> None:
        """Delete the records, as a flushed cache does."""
        for record in list(self.backend.scan()):
            self.backend.delete(record.record_id)


@pytest.fixture
def shop(tmp_path: Path) -> Any:
    """A new shop."""
    made = Shop(tmp_path)
    yield made
    made.engine.dispose()


def place(session: Session) -> int:
    """Insert an order; return its number."""
    result: Any = session.execute(text("INSERT INTO orders DEFAULT VALUES RETURNING number"))
    return int(result.scalar_one())


# Flask


def flask_client(shop: Shop, respond: Callable[[int], Any], **fields: Any) -> Any:
    """A client of an application whose view inserts an order and responds as ``respond`` does."""
    app = flask.Flask("shop")

    @app.post("/")
    def view() -> Any:
        with Session(shop.engine) as session, session.begin(), idem.atomic(session) as block:
            return block.respond(respond(place(session)))

    Idempotency(app, shop.backend, **fields)
    return app.test_client()


def in_flask(number: int) -> flask.Response:
    """A response with two headers of one name."""
    response = flask.make_response({"order": number}, 201)
    response.headers.add("X-Part", "one")
    response.headers.add("X-Part", "two")
    return response


def test_flask_replays_although_the_record_was_lost(shop: Shop) -> None:
    """S-06, R-01: status, body and headers are the same; there is no second order."""
    client = flask_client(shop, in_flask)
    first = client.post("/", headers=KEY)
    shop.lose()
    again = client.post("/", headers=KEY)
    assert (first.status_code, again.status_code, first.data) == (201, 201, again.data)
    assert again.headers.getlist("X-Part") == ["one", "two"]
    assert (again.headers[REPLAYED], again.headers["Content-Type"]) == ("true", "application/json")
    assert shop.orders == 1


def test_the_record_is_complete_again_after_a_replay_from_the_ledger(shop: Shop) -> None:
    """S-06: a third request does not need the ledger."""
    client = flask_client(shop, in_flask)
    first = client.post("/", headers=KEY)
    shop.lose()
    client.post("/", headers=KEY)
    shop.run("DELETE FROM open_idempotency_ledger")
    assert client.post("/", headers=KEY).data == first.data
    assert shop.orders == 1


def test_another_body_is_refused_although_the_record_was_lost(shop: Shop) -> None:
    """S-06, O-05: the fingerprint is in the ledger."""
    client = flask_client(shop, in_flask)
    client.post("/", headers=KEY, data=b"one")
    shop.lose()
    other = client.post("/", headers=KEY, data=b"other")
    assert (other.status_code, other.json["type"]) == (422, "urn:problem-type:open-idempotency:key-reused")
    assert client.post("/", headers=KEY, data=b"one").status_code == 201
    assert shop.orders == 1


def test_sealed_responses_are_sealed_in_the_ledger_too(shop: Shop) -> None:
    client = flask_client(shop, in_flask, encryption=EncryptionKeys({"2026": b"k" * 32}))
    first = client.post("/", headers=KEY)
    assert b"order" not in bytes(shop.run("SELECT response FROM open_idempotency_ledger")[0])
    shop.lose()
    assert client.post("/", headers=KEY).data == first.data
    assert shop.orders == 1


@pytest.mark.parametrize(
    "respond",
    [
        lambda number: {"order": number},
        lambda number: flask.Response(iter([b"a", b"b"])),
        lambda number: None,
    ],
    ids=["a dict", "a stream", "nothing"],
)
def test_what_is_no_whole_response_rolls_back(shop: Shop, respond: Callable[[int], Any]) -> None:
    """Bad input: the message says how to make a whole response."""
    client = flask_client(shop, respond)
    client.application.testing = True
    with pytest.raises(TypeError, match="make_response"):
        client.post("/", headers=KEY)
    assert shop.orders == 0


def test_missing_tables_are_reported_before_any_effect(shop: Shop) -> None:
    """Bad input."""
    shop.run("DROP TABLE open_idempotency_ledger")
    client = flask_client(shop, in_flask)
    client.application.testing = True
    with pytest.raises(LedgerMissing, match="open-idempotency ledger sqlite"):
        client.post("/", headers=KEY)
    assert shop.orders == 0


def test_without_a_key_it_is_a_plain_block(shop: Shop) -> None:
    """S-03."""
    client = flask_client(shop, in_flask)
    assert [client.post("/").json["order"] for _ in range(2)] == [1, 2]
    assert shop.run("SELECT count(*) FROM open_idempotency_ledger")[0] == 0


def test_without_a_key_strict_stages_asks_for_one(shop: Shop) -> None:
    """S-03."""
    client = flask_client(shop, in_flask, strict_stages=True)
    client.application.testing = True
    with pytest.raises(NotStarted):
        client.post("/")
    assert shop.orders == 0


def test_flask_a_stale_worker_sends_what_it_has_committed(shop: Shop) -> None:
    """S-06c: its heartbeat noticed after the COMMIT that another worker has taken over."""
    app = flask.Flask("shop")

    @app.post("/")
    def view() -> Any:
        with Session(shop.engine) as session, session.begin(), idem.atomic(session) as block:
            response = block.respond(in_flask(place(session)))
        here()[0].lost = True
        return response

    Idempotency(app, shop.backend)
    response = app.test_client().post("/", headers=KEY)
    assert (response.status_code, response.json) == (201, {"order": 1})


# FastAPI


async def in_fastapi_although_lost(number: int) -> Response:
    """The response of a worker that loses its lease while it commits."""
    here()[0].lost = number > 0
    return JSONResponse({"order": number}, 201)


def test_fastapi_a_stale_worker_whose_response_is_not_committed_gets_409(shop: Shop) -> None:
    """L-03: its response is discarded."""
    (response,) = anyio.run(fastapi_responses, shop, [b""], in_fastapi_although_lost)
    assert (response.status_code, shop.orders) == (409, 0)


async def in_fastapi(number: int) -> Response:
    """A JSON response with two headers of one name."""
    response = JSONResponse({"order": number}, 201)
    response.headers.append("X-Part", "one")
    response.headers.append("X-Part", "two")
    return response


async def fastapi_responses(
    shop: Shop, bodies: list[bytes], respond: Callable[[int], Any] = in_fastapi, **fields: Any
) -> list[Any]:
    """The responses to these bodies with one key; the record is lost after each."""
    engine = create_async_engine(shop.url.replace("sqlite:", "sqlite+aiosqlite:"))
    app = FastAPI()

    async def view(request):
        async with AsyncSession(engine) as session, session.begin(), idem.atomic(session) as block:
            result = await session.execute(text("INSERT INTO orders DEFAULT VALUES RETURNING number"))
            return block.respond(await respond(result.scalar_one()))

    # Annotations are strings here, and FastAPI looks for their names in the module.
    view.__annotations__ = {"request": Request}
    app.post("/")(view)
    app.add_middleware(IdempotencyMiddleware, backend=shop.backend, **fields)
    responses = []
    try:
        async with AsyncClient(transport=ASGITransport(app), base_url="http://shop") as client:
            for body in bodies:
                responses.append(await client.post("/", content=body, headers=KEY))
                shop.lose()
    finally:
        await engine.dispose()
    return responses


def test_fastapi_replays_although_the_record_was_lost(shop: Shop) -> None:
    """S-06, R-01: with SQLAlchemy's async session."""
    first, again = anyio.run(fastapi_responses, shop, [b"", b""])
    assert (first.status_code, again.status_code, first.content) == (201, 201, again.content)
    assert again.headers.get_list("x-part") == ["one", "two"]
    assert (REPLAYED in first.headers, again.headers[REPLAYED]) == (False, "true")
    assert shop.orders == 1


def test_fastapi_refuses_another_body_although_the_record_was_lost(shop: Shop) -> None:
    """S-06, O-05: the fingerprint is in the ledger."""
    responses = anyio.run(fastapi_responses, shop, [b"one", b"other", b"one"])
    assert [response.status_code for response in responses] == [201, 422, 201]
    assert shop.orders == 1


def test_a_stream_of_starlettes_rolls_back(shop: Shop) -> None:
    """Bad input: a stream is no whole response."""

    async def stream(number: int) -> Response:
        return StreamingResponse(iter([b"part"]))

    with pytest.raises(TypeError, match="StreamingResponse"):
        anyio.run(fastapi_responses, shop, [b""], stream)
    assert shop.orders == 0


# The block itself, without a framework


def attempt_in(shop: Shop, client: Client, status: int = 201, **fields: Any) -> Any:
    """One attempt that inserts an order; yields the block."""
    with client.request(**fields), Session(shop.engine) as session, session.begin(), idem.atomic(session) as block:
        block.respond(PlainTextResponse(f"order {place(session)}", status))
    return block


def test_entering_raises_if_an_earlier_attempt_has_responded(shop: Shop) -> None:
    """S-06: the state of its record does not matter."""
    client = Client()
    assert attempt_in(shop, client).kept
    client.forget()
    with pytest.raises(AlreadyCommitted):
        attempt_in(shop, client)
    assert shop.orders == 1


def test_a_key_of_another_request_is_refused_on_entering(shop: Shop) -> None:
    """S-06: the ledger has another fingerprint for it."""
    client = Client()
    with client.request(body=b"one") as first:
        pass
    assert first.lease is not None
    client.engine.backend.delete(first.lease.record_id)
    attempt_in(shop, client, body=b"one")
    client.engine.backend.delete(first.lease.record_id)
    with pytest.raises(KeyReused):
        attempt_in(shop, client, body=b"other")
    assert shop.orders == 1


def test_a_response_that_is_not_kept_is_reported(shop: Shop) -> None:
    """S-06: the caller can roll back, as a retry runs again."""
    client = Client()
    assert attempt_in(shop, client, 503).kept is False
    assert attempt_in(shop, client, 201).kept is True
    assert attempt_in(shop, client, 201, key=b"").kept is None


def test_a_superseded_attempt_does_not_enter(shop: Shop) -> None:
    """S-05, L-03: no row of the stale worker commits."""
    client = Client()
    with client.request() as stale:
        pass
    attempt_in(shop, client)
    with client.bound(stale), Session(shop.engine) as session, pytest.raises(LeaseLost), idem.atomic(session):
        raise AssertionError("not reached")
    assert shop.orders == 1


def test_an_attempt_that_lost_its_lease_in_the_block_cannot_leave_it(shop: Shop) -> None:
    """S-06, S-07: the heartbeat has noticed the loss; the rows are rolled back."""
    client = Client()

    def lose_it() -> None:
        with client.request() as attempt, Session(shop.engine) as session, idem.atomic(session) as block:
            block.respond(PlainTextResponse(f"order {place(session)}"))
            attempt.lost = True

    with pytest.raises(LeaseLost):
        lose_it()
    assert shop.orders == 0


def test_a_rollback_takes_the_response_away(shop: Shop) -> None:
    """S-06: the next attempt runs."""
    client = Client()
    with client.request(), Session(shop.engine) as session:
        with idem.atomic(session) as block:
            block.respond(PlainTextResponse(f"order {place(session)}"))
        session.rollback()
    attempt_in(shop, client)
    assert shop.orders == 1


def test_a_blocking_session_does_not_fit_an_awaited_block(shop: Shop) -> None:
    """S-08."""

    async def use() -> None:
        with Session(shop.engine) as session:
            async with idem.atomic(session):
                raise AssertionError("not reached")

    with Client().request(), pytest.raises(SyncAsyncMismatch, match="with"):
        anyio.run(use)


def test_what_is_no_transaction_is_refused(shop: Shop) -> None:
    """Bad input."""
    with Client().request(), pytest.raises(ConfigurationError, match="takes a SQLAlchemy"), idem.atomic(shop):
        raise AssertionError("not reached")


def test_a_response_of_the_core_is_returned_as_it_is() -> None:
    """S-06: for a WSGI or ASGI application without a framework."""
    response = CoreResponse(201, [(b"a", b"b")], b"body")
    assert response_of(response) is response
