"""A response is recorded if its rows were committed, also by the connection, and refused if they were not (S-05)."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import Connection, Engine, event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from open_idempotency import idem
from open_idempotency._core.models import Response
from open_idempotency._core.settlement import Fate, finish
from tests.ledger.databases import INSERT, Database
from tests.unit.stages.stage_client import Client

PLACED = Response(201, [(b"content-type", b"text/plain")], b"placed")
ORDER = sqlalchemy.text(INSERT)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, new_database: Callable[[str], Database]) -> Database:
    """SQLite and PostgreSQL, whose savepoints differ."""
    made = new_database(request.param)
    made.make_tables()
    return made


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    """A SQLAlchemy engine."""
    made = sqlalchemy.create_engine(database.url.replace("postgresql:", "postgresql+psycopg:"))
    yield made
    made.dispose()


@asynccontextmanager
async def awaited_engine(database: Database) -> AsyncIterator[AsyncEngine]:
    """An async SQLAlchemy engine."""
    drivers = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}
    scheme, _, rest = database.url.partition(":")
    made = create_async_engine(f"{drivers[scheme]}:{rest}")
    try:
        yield made
    finally:
        await made.dispose()


def as_a_stage(tx: Any, run: Any = None) -> None:
    """Insert an order in a stage."""
    with idem.stage("order", tx=tx):
        (run or tx).execute(ORDER)


def as_a_response(tx: Any, run: Any = None) -> None:
    """Insert an order and respond, in an atomic block."""
    with idem.atomic(tx) as block:
        (run or tx).execute(ORDER)
        block.respond(PLACED)


FORMS = pytest.mark.parametrize("form", [as_a_stage, as_a_response])


def verdict(client: Client, view: Callable[[], object], response: Response = PLACED) -> Fate | Response:
    """The fate of the response that a view returns."""
    with client.request() as attempt:
        view()
        return client.engine.sync.run(finish(attempt, response))


def is_refused(found: Fate | Response) -> bool:
    """Whether it is a 500 ``not-committed``."""
    return isinstance(found, Response) and found.status == 500 and b"not-committed" in (found.body or b"")


# What a connection commits


@contextmanager
def in_one_line(engine: Engine) -> Iterator[Session]:
    """The connection owns the transaction; the session has none to commit."""
    with engine.begin() as connection, Session(bind=connection) as session:
        yield session


@contextmanager
def in_a_block_of_its_own(engine: Engine) -> Iterator[Session]:
    """A transaction that the connection begins, with savepoints in it."""
    with engine.connect() as connection:
        transaction = connection.begin()
        with Session(bind=connection, join_transaction_mode="create_savepoint") as session:
            yield session
            session.commit()
        transaction.commit()


@FORMS
@pytest.mark.parametrize("opened", [in_one_line, in_a_block_of_its_own])
def test_what_the_connection_of_a_session_commits_counts(
    client: Client, form: Any, opened: Any, engine: Engine, database: Database
) -> None:
    """S-05: the owner of the transaction commits it."""

    def view() -> None:
        with opened(engine) as session:
            form(session)

    assert verdict(client, view) is Fate.KEPT
    assert database.orders() == 1


@FORMS
def test_what_a_sessionmaker_commits_counts(client: Client, form: Any, engine: Engine, database: Database) -> None:
    """S-05."""

    def view() -> None:
        with sessionmaker(engine).begin() as session:
            form(session)

    assert verdict(client, view) is Fate.KEPT
    assert database.orders() == 1


@FORMS
@pytest.mark.parametrize("mode", ["create_savepoint", "rollback_only"])
def test_a_transaction_that_a_test_holds_open_around_a_session_does_not_count(
    client: Client, form: Any, mode: Any, engine: Engine
) -> None:
    """S-05: the session has committed, although the test suite rolls back the outer transaction at the end."""
    with engine.connect() as connection, connection.begin():
        session = Session(bind=connection, join_transaction_mode=mode)

        def view() -> None:
            form(session)
            session.commit()

        assert verdict(client, view) is Fate.KEPT
        session.close()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_awaited_what_the_connection_of_a_session_commits_counts(client: Client, database: Database) -> None:
    """S-05."""
    async with awaited_engine(database) as engine:
        with client.request() as attempt:
            async with engine.begin() as connection, AsyncSession(bind=connection) as session:
                async with idem.stage("reserve", tx=session):
                    await session.execute(ORDER)
                async with idem.atomic(session) as block:
                    await session.execute(ORDER)
                    block.respond(PLACED)
            assert await client.engine.aio.run(finish(attempt, PLACED)) is Fate.KEPT
    assert await asyncio.to_thread(database.orders) == 2


# What is rolled back


def by_the_session(engine: Engine) -> None:
    """``rollback()`` of the session."""
    with Session(engine) as session:
        as_a_response(session)
        session.rollback()


def by_a_savepoint(engine: Engine) -> None:
    """Rollback of a savepoint around the block; the transaction commits."""
    with Session(engine) as session, session.begin():
        session.execute(sqlalchemy.text("DELETE FROM orders"))
        savepoint = session.begin_nested()
        as_a_response(session)
        savepoint.rollback()


def by_an_outer_savepoint(engine: Engine) -> None:
    """Rollback of a savepoint around a released one."""
    with Session(engine) as session, session.begin():
        session.execute(sqlalchemy.text("DELETE FROM orders"))
        with contextlib.suppress(ZeroDivisionError), session.begin_nested():
            with session.begin_nested():
                as_a_response(session)
            raise ZeroDivisionError


def by_closing(engine: Engine) -> None:
    """``close()`` of the session, which rolls back silently."""
    with Session(engine) as session:
        as_a_response(session)


def by_invalidating(engine: Engine) -> None:
    """``invalidate()``, as after a timeout."""
    session = Session(engine)
    as_a_response(session)
    session.invalidate()


def by_the_connection(engine: Engine) -> None:
    """Rollback of the connection, which a committed session does not notice."""
    with engine.connect() as connection:
        transaction = connection.begin()
        with Session(bind=connection, join_transaction_mode="create_savepoint") as session:
            as_a_response(session)
            session.commit()
        transaction.rollback()


def by_the_connection_alone(engine: Engine) -> None:
    """Rollback of a connection without a session."""
    with engine.connect() as connection:
        transaction = connection.begin()
        as_a_response(connection)
        transaction.rollback()


def by_closing_the_connection(engine: Engine) -> None:
    """``close()`` of a connection without a session, which rolls back silently."""
    with engine.connect() as connection:
        as_a_response(connection)


def by_a_savepoint_of_the_connection(engine: Engine) -> None:
    """Rollback of a connection's savepoint; the transaction commits."""
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("DELETE FROM orders"))
        savepoint = connection.begin_nested()
        as_a_response(connection)
        savepoint.rollback()


