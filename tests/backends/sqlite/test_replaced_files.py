"""The SQLite file while workers use it: removed or replaced, and its permissions (B-18)."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from open_idempotency.backend import Backend, Busy, Complete, Completed, Get, Leased
from open_idempotency.backends.django_orm import DjangoBackend
from open_idempotency.backends.sqlalchemy import SqlalchemyBackend
from open_idempotency.backends.sqlite import SqliteBackend
from open_idempotency.conformance.support import claim_of
from open_idempotency.exceptions import BackendUnavailable
from tests.backends import sql_databases
from tests.backends.django_orm import on_django

Make = Callable[[], Backend]


def _sqlite(path: str) -> Iterator[Make]:
    yield lambda: SqliteBackend(path, synchronous="normal", timeout=20)


def _sqlalchemy(path: str) -> Iterator[Make]:
    sql_databases.make_tables(f"sqlite:///{path}")
    yield lambda: SqlalchemyBackend(f"sqlalchemy+sqlite:///{path}")


def _aiosqlite(path: str) -> Iterator[Make]:
    sql_databases.make_tables(f"sqlite:///{path}")
    yield lambda: SqlalchemyBackend(f"sqlalchemy+sqlite+aiosqlite:///{path}")


def _django(path: str) -> Iterator[Make]:
    with on_django.aliased(on_django.sqlite(Path(path).parent)) as alias:
        yield lambda: DjangoBackend(alias)


KINDS = {"sqlite": _sqlite, "sqlalchemy": _sqlalchemy, "aiosqlite": _aiosqlite, "django": _django}


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "records.db")


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest, path: str) -> Iterator[Make]:
    """Makes a backend on the file at ``path``, with empty tables, as another worker does."""
    yield from KINDS[request.param](path)


def remove(path: str) -> None:
    for each in (path, f"{path}-wal", f"{path}-shm", f"{path}-journal"):
        if os.path.exists(each):
            os.unlink(each)


def replace(path: str, empty: str) -> None:
    """Replace the database in use with an empty one."""
    remove(path)
    os.rename(empty, path)


@pytest.fixture
def empty(make: Make, path: str, tmp_path: Path) -> str:
    """A copy of the database without records."""
    with closing(make()) as backend:
        backend.get(Get(bytes(32)))
    copy = str(tmp_path / "empty.db")
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    return copy


def test_workers_meet_on_the_file_that_took_the_place_of_theirs(make: Make, path: str, empty: str) -> None:
    """B-18: of a worker with connections to the old file and a new worker, one claim succeeds."""
    with closing(make()) as old:
        assert isinstance(old.claim(claim_of(os.urandom(32))), Leased)
        replace(path, empty)
        with closing(make()) as new:
            for first, second in ((old, new), (new, old)):
                record_id = os.urandom(32)
                assert isinstance(first.claim(claim_of(record_id)), Leased)
                assert isinstance(second.claim(claim_of(record_id)), Busy)


def test_the_owner_of_a_record_in_the_old_file_records_in_the_new_one(make: Make, path: str, empty: str) -> None:
    """B-08a, B-18: the next worker finds what the owner has acknowledged."""
    with closing(make()) as old, closing(make()) as new:
        leased = old.claim(claim_of(os.urandom(32)))
        assert isinstance(leased, Leased)
        replace(path, empty)
        assert old.complete(Complete(leased.lease, b"response")) == Completed(recreated=True)
        record = new.get(Get(leased.lease.record_id))
        assert record is not None
        assert record.response == b"response"


def test_async_callers_meet_on_the_new_file_too(make: Make, path: str, empty: str) -> None:
    """B-18: event loops have other connections than threads."""

    async def claims() -> None:
        old, new = make().to_async(), make().to_async()
        assert isinstance(await old.claim(claim_of(os.urandom(32))), Leased)
        replace(path, empty)
        record_id = os.urandom(32)
        assert isinstance(await old.claim(claim_of(record_id)), Leased)
        assert isinstance(await new.claim(claim_of(record_id)), Busy)
        remove(path)
        with pytest.raises(BackendUnavailable, match="was removed while this process used it"):
            await old.claim(claim_of(record_id))
        await old.close()
        await new.close()

    anyio.run(claims)


def test_a_file_that_is_gone_refuses_claims_until_there_is_one_again(make: Make, path: str, empty: str) -> None:
    """B-18, I8: the message names the file and the remedy. No worker creates a new file silently."""
    with closing(make()) as backend:
        assert isinstance(backend.claim(claim_of(os.urandom(32))), Leased)
        remove(path)
        for _ in range(2):
            with pytest.raises(BackendUnavailable, match=rf"{path} was removed .* put the file back, or restart"):
                backend.claim(claim_of(os.urandom(32)))
            assert not os.path.exists(path)
        os.rename(empty, path)
        assert isinstance(backend.claim(claim_of(os.urandom(32))), Leased)


def test_the_log_of_the_new_file_survives_the_end_of_the_old_connections(make: Make, path: str, empty: str) -> None:
    """B-18: SQLite deletes a log by its name; closing the old file must not delete the new one's log."""
    with closing(make()) as old, closing(make()) as new:
        assert isinstance(old.claim(claim_of(os.urandom(32))), Leased)
        replace(path, empty)
        record_id = os.urandom(32)
        assert isinstance(new.claim(claim_of(record_id)), Leased)
        assert isinstance(old.claim(claim_of(record_id)), Busy)
        old.close()
        assert isinstance(new.claim(claim_of(record_id)), Busy)
    with closing(make()) as later:
        assert isinstance(later.claim(claim_of(record_id)), Busy)


@pytest.mark.parametrize("url", ["sqlite:///{path}", "sqlalchemy+sqlite:///{path}"])
def test_a_new_file_can_be_read_by_its_owner_alone(path: str, url: str) -> None:
    """B-18: with its log and its index, under any umask, as it contains responses."""
    script = (
        "import os, sys; os.umask(0)\n"
        "from open_idempotency import open_backend\n"
        "from open_idempotency.conformance.support import claim_of\n"
        "backend = open_backend(sys.argv[1]); backend.migrate(); backend.claim(claim_of(bytes(32)))\n"
        "print({name: oct(os.stat(name).st_mode & 0o777) for name in sorted(os.listdir('.'))})"
    )
    folder = os.path.dirname(path)
    done = subprocess.run(
        [sys.executable, "-c", script, url.format(path=path)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    modes = eval(done.stdout)
    assert set(modes.values()) == {"0o600"}
    assert ("records.db-wal" in modes) is url.startswith("sqlite:")


def test_permissions_of_a_file_that_is_there_stay(path: str, tmp_path: Path) -> None:
    """B-18: an operator may have let a group read it."""
    Path(path).touch(0o640)
    os.chmod(path, 0o640)
    with closing(SqliteBackend(path)) as backend:
        backend.claim(claim_of(bytes(32)))
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o640
    shutil.rmtree(tmp_path)


def test_a_folder_that_takes_no_file_is_named(tmp_path: Path) -> None:
    """B-10, B-18: the message has the path and the system's reason."""
    folder = tmp_path / "records"
    folder.mkdir()
    backend = SqliteBackend(str(folder / "records.db"))
    folder.rmdir()
    with pytest.raises(BackendUnavailable, match=r"records\.db cannot be created: .*No such file"):
        backend.claim(claim_of(bytes(32)))
