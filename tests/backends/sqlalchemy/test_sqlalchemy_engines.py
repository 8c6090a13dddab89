"""URLs and engines for the SQLAlchemy backend: which settings are used, and which errors wrong ones raise."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, event
from sqlalchemy.ext.asyncio import create_async_engine

from open_idempotency import open_backend
from open_idempotency.backend import Busy, Claim, Leased
from open_idempotency.backends.sqlalchemy import AsyncSqlalchemyBackend, SqlalchemyBackend, metadata
from open_idempotency.cli import main
from open_idempotency.exceptions import BackendUnavailable, ConfigurationError, MissingExtra
from tests.backends.sql_databases import make_tables, postgres_url
from tests.postgres_server import PostgresServer

SECRET = "s3cr3t-pa%2Fss"
FORKS = Path(__file__).parents[1] / "scripts" / "fork_script.py"


def claim_of(record_id: bytes | None = None) -> Claim:
    """A claim of a new record."""
    return Claim(record_id or secrets.token_bytes(32), b"fingerprint", os.urandom(16), 30.0, 600.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A SQLite file with the tables."""
    path = tmp_path / "records.db"
    make_tables(f"sqlite:///{path}")
    return path


def test_a_url_names_the_backend(path: Path) -> None:
    """The backend's options are taken out of the URL, the others are the driver's."""
    backend = open_backend(f"sqlalchemy+sqlite:///{path}?timeout=3&max_connections=2&detect_types=0")
    assert type(backend) is SqlalchemyBackend
    options = backend.options
    assert (options.timeout, options.max_connections, dict(options.url.query)) == (3.0, 2, {"detect_types": "0"})
    assert options.timeout < backend.call_timeout < 30


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlalchemy+sqlite:///x.db?timeout=0", "timeout: must be more than 0"),
        ("sqlalchemy+sqlite:///x.db?timeout=1&timeout=2", "timeout is given twice"),
        ("sqlalchemy+sqlite:///x.db?max_connections=none", "max_connections: expected a whole number"),
        ("sqlalchemy+sqlite://", "memory://"),
        ("sqlalchemy+sqlite:///:memory:", "memory://"),
        ("sqlalchemy+sqlite:///file:x?mode=memory&uri=true", "memory://"),
        ("sqlalchemy+sqlite:///missing/folder/x.db", "does not exist"),
        ("sqlalchemy+nothing://localhost", "SQLAlchemy knows no nothing://"),
        ("sqlalchemy+postgresql+nothing://localhost", "SQLAlchemy knows no postgresql"),
        ("sqlalchemy+postgresql+psycopg://localhost:port/x", "malformed"),
        ("sqlalchemy+://localhost", "malformed"),
    ],
)
def test_a_wrong_url_is_explained(url: str, message: str) -> None:
    """At start; the error names the option."""
    with pytest.raises(ConfigurationError, match=message):
        open_backend(url)


def test_another_database_is_refused_at_start() -> None:
    """Its locking has not been tested."""
    with pytest.raises((ConfigurationError, MissingExtra)):
        open_backend("sqlalchemy+oracle://localhost")


