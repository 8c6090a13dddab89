"""A view that responds and forgets to commit: its response is not recorded, since its rows do not exist."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest
import sqlalchemy
from flask import Flask, g
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from open_idempotency import idem
from open_idempotency._core.models import Response
from open_idempotency._core.settlement import Fate, finish
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.flask import Idempotency
from tests.ledger.databases import INSERT, Database
from tests.unit.stages.stage_client import Client

KEY = "8e03978e-40d5-43e8-bc93-6894a57f9324"
PLACED, REFUSED = Response(201, [], b"placed"), Response(400, [], b"refused")
ORDER = sqlalchemy.text(INSERT)


@pytest.fixture
def on_sqlite(tmp_path: Any) -> Database:
    """An application's database."""
    database = Database(f"sqlite:///{tmp_path}/orders.db")
    database.make_tables()
    return database


@contextmanager
def _engine(database: Database) -> Iterator[sqlalchemy.Engine]:
    engine = sqlalchemy.create_engine(database.url)
    try:
        yield engine
    finally:
        engine.dispose()


def _as_a_stage(session: Any) -> None:
    with idem.stage("order", tx=session):
        session.execute(ORDER)


def _as_a_response(session: Any) -> None:
    with idem.atomic(session) as block:
        session.execute(ORDER)
        block.respond(PLACED)


FORMS = pytest.mark.parametrize("form", [_as_a_stage, _as_a_response])


def _verdict(client: Client, view: Callable[[], Response]) -> Fate | Response:
    """The fate of a view's response."""
    with client.request() as attempt:
        response = view()
        return client.engine.sync.run(finish(attempt, response))


def _is_reported(verdict: Fate | Response) -> bool:
    return isinstance(verdict, Response) and verdict.status == 500 and b"not-committed" in (verdict.body or b"")


@FORMS
def test_a_session_that_is_closed_without_a_commit_is_reported(client: Client, form: Any, on_sqlite: Database) -> None:
    """S-05: rows and response commit together or not at all."""
    with _engine(on_sqlite) as engine:

        def view() -> Response:
            with Session(engine) as session:
                form(session)
            return PLACED

        assert _is_reported(_verdict(client, view))
    assert on_sqlite.orders() == 0


@FORMS
def test_a_session_that_is_still_open_is_reported(client: Client, form: Any, on_sqlite: Database) -> None:
    """S-05: the process may die before a later commit."""
    with _engine(on_sqlite) as engine, Session(engine) as session:

        def view() -> Response:
            form(session)
            return PLACED

        assert _is_reported(_verdict(client, view))


def test_a_scoped_session_is_watched_too(client: Client, on_sqlite: Database) -> None:
    """S-05."""
    with _engine(on_sqlite) as engine:
        session = scoped_session(sessionmaker(engine))

        def view() -> Response:
            _as_a_stage(session)
            session.remove()
            return PLACED

        assert _is_reported(_verdict(client, view))


def test_an_awaited_session_is_watched_too(client: Client, on_sqlite: Database) -> None:
    """S-05."""

    async def view(commits: bool) -> Response:
        engine = create_async_engine(on_sqlite.url.replace("sqlite:", "sqlite+aiosqlite:"))
        async with AsyncSession(engine) as session, idem.stage("order", tx=session):
            await session.execute(ORDER)
        async with AsyncSession(engine) as session:
            async with idem.stage("receipt", tx=session):
                await session.execute(ORDER)
            if commits:
                await session.commit()
        await engine.dispose()
        return PLACED

    assert _is_reported(_verdict(client, lambda: anyio.run(view, True)))


def test_a_connection_that_is_still_in_its_transaction_is_reported(client: Client, on_sqlite: Database) -> None:
    """S-05."""
    with _engine(on_sqlite) as engine, engine.connect() as connection:

        def view() -> Response:
            _as_a_stage(connection)
            return PLACED

        assert _is_reported(_verdict(client, view))


def test_a_plain_connection_to_sqlite_that_is_still_in_its_transaction_is_reported(
    client: Client, on_sqlite: Database
) -> None:
    """S-05."""
    connection = sqlite3.connect(on_sqlite.path)

    def view() -> Response:
        with idem.stage("order", tx=connection):
            connection.execute(INSERT)
        return PLACED

    assert _is_reported(_verdict(client, view))
    connection.close()


def test_a_savepoint_is_no_commit(client: Client, on_sqlite: Database) -> None:
    """S-05: releasing a savepoint commits nothing."""
    with _engine(on_sqlite) as engine:

        def view() -> Response:
            with Session(engine) as session, session.begin_nested():
                _as_a_stage(session)
            return PLACED

        assert _is_reported(_verdict(client, view))


@FORMS
def test_a_commit_is_enough(client: Client, form: Any, on_sqlite: Database) -> None:
    """S-05: even if the session reads afterwards."""
    with _engine(on_sqlite) as engine, Session(engine) as session:

        def view() -> Response:
            form(session)
            session.commit()
            session.execute(sqlalchemy.text("SELECT count(*) FROM orders"))
            return PLACED

        assert _verdict(client, view) is Fate.KEPT
    assert on_sqlite.orders() == 1


def test_one_session_of_many_requests_is_watched_anew_each_time(client: Client, on_sqlite: Database) -> None:
    """S-05: the commit of an earlier request does not count for this one."""
    with _engine(on_sqlite) as engine, Session(engine) as session:

        def view(commits: bool) -> Response:
            _as_a_stage(session)
            if commits:
                session.commit()
            return PLACED

        assert _verdict(client, lambda: view(True)) is Fate.KEPT
        with client.request(key=b"another-key-0123") as attempt:
            assert _is_reported(client.engine.sync.run(finish(attempt, view(False))))


def test_a_block_that_rolls_back_may_respond(client: Client, on_sqlite: Database) -> None:
    """S-05: rows and stage are discarded on purpose."""
    with _engine(on_sqlite) as engine, Session(engine) as session:

        def view() -> Response:
            _as_a_stage(session)
            session.rollback()
            return PLACED

        assert _verdict(client, view) is Fate.KEPT


def test_a_refusal_may_leave_its_rows_behind(client: Client, on_sqlite: Database) -> None:
    """S-05: a view that raises closes its session without a commit, which is right."""
    with _engine(on_sqlite) as engine:

        def view() -> Response:
            with Session(engine) as session:
                _as_a_stage(session)
            return REFUSED

        assert _verdict(client, view) is Fate.KEPT
    assert on_sqlite.orders() == 0


def test_a_client_whose_view_commits_too_late_gets_the_response_with_its_retry(
    on_sqlite: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """S-06: from the ledger, which has it by then; the problem is logged."""
    backend = MemoryBackend()
    app = Flask(__name__)
    Idempotency(app, backend=backend)

    with _engine(on_sqlite) as engine:

        @app.post("/orders")
        def place() -> Any:
            g.session = Session(engine)
            with idem.atomic(g.session) as block:
                g.session.execute(ORDER)
                return block.respond(app.make_response(("placed", 201)))

        @app.teardown_request
        def commit(error: BaseException | None) -> None:
            session: Session | None = g.pop("session", None)
            if session is not None:
                session.commit()
                session.close()

        with caplog.at_level(logging.ERROR, "open_idempotency"):
            first, second, third = [
                app.test_client().post("/orders", headers={"Idempotency-Key": KEY}) for _ in range(3)
            ]
    assert (first.status_code, second.status_code, third.status_code) == (500, 201, 201)
    assert "commit before the view returns" in caplog.text
    assert on_sqlite.orders() == 1
