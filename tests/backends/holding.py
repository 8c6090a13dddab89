"""Delays claims in each kind of backend, for the contract's test of tokens."""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any

import pytest
import redis
import sqlalchemy
from django.db import connections
from psycopg.conninfo import conninfo_to_dict

from open_idempotency.backend import Backend, Get
from open_idempotency.backends.django_orm import DjangoBackend
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.backends.postgres import PostgresBackend
from open_idempotency.backends.redis import RedisBackend
from open_idempotency.backends.sqlalchemy import SqlalchemyBackend
from open_idempotency.backends.sqlite import SqliteBackend
from open_idempotency.conformance.late_claims import Held, Holding
from tests.faults.proxy import FaultProxy

#: seconds; an upper bound
PATIENCE = 20.0

Hold = Callable[[bytes], AbstractContextManager[Holding]]


class _Shown(Holding):
    """``now`` reads the clock; ``waits`` says whether a claim is delayed, if the backend shows that."""

    def __init__(self, now: Callable[[], float], waits: Callable[[], bool] = lambda: True) -> None:
        self._now = now
        self._waits = waits

    def now(self) -> float:
        """See ``Holding``."""
        return self._now()

    def wait_for_a_claim(self) -> None:
        """Poll until a claim is delayed."""
        deadline = time.monotonic() + PATIENCE
        while not self._waits():
            assert time.monotonic() < deadline, "no claim was held up"
            time.sleep(0.01)


@contextmanager
def held(made: Backend, mode: str) -> Iterator[Held]:
    """A backend like ``made`` on its own clock, in this mode, and a function that delays its claims."""
    with _LIKE[next(kind for kind in _LIKE if isinstance(made, kind))](made) as (backend, hold):
        # The memory backend awaits nothing, so delaying its claim would block the loop.
        blocking = mode == "sync" or isinstance(backend, MemoryBackend)
        yield Held(backend if blocking else backend.to_async(), hold)
        backend.close()


@contextmanager
def _memory(made: MemoryBackend) -> Iterator[tuple[Backend, Hold]]:
    backend = MemoryBackend()

    @contextmanager
    def hold(record_id: bytes) -> Iterator[Holding]:
        with backend._table.lock:
            yield _Shown(time.time)

    yield backend, hold


def _file_held(path: str) -> Hold:
    @contextmanager
    def hold(record_id: bytes) -> Iterator[Holding]:
        with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield _Shown(time.time)
            finally:
                connection.execute("ROLLBACK")

    return hold


@contextmanager
def _sqlite(made: SqliteBackend) -> Iterator[tuple[Backend, Hold]]:
    path = made._path
    coalesce = made._transactions.coalesce
    backend = SqliteBackend(path, synchronous="normal", coalesce=coalesce, timeout=PATIENCE)
    made.get(Get(bytes(32)))  # makes the tables
    yield backend, _file_held(path)


@contextmanager
def _redis(made: RedisBackend) -> Iterator[tuple[Backend, Hold]]:
    if made.options.topology != "single":
        pytest.skip("a proxy stands before one server; the scripts are the same")
    _, port = made.options.addresses[0]
    with FaultProxy(port) as proxy, closing(redis.Redis(port=port)) as direct:
        through = f"redis://127.0.0.1:{proxy.port}"
        prefix = f"held:{secrets.token_hex(8)}:"
        backend = RedisBackend(through, prefix=prefix, timeout=PATIENCE, coalesce=made.options.coalesce)

        def now() -> float:
            seconds, microseconds = direct.time()
            return float(seconds) + microseconds / 1e6

        @contextmanager
        def hold(record_id: bytes) -> Iterator[Holding]:
            proxy.pause()
            try:
                yield _Shown(now, proxy.held_back.is_set)
            finally:
                proxy.resume()

        yield backend, hold


# A placeholder for the record; its transaction is never committed.
_ROW: dict[str, Any] = {
    "record_version": 1, "fingerprint": b"held", "status": 1, "owner": b"held", "token": 1, "attempt": 1,
    "claimed_at": 0.0, "lease_end": 0.0, "ttl": 0.0, "expires_at": 0.0, "final": 0,
}  # fmt: skip


