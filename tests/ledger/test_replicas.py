"""SQLAlchemy sessions with several databases: the ledger is in the database that the session writes to (S-05, S-06)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.sql import Delete, Update

from open_idempotency import AlreadyCommitted, ConfigurationError, idem
from open_idempotency._core.models import Response
from tests.ledger.databases import Database
from tests.unit.stages.stage_client import Client

RESPONSE = Response(201, [], b"placed")


class Base(DeclarativeBase):
    """The declarative base of this module."""


class Order(Base):
    """A row of the application."""

    __tablename__ = "orders"
    name: Mapped[str] = mapped_column(primary_key=True)


class Engines:
    """A leader with all tables, and a replica that rejects every statement except the application's."""

    def __init__(self, folder: Path) -> None:
        self.leader = Database(f"sqlite:///{folder}/leader.db")
        self.leader.make_tables()
        self.replica = Database(f"sqlite:///{folder}/replica.db")
        self.replica.make_tables(ledger=False)
        self._made: list[Any] = []

    def blocking(self) -> dict[bool, sqlalchemy.Engine]:
        """Sync engines, by whether they are the leader."""
        made = {is_leader: sqlalchemy.create_engine(where.url) for is_leader, where in self._both()}
        self._made += made.values()
        return made

    def driven_by_aiosqlite(self) -> dict[bool, sqlalchemy.Engine]:
        """The same for async sessions, whose binds are the sync side of async engines."""
        urls = {is_leader: where.url.replace("sqlite:", "sqlite+aiosqlite:") for is_leader, where in self._both()}
        from sqlalchemy.ext.asyncio import create_async_engine

        return {
            is_leader: create_async_engine(url, poolclass=sqlalchemy.NullPool).sync_engine
            for is_leader, url in urls.items()
        }

    def _both(self) -> tuple[tuple[bool, Database], tuple[bool, Database]]:
        return (True, self.leader), (False, self.replica)

    def close(self) -> None:
        """Dispose of the sync engines."""
        for engine in self._made:
            engine.dispose()


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Engines]:
    """A leader and a replica."""
    made = Engines(tmp_path)
    yield made
    made.close()


def routing(engines: dict[bool, sqlalchemy.Engine]) -> type[Session]:
    """A session that reads from the replica, as in SQLAlchemy's manual."""

    class Routing(Session):
        def get_bind(self, mapper: Any = None, clause: Any = None) -> Any:
            return engines[self._flushing or isinstance(clause, Update | Delete)]

    return Routing


def place(session: Session, tx: Any = None) -> bool:
    """Insert one order in one stage; whether the stage was found."""
    with idem.stage("order", tx=tx or session) as stage:
        was_there = stage.done
        if not was_there:
            session.add(Order(name="tea"))
    return was_there


def test_a_stage_commits_where_the_session_writes(client: Client, engines: Engines) -> None:
    """S-05: not on the replica, to which a textual statement is routed."""
    session_class = routing(engines.blocking())
    found = []
    for _ in range(2):
        with client.request(), session_class() as session, session.begin():
            assert session.scalars(sqlalchemy.select(Order)).all() == []  # in the replica, which lags
            found.append(place(session))
    assert found == [False, True]
    assert (engines.leader.orders(), engines.replica.orders()) == (1, 0)


def test_a_rollback_takes_the_stage_away_there(client: Client, engines: Engines) -> None:
    """S-05: rows and stage are in one transaction."""
    session_class = routing(engines.blocking())
    with client.request(), session_class() as session:
        place(session)
        session.flush()
        session.rollback()
    with client.request(), session_class() as session, session.begin():
        assert place(session) is False
    assert engines.leader.orders() == 1


def test_a_response_commits_where_the_session_writes(client: Client, engines: Engines) -> None:
    """S-06."""
    session_class = routing(engines.blocking())

    def once() -> None:
        with session_class() as session, session.begin(), idem.atomic(session) as block:
            session.add(Order(name="tea"))
            block.respond(RESPONSE)

    with client.request():
        once()
    client.forget()
    with client.request(), pytest.raises(AlreadyCommitted):
        once()
    assert (engines.leader.orders(), engines.replica.orders()) == (1, 0)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_awaited_a_stage_commits_where_the_session_writes(client: Client, engines: Engines) -> None:
    """S-05."""
    session_class, found = routing(engines.driven_by_aiosqlite()), []

    async def place_awaited(session: AsyncSession) -> None:
        async with idem.stage("order", tx=session) as stage:
            found.append(stage.done)
            if not stage.done:
                session.add(Order(name="tea"))

    for _ in range(2):
        with client.request():
            async with AsyncSession(sync_session_class=session_class) as session, session.begin():
                await place_awaited(session)
    assert found == [False, True]
    assert (engines.leader.orders(), engines.replica.orders()) == (1, 0)


def test_a_session_with_databases_only_for_models_is_refused_with_the_cure(client: Client, engines: Engines) -> None:
    """Bad input: the session cannot say which database has the ledger."""
    reported = pytest.raises(ConfigurationError, match=r"session\.connection\(bind_arguments")
    with Session(binds={Order: engines.blocking()[True]}) as session, client.request(), reported:
        place(session)


def test_the_connection_of_a_model_is_a_transaction(client: Client, engines: Engines) -> None:
    """S-05: the remedy of that error message; rows and stage are in one transaction."""
    engine, found = engines.blocking()[True], []
    for _ in range(2):
        with Session(binds={Order: engine}) as session, session.begin(), client.request():
            found.append(place(session, session.connection(bind_arguments={"mapper": Order})))
    assert found == [False, True]
    assert engines.leader.orders() == 1
