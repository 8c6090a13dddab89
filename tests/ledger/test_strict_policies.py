"""A policy that refuses retries asks the ledger first, so that a committed response is not lost (S-06b)."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import anyio
import psycopg
import pytest
import sqlalchemy
from asgiref.sync import sync_to_async
from django.db import connections
from flask import Flask
from httpx import ASGITransport, AsyncClient
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from open_idempotency import ConfigurationError, IdempotencyPolicy, idem
from open_idempotency._core.admission import Intake, admit
from open_idempotency._core.models import Body
from open_idempotency._core.models import Response as CoreResponse
from open_idempotency._engine.engine import new_owner
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.flask import Idempotency, idempotent
from open_idempotency.starlette import IdempotencyMiddleware
from tests.ledger.databases import INSERT, Database, django_alias
from tests.unit.builders import Clock, Listener, body_of, request_of
from tests.unit.stages.stage_client import KEY, Client

LEASE = 30.0
PLACED = CoreResponse(201, [(b"x-order", b"1")], b"placed")
STRICT = [{"on_abandoned": "reject"}, {"max_attempts": 1}]
SENT = {"Idempotency-Key": KEY.decode()}


class Site:
    """A client with records in memory, a manual clock, and a worker that dies after its COMMIT."""

    def __init__(self, database: Database, **policy: Any) -> None:
        self.database = database
        self.clock = Clock()
        self.seen = Listener()
        self.client = Client(backend=MemoryBackend(clock=self.clock), lease=LEASE, on_event=self.seen, **policy)

    def die_after_the_commit(self, body: bytes = b"{}") -> None:
        """Commit an order and its response to the ledger; record nothing."""
        intake = Intake(request_of(), [(b"idempotency-key", KEY)], new_owner(), lambda: None, lambda: body_of(body))
        attempt = self.client.engine.sync.run(admit(intake, self.client.engine.policy))
        assert not isinstance(attempt, CoreResponse)
        connection = contextlib.closing(sqlite3.connect(self.database.path))
        with self.client.bound(attempt), connection as tx, tx, idem.atomic(tx) as block:
            tx.execute(INSERT)
            block.respond(PLACED)
        self.clock.now += LEASE + 1

    async def again(self) -> CoreResponse:
        """The response of an async adapter to a retry."""

        async def identify() -> None:
            return None

        async def receive() -> Body:
            return body_of(b"{}")

        intake = Intake(request_of(), [(b"idempotency-key", KEY)], new_owner(), identify, receive)
        response = await self.client.engine.aio.run(admit(intake, self.client.engine.policy))
        assert isinstance(response, CoreResponse)
        return response


@pytest.fixture
def database(new_database: Callable[[str], Database]) -> Database:
    """A SQLite database in a file."""
    made = new_database("sqlite")
    made.make_tables()
    return made


def is_marked(response: CoreResponse) -> bool:
    """Whether it is the committed response, marked as a replay."""
    return (response.status, response.body) == (201, b"placed") and (
        b"idempotent-replayed",
        b"true",
    ) in response.headers


# What ledger= takes


@contextmanager
def by_an_engine(database: Database) -> Iterator[Any]:
    """``ledger=`` with a SQLAlchemy engine."""
    engine = sqlalchemy.create_engine(database.url)
    yield engine.begin
    engine.dispose()


@contextmanager
def by_a_sessionmaker(database: Database) -> Iterator[Any]:
    """``ledger=`` with a SQLAlchemy sessionmaker."""
    engine = sqlalchemy.create_engine(database.url)
    yield sessionmaker(engine).begin
    engine.dispose()


@contextmanager
def by_a_connection(database: Database) -> Iterator[Any]:
    """``ledger=`` with a function that returns a ``sqlite3`` connection."""
    yield lambda: contextlib.closing(sqlite3.connect(database.path))


OPENED = [by_an_engine, by_a_sessionmaker, by_a_connection, django_alias]


@pytest.mark.parametrize("policy", STRICT)
@pytest.mark.parametrize("opened", OPENED)
def test_a_retry_after_a_worker_died_gets_what_that_committed(database: Database, opened: Any, policy: Any) -> None:
    """S-06b: every retry gets it rather than 409, although no attempt completed the record."""
    with opened(database) as ledger:
        site = Site(database, ledger=ledger, **policy)
        site.die_after_the_commit()
        assert all(is_marked(site.client.again()) for _ in range(2))
    assert database.orders() == 1


@pytest.mark.parametrize("library", ["asyncio", "trio"])
@pytest.mark.parametrize("policy", STRICT)
@pytest.mark.parametrize("opened", OPENED[:-1])
def test_on_an_event_loop_a_blocking_ledger_is_asked_in_a_thread(
    database: Database, opened: Any, policy: Any, library: str
) -> None:
    """S-06b."""
    with opened(database) as ledger:
        site = Site(database, ledger=ledger, **policy)
        site.die_after_the_commit()
        assert is_marked(anyio.run(site.again, backend=library))


def test_on_an_event_loop_django_is_asked_in_its_own_thread(database: Database) -> None:
    """S-06b: in Django's thread, which closes the connection at the end of the request."""

    async def again() -> CoreResponse:
        response = await site.again()
        await sync_to_async(lambda: connections[alias].close())()
        return response

    with django_alias(database) as alias:
        site = Site(database, ledger=alias, on_abandoned="reject")
        site.die_after_the_commit()
        assert is_marked(anyio.run(again))