def by_a_second_session(engine: Engine) -> None:
    """The first session commits; the second one, which has the response, does not."""
    with Session(engine) as first:
        with idem.stage("order", tx=first):
            pass
        first.commit()
    by_the_session(engine)


def _fail(connection: Connection) -> None:
    raise ConnectionError


def by_a_commit_that_fails(engine: Engine) -> None:
    """A COMMIT fails, and the view ignores the error."""
    with Session(engine) as session:
        as_a_response(session)
        dialect: Any = engine.dialect
        dialect.do_commit, kept = _fail, dialect.do_commit
        try:
            session.commit()
        except ConnectionError:
            pass
        finally:
            dialect.do_commit = kept
        session.rollback()


WAYS = [
    by_the_session, by_a_savepoint, by_an_outer_savepoint, by_closing, by_invalidating, by_the_connection,
    by_the_connection_alone, by_closing_the_connection, by_a_savepoint_of_the_connection, by_a_second_session,
    by_a_commit_that_fails,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_response_whose_rows_were_rolled_back_is_not_recorded(
    client: Client, way: Callable[[Engine], None], engine: Engine, database: Database
) -> None:
    """S-05: otherwise the client would get a success without rows. A retry runs."""
    if database.url.startswith("sqlite"):
        _begin_as_documented(engine)
    assert is_refused(verdict(client, lambda: way(engine)))
    assert database.orders() == 0
    with client.request():
        pass


def _begin_as_documented(engine: Engine) -> None:
    """SQLite's driver does not begin at a savepoint; this is the remedy of SQLAlchemy's documentation."""

    @event.listens_for(engine, "connect")
    def connected(connection: Any, record: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")


@pytest.mark.parametrize(
    "response",
    [
        Response(201, [*PLACED.headers, (b"x-request", b"1")], b"placed"),
        Response(201, [(b"content-encoding", b"gzip")], b"\x1f\x8b"),
        Response(201, [], None),
    ],
    ids=["with more headers", "encoded", "too long to be kept"],
)
def test_a_response_is_known_again_behind_other_middleware(client: Client, engine: Engine, response: Response) -> None:
    """S-05: other middleware may change its headers and its encoding."""
    assert is_refused(verdict(client, lambda: by_the_session(engine), response))


@pytest.mark.parametrize(
    "response", [Response(200, [], b"placed"), Response(201, [], b"another"), Response(404, [], b"placed")]
)
def test_another_response_after_a_rollback_counts(client: Client, engine: Engine, response: Response) -> None:
    """S-05: at its COMMIT a view may find the order placed by another request, and respond with that."""
    assert verdict(client, lambda: by_the_session(engine), response) is Fate.KEPT


def test_a_savepoint_within_a_block_may_be_rolled_back(client: Client, engine: Engine, database: Database) -> None:
    """S-05: and another one after it."""

    def view() -> None:
        with Session(engine) as session, session.begin():
            with idem.atomic(session) as block:
                session.execute(ORDER)
                session.begin_nested().rollback()
                block.respond(PLACED)
            session.begin_nested().rollback()
            session.begin_nested().commit()

    assert verdict(client, view) is Fate.KEPT
    assert database.orders() == 1


def test_nothing_of_a_connection_is_kept_when_it_is_gone(client: Client, engine: Engine) -> None:
    """S-05: the listeners of a transaction do not outlive its connection."""
    import gc

    from open_idempotency.ledger import on_sqlalchemy

    for _ in range(3):
        with client.request(), engine.connect() as connection:
            as_a_response(connection)
        del connection
    gc.collect()
    assert not [one for one in on_sqlalchemy._watched_on if one.engine is engine]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("way", ["rollback", "savepoint", "close"])
async def test_awaited_a_response_whose_rows_were_rolled_back_is_not_recorded(
    client: Client, database: Database, way: str
) -> None:
    """S-05."""
    async with awaited_engine(database) as engine:
        with client.request() as attempt:
            async with AsyncSession(engine) as session:
                await session.execute(ORDER)
                await session.execute(sqlalchemy.text("DELETE FROM orders"))
                savepoint = await session.begin_nested()
                async with idem.atomic(session) as block:
                    await session.execute(ORDER)
                    block.respond(PLACED)
                if way == "rollback":
                    await session.rollback()
                elif way == "savepoint":
                    await savepoint.rollback()
                    await session.commit()
            assert is_refused(await client.engine.aio.run(finish(attempt, PLACED)))
    assert await asyncio.to_thread(database.orders) == 0


# Other libraries


@pytest.fixture
def on_sqlite(new_database: Callable[[str], Database]) -> Database:
    """A SQLite database in a file."""
    made = new_database("sqlite")
    made.make_tables()
    return made


@pytest.mark.parametrize("closes", [True, False])
def test_sqlite3_is_asked_for_what_its_connection_does_not_report(
    client: Client, on_sqlite: Database, closes: bool
) -> None:
    """S-05: a rollback is not recorded; a commit is."""

    opened = contextlib.ExitStack()

    def view(end: str) -> None:
        connection = opened.enter_context(contextlib.closing(sqlite3.connect(on_sqlite.path)))
        with idem.atomic(connection) as block:
            connection.execute(INSERT)
            block.respond(PLACED)
        getattr(connection, end)()
        if closes:
            connection.close()

    assert is_refused(verdict(client, lambda: view("rollback")))
    assert verdict(client, lambda: view("commit")) is Fate.KEPT
    assert on_sqlite.orders() == 1
    opened.close()


def test_a_database_in_memory_reports_nothing(client: Client) -> None:
    """S-05: no other connection can read it, so the view's response is recorded."""
    from open_idempotency import ledger

    connection = sqlite3.connect(":memory:")
    connection.executescript(ledger.schema("sqlite"))

    def view() -> None:
        with connection, idem.atomic(connection) as block:
            block.respond(PLACED)

    assert verdict(client, view) is Fate.KEPT
    connection.close()