def test_a_missing_driver_is_named() -> None:
    """At start, with the pip command; SQLAlchemy alone would fail at the first request."""
    code = (
        "import sys; sys.modules['pymysql'] = None\n"
        "from open_idempotency import open_backend\n"
        "from open_idempotency.exceptions import MissingExtra\n"
        "try: open_backend('sqlalchemy+mysql+pymysql://localhost/x')\n"
        "except MissingExtra as error: print(error)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "pip install pymysql" in ended.stdout


@pytest.mark.parametrize("wrong", [None, 3, object()])
def test_what_is_no_engine_is_refused(wrong: Any) -> None:
    """The error names the type."""
    with pytest.raises(ConfigurationError, match="an engine of SQLAlchemy's"):
        SqlalchemyBackend(wrong)


@pytest.mark.parametrize(
    "url",
    [
        f"sqlalchemy+postgresql+psycopg://user:{SECRET}@127.0.0.1:1/x?timeout=1",
        f"sqlalchemy+mysql+pymysql://user:{SECRET}@127.0.0.1:1/x?timeout=1",
        f"sqlalchemy+postgresql+psycopg://user:{SECRET}@127.0.0.1:port/x",
        f"sqlalchemy+postgresql+psycopg://user:{SECRET}@127.0.0.1/x?timeout=abc",
        f"sqlalchemy+nothing://user:{SECRET}@127.0.0.1/x",
    ],
)
def test_credentials_are_never_repeated(url: str) -> None:
    """Neither in errors and their causes nor in reprs."""
    try:
        backend = open_backend(url)
        reported: list[Any] = [backend, backend.to_async(), backend.options]
        with pytest.raises(BackendUnavailable) as caught:
            backend.claim(claim_of())
        reported += [caught.value, caught.value.__cause__]
    except ConfigurationError as error:
        reported = [error]
    for value in reported:
        assert SECRET not in repr(value) + str(value)
        assert "pa/ss" not in repr(value) + str(value)


def test_constructing_opens_nothing(tmp_path: Path) -> None:
    """B-11: a preloading server has no connection to inherit."""
    open_backend(f"sqlalchemy+sqlite:///{tmp_path / 'x.db'}")
    assert list(tmp_path.iterdir()) == []


def test_an_engine_lends_its_way_to_connect_and_none_of_its_connections(path: Path) -> None:
    """I6: its listeners see the backend's connections; handlers that hold all of its own block no call."""
    engine = create_engine(f"sqlite:///{path}", pool_size=1, max_overflow=0, pool_timeout=0.01)
    connected: list[object] = []
    event.listen(engine, "connect", lambda connection, _: connected.append(connection))
    backend = SqlalchemyBackend(engine)
    with engine.connect():
        assert isinstance(backend.claim(claim_of()), Leased)
    assert len(connected) == 2
    backend.close()
    engine.dispose()


def test_an_asynchronous_engine_serves_several_loops_and_threads(path: Path) -> None:
    """B-11: each loop has its own connections, and so has the heartbeat's thread."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    backend = AsyncSqlalchemyBackend(engine, timeout=10)
    record = claim_of()

    async def on_a_loop() -> object:
        result = await backend.claim(claim_of(record.record_id))
        await backend.close()
        return type(result)

    assert asyncio.run(on_a_loop()) is Leased
    assert asyncio.run(on_a_loop()) is Busy
    assert isinstance(backend.to_sync().claim(claim_of(record.record_id)), Busy)
    backend.to_sync().close()


@pytest.mark.anyio
@pytest.mark.parametrize("driver", ["sqlite", "sqlite+aiosqlite"])
async def test_every_driver_works_on_every_loop(driver: str, path: Path) -> None:
    """B-11: on asyncio and on trio; a driver without support for the loop runs in a thread."""
    backend = AsyncSqlalchemyBackend(f"sqlalchemy+{driver}:///{path}", timeout=10)
    claim = claim_of()
    assert isinstance(await backend.claim(claim), Leased)
    assert isinstance(await backend.claim(claim_of(claim.record_id)), Busy)
    assert [record.record_id async for record in backend.scan()] == [claim.record_id]
    await backend.close()


def test_sync_and_async_lead_to_each_other(path: Path) -> None:
    """In either order of creation."""
    awaited = AsyncSqlalchemyBackend(f"sqlalchemy+sqlite+aiosqlite:///{path}")
    assert awaited.to_sync().to_async() is awaited
    assert awaited.call_timeout == awaited.to_sync().call_timeout


@pytest.mark.parametrize("driver", ["sqlite", "sqlite+aiosqlite"])
def test_operators_have_the_same_commands(driver: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """B-09: ``migrate`` makes the tables once, ``purge`` empties them."""
    url = f"sqlalchemy+{driver}:///{tmp_path / 'new.db'}"
    assert main(["migrate", url]) == 0
    assert main(["migrate", url]) == 0
    assert main(["purge", url]) == 0
    first, second, third = capsys.readouterr().out.splitlines()
    assert all(name in first for name in metadata.tables)
    assert (second, third) == ("nothing to apply", "deleted 0")


def test_no_other_backends_tables_are_touched() -> None:
    """One database may hold the ledger and the tables of the SQLite backend too."""
    assert all(name.startswith("open_idempotency_sqlalchemy_") for name in metadata.tables)


def _fork(scenario: str, url: str) -> None:
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", str(FORKS), scenario, url]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork on Windows")
@pytest.mark.parametrize("scenario", ["after_use", "while_locked"])
def test_sqlite_goes_on_in_both_processes_after_a_fork(scenario: str, path: Path) -> None:
    """B-11: an inherited connection is never used, and no lock of SQLite is inherited."""
    _fork(scenario, f"sqlalchemy+sqlite:///{path}?timeout=20")


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork on Windows")
def test_a_server_goes_on_with_both_processes_after_a_fork(postgres18: PostgresServer) -> None:
    """B-11: an inherited connection is never used."""
    url = postgres_url(postgres18)
    make_tables(url)
    _fork("after_use", f"sqlalchemy+{url}?timeout=20")


FILES_IN_CHILD = """
import os, sys
from open_idempotency.backend import Claim
from open_idempotency.backends.sqlalchemy import SqlalchemyBackend

def open_files():
    names = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return [name for name in names if os.path.lexists(name) and sys.argv[1] in os.readlink(name)]

backend = SqlalchemyBackend("sqlalchemy+sqlite:///" + sys.argv[1])
for record_id in (b"one", b"two"):
    backend.claim(Claim(record_id, b"fingerprint", b"owner", 30.0, 600.0))
    assert open_files()
    child = os.fork()
    if child == 0:
        os._exit(len(open_files()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
backend.close()
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are listed on Linux only")
def test_a_fork_closes_sqlites_files(path: Path) -> None:
    """B-11: POSIX locks do not survive a fork, so no file handle may be inherited."""
    command = [sys.executable, "-W", "error", "-c", FILES_IN_CHILD, str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