@asynccontextmanager
async def awaited(database: Database) -> AsyncIterator[Any]:
    """``ledger=`` with an async engine."""
    engine = create_async_engine(database.url.replace("sqlite:", "sqlite+aiosqlite:"))
    yield engine.begin
    await engine.dispose()


def test_an_awaited_ledger_is_awaited(database: Database) -> None:
    """S-06b: a sync adapter refuses an async ledger."""
    ledgers = []
    site = Site(database, ledger=lambda: ledgers[-1](), on_abandoned="reject")
    site.die_after_the_commit()

    async def again() -> CoreResponse:
        async with awaited(database) as ledger:
            ledgers.append(ledger)
            return await site.again()

    assert is_marked(anyio.run(again))
    with pytest.raises(ConfigurationError, match="async transaction"):
        site.client.again()


def test_a_server_is_asked_through_psycopg(new_database: Callable[[str], Database]) -> None:
    """S-06b: on PostgreSQL."""
    database = new_database("postgresql")
    database.make_tables()
    clock = Clock()
    connect = partial(psycopg.connect, database.url)
    client = Client(backend=MemoryBackend(clock=clock), on_abandoned="reject", ledger=connect)
    intake = Intake(request_of(), [(b"idempotency-key", KEY)], new_owner(), lambda: None, lambda: body_of(b"{}"))
    attempt = client.engine.sync.run(admit(intake, client.engine.policy))
    assert not isinstance(attempt, CoreResponse)
    with client.bound(attempt), psycopg.connect(database.url) as tx, idem.atomic(tx) as block:
        block.respond(PLACED)
    clock.now += LEASE + 1
    assert is_marked(client.again())


# What it does not give


def is_refused(response: CoreResponse) -> bool:
    """Whether it is the 409 of the policy."""
    return response.status == 409 and b"outcome-unknown" in (response.body or b"")


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM open_idempotency_ledger",
        "UPDATE open_idempotency_ledger SET response = NULL",
        "UPDATE open_idempotency_ledger SET expires_at = 1",
        "UPDATE open_idempotency_ledger SET fingerprint = x'00'",
    ],
    ids=["without a row", "without a response", "expired", "of another request"],
)
def test_where_the_ledger_has_no_response_the_retry_is_refused(database: Database, change: str) -> None:
    """S-06b, O-09."""
    with by_an_engine(database) as ledger:
        site = Site(database, ledger=ledger, on_abandoned="reject")
        site.die_after_the_commit()
        database.query(change)
        assert is_refused(site.client.again())


def test_without_a_ledger_the_retry_is_refused(database: Database) -> None:
    """O-09: without ``ledger=`` there is nothing to ask."""
    site = Site(database, on_abandoned="reject")
    site.die_after_the_commit()
    assert is_refused(site.client.again())