def _row_held(engine: sqlalchemy.Engine, table: str, **more: Any) -> Hold:
    """Delay claims with a transaction that has inserted the record's row, and rolls back."""
    on_postgres = engine.dialect.name == "postgresql"
    clock = "extract(epoch FROM clock_timestamp())" if on_postgres else "UNIX_TIMESTAMP(NOW(6))"
    # Long enough to show in the time of a lease.
    pause = "SELECT 1 FROM pg_sleep(0.05)" if on_postgres else "SELECT SLEEP(0.05)"
    waiting = "pg_locks WHERE NOT granted" if on_postgres else "information_schema.processlist WHERE command = 'Query'"

    def ask(statement: str) -> float:
        with engine.connect() as connection:
            return float(connection.exec_driver_sql(statement).scalar_one())

    def waits() -> bool:
        # On MySQL this check is a query too.
        held_up = ask(f"SELECT count(*) FROM {waiting}") > (0 if on_postgres else 1)
        ask(pause)
        return held_up

    @contextmanager
    def hold(record_id: bytes) -> Iterator[Holding]:
        values = {"record_id": record_id, **_ROW, **more}
        columns = ", ".join(values)
        statement = f"INSERT INTO {table} ({columns}) VALUES ({', '.join(['%s'] * len(values))})"
        with engine.connect() as connection:
            connection.exec_driver_sql(statement, tuple(values.values()))
            try:
                yield _Shown(lambda: ask(f"SELECT {clock}"), waits)
            finally:
                connection.rollback()

    return hold


@contextmanager
def _engine(url: str | sqlalchemy.URL) -> Iterator[sqlalchemy.Engine]:
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    yield engine
    engine.dispose()


@contextmanager
def _postgres(made: PostgresBackend) -> Iterator[tuple[Backend, Hold]]:
    words = conninfo_to_dict(made.options.conninfo)
    place = f"//{words['user']}@{words['host']}:{words['port']}/{words['dbname']}"
    backend = type(made)(f"postgresql:{place}", timeout=PATIENCE, coalesce=made.options.coalesce)
    with _engine(f"postgresql+psycopg:{place}") as engine:
        yield backend, _row_held(engine, "open_idempotency.records", final=False, awaited=False)


@contextmanager
def _sqlalchemy(made: SqlalchemyBackend) -> Iterator[tuple[Backend, Hold]]:
    url = made.options.url
    if url.get_backend_name() == "sqlite":
        backend = SqlalchemyBackend(f"sqlalchemy+{url.render_as_string(hide_password=False)}", timeout=PATIENCE)
        yield backend, _file_held(str(url.database))
        return
    backend = SqlalchemyBackend(f"sqlalchemy+{url.render_as_string(hide_password=False)}", timeout=PATIENCE)
    driver = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql", "mariadb": "mysql+pymysql"}
    with _engine(url.set(drivername=driver[url.get_backend_name()])) as engine:
        yield backend, _row_held(engine, "open_idempotency_sqlalchemy_records")


@contextmanager
def _django(made: DjangoBackend) -> Iterator[tuple[Backend, Hold]]:
    settings = connections[made.alias].settings_dict
    backend = DjangoBackend(made.alias, timeout=PATIENCE)
    kind = settings["ENGINE"].rpartition(".")[2]
    if kind == "sqlite3":
        yield backend, _file_held(str(settings["NAME"]))
        return
    driver = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}[kind]
    host, port = settings["HOST"], int(settings["PORT"])
    url = sqlalchemy.URL.create(driver, settings["USER"], settings["PASSWORD"] or None, host, port, settings["NAME"])
    with _engine(url) as engine:
        final = False if kind == "postgresql" else 0
        yield backend, _row_held(engine, "open_idempotency_django_records", final=final)


_LIKE: dict[type[Backend], Any] = {
    MemoryBackend: _memory,
    SqliteBackend: _sqlite,
    RedisBackend: _redis,
    PostgresBackend: _postgres,
    SqlalchemyBackend: _sqlalchemy,
    DjangoBackend: _django,
}