def test_a_ledger_that_cannot_be_asked_refuses_nothing_for_good(database: Database) -> None:
    """S-06b: 503, and the next retry asks again."""
    with by_an_engine(database) as ledger:
        down = [ConnectionError("the database is away")]

        def opened() -> Any:
            if down:
                raise down.pop()
            return ledger()

        site = Site(database, ledger=opened, on_abandoned="reject")
        site.die_after_the_commit()
        first = site.client.again()
        assert (first.status, b'"retryable": true' in (first.body or b"")) == (503, True)
        assert is_marked(site.client.again())


def test_a_ledger_that_opens_no_transaction_is_reported(database: Database) -> None:
    """Bad input."""
    site = Site(database, ledger=object, on_abandoned="reject")
    site.die_after_the_commit()
    with pytest.raises(ConfigurationError, match=r"ledger: it returned object.*engine\.begin"):
        site.client.again()


def test_an_unknown_alias_is_reported(database: Database) -> None:
    """Bad input."""
    site = Site(database, ledger="elsewhere", on_abandoned="reject")
    site.die_after_the_commit()
    with pytest.raises(ConfigurationError, match="ledger: DATABASES has no 'elsewhere'"):
        site.client.again()


def test_a_lenient_policy_asks_nothing(database: Database) -> None:
    """S-06: its retry runs, and the view's atomic block asks the ledger."""

    def never() -> Any:
        raise AssertionError("not reached")

    site = Site(database, ledger=never)
    assert not IdempotencyPolicy().refuses_retries
    site.die_after_the_commit()
    with site.client.request() as attempt:
        assert attempt.lease is not None
        assert attempt.lease.attempt == 2


# On the way to a client


POLICIES = pytest.mark.parametrize(
    "policy", [{"on_failed": "reject"}, {"on_failed": "replay"}, {"max_attempts": 1}, {}], ids=str
)


@POLICIES
def test_flask_a_view_that_fails_behind_its_commit_leaves_the_response(database: Database, policy: Any) -> None:
    """S-06b: its client gets a 500; a retry gets the committed response under any policy."""
    engine = sqlalchemy.create_engine(database.url)
    app = Flask("shop")
    Idempotency(app, MemoryBackend())

    @app.post("/")
    @idempotent(**policy)
    def place() -> Any:
        with Session(engine) as session, session.begin(), idem.atomic(session) as block:
            session.execute(sqlalchemy.text(INSERT))
            block.respond(app.make_response(("placed", 201)))
        raise ZeroDivisionError

    responses = [app.test_client().post("/", headers=SENT) for _ in range(3)]
    assert [response.status_code for response in responses] == [500, 201, 201]
    assert responses[1].data == b"placed"
    assert database.orders() == 1
    engine.dispose()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@POLICIES
async def test_starlette_a_view_that_fails_behind_its_commit_leaves_the_response(
    database: Database, policy: Any
) -> None:
    """S-06b: for a sync endpoint and a coroutine."""
    engine = sqlalchemy.create_engine(database.url)

    def place(request: Any) -> Response:
        with Session(engine) as session, session.begin(), idem.atomic(session) as block:
            session.execute(sqlalchemy.text(INSERT))
            block.respond(PlainTextResponse("placed", 201))
        return PlainTextResponse("away", 503)

    async def place_awaited(request: Any) -> Response:
        async with awaited(database) as begin, begin() as connection, idem.atomic(connection) as block:
            await connection.execute(sqlalchemy.text(INSERT))
            block.respond(PlainTextResponse("placed", 201))
        return PlainTextResponse("away", 503)

    routes = [Route("/", place, methods=["POST"]), Route("/awaited", place_awaited, methods=["POST"])]
    app = IdempotencyMiddleware(Starlette(routes=routes), MemoryBackend(), scope_by_route=True, **policy)
    async with AsyncClient(transport=ASGITransport(app), base_url="http://shop") as client:
        for path in ("/", "/awaited"):
            responses = [await client.post(path, headers=SENT) for _ in range(3)]
            assert [response.status_code for response in responses] == [503, 201, 201]
            assert responses[1].text == "placed"
    assert database.orders() == 2
    engine.dispose()
