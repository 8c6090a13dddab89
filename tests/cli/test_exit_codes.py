"""The exit codes of ``open-idempotency``, on which scripts depend."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from open_idempotency import open_backend
from open_idempotency.backend import Backend, Get
from open_idempotency.cli import main
from tests.cli.running import Shell
from tests.operations.stores import Maker
from tests.postgres_server import PostgresServer
from tests.servers import Server

SECONDS = 60
DEAD = {
    "redis": "redis://127.0.0.1:1",
    "sentinel": "redis+sentinel://127.0.0.1:1/mymaster",
    "cluster": "redis+cluster://127.0.0.1:1",
    "postgresql": "postgresql://user@127.0.0.1:1/shop",
    "sqlalchemy": "sqlalchemy+postgresql+psycopg://user@127.0.0.1:1/shop",
}
WRONG = {
    "no URL": "records.db",
    "unknown scheme": "nosuch://host",
    "unknown option": "redis://127.0.0.1:1?nosuch=1",
    "no directory": "sqlite:///nosuch/records.db",
    "records of another process": "memory://",
}
EXTRAS = {"redis": "redis://h", "psycopg": "postgresql://u@h/d", "sqlalchemy": "sqlalchemy+sqlite:///x.db"}


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("command", ["migrate", "purge"])
@pytest.mark.parametrize("url", DEAD.values(), ids=DEAD)
def test_a_dead_server_is_7(command: str, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """O-34: also for Redis, which needs no migration."""
    assert main([command, url]) == 7
    out, err = capsys.readouterr()
    assert out == ""
    assert "refused" in err or "no connection in time" in err  # PostgreSQL's pool retries until its timeout


@pytest.mark.parametrize("command", ["migrate", "purge"])
@pytest.mark.parametrize("url", WRONG.values(), ids=WRONG)
def test_a_wrong_url_is_1(command: str, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """O-34: the message says what is wrong with the URL."""
    assert main([command, url]) == 1
    assert capsys.readouterr().err.startswith("open-idempotency: backend: ")


@pytest.mark.parametrize("scheme", ["sqlite", "sqlalchemy+sqlite"])
def test_purging_creates_no_database(scheme: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """O-34: a mistyped path is an error; no empty database is created."""
    assert main(["purge", f"{scheme}:///typo.db"]) == 1
    assert f"no database file {tmp_path}/typo.db" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_missing_table_is_7_and_the_command_that_makes_it_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """O-34: the file exists and has no tables."""
    Path("empty.db").touch()
    assert main(["purge", "sqlalchemy+sqlite:///empty.db"]) == 7
    assert "open-idempotency migrate" in capsys.readouterr().err


@pytest.mark.parametrize("scheme", ["sqlite", "sqlalchemy+sqlite"])
def test_what_is_done_is_0(scheme: str, capsys: pytest.CaptureFixture[str]) -> None:
    """O-34: the migration creates the database and reports that once."""
    url = f"{scheme}:///records.db"
    assert [main(["migrate", url]), main(["migrate", url]), main(["purge", url])] == [0, 0, 0]
    made, again, purged = capsys.readouterr().out.splitlines()
    assert made.startswith("applied ")
    assert (again, purged) == ("nothing to apply", "deleted 0")


def test_a_server_that_responds_is_0(valkey_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """O-34: Redis needs no migration, and the command says so."""
    assert main(["migrate", valkey_url]) == 0
    assert capsys.readouterr().out == "nothing to apply\n"


@pytest.mark.parametrize("dialect", ["postgresql", "mysql", "mariadb", "sqlite"])
def test_the_script_of_the_ledger_is_0(dialect: str, capsys: pytest.CaptureFixture[str]) -> None:
    """O-34: standard output has only SQL."""
    assert main(["ledger", dialect]) == 0
    assert capsys.readouterr().out.count("CREATE TABLE") >= 2


WRONG_USAGE: dict[str, list[str]] = {
    "no backend": ["stats"],
    "two backends": ["stats", "sqlite:///a.db", "--backend", "sqlite:///b.db"],
    "no module": ["stats", "--app", "shop"],
}


@pytest.mark.parametrize("arguments", WRONG_USAGE.values(), ids=WRONG_USAGE)
def test_options_that_do_not_fit_are_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """P-19: no call is made."""
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("open-idempotency: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["list", "--older", "soon"],
        ["list", "--limit", "0"],
        ["list", "--state", "odd"],
        ["resolve", "abcd", "--stage", "charge"],
        ["resolve", "abcd", "--stage", "charge", "--found", "1", "--not-done"],
        ["resolve", "abcd", "--stage", "charge", "--found", "ch_1"],
        ["resolve", "abcd", "--found", "1"],
        ["show"],
        ["purge", "--batch", "0"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_are_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """P-19: the message names the argument."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("code", ["", "0", "3"])
def test_an_application_that_ends_while_it_is_imported_is_1(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """P-19: the exit code of the application's script could be mistaken for success."""
    name = f"ending_script_{code}"
    (tmp_path / f"{name}.py").write_text(f"import sys\nsys.exit({code})\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["forget", "a-key", "--app", f"{name}:app", "--yes"]) == 1
    assert f"--app: {name}:app: it cannot be imported: SystemExit" in capsys.readouterr().err


def test_an_application_that_cannot_be_imported_is_1(capsys: pytest.CaptureFixture[str]) -> None:
    """P-19: also an object that is no application."""
    assert main(["stats", "--app", "nosuch_module:app"]) == 1
    assert main(["stats", "--app", "json:dumps"]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert "--app: nosuch_module:app: it cannot be imported" in first
    assert "--app: json:dumps: " in second
    assert "IdempotencyPolicy" in second


def test_an_unknown_record_is_3(shell: Shell) -> None:
    """P-19: for each command that takes a record."""
    for command in (["show"], ["forget", "--yes"], ["release", "--yes"], ["resolve", "--stage", "s", "--not-done"]):
        done = shell(*command, "0123abcd")
        assert (done.code, done.out) == (3, "")
        assert "no record begins with 0123abcd" in done.err


def test_several_records_are_4_and_named(shell: Shell, maker: Maker) -> None:
    """P-19: a prefix of several record ids is refused."""
    for last in (b"\x01", b"\x02"):
        maker.lease(record_id=b"\xcd" * 31 + last)
    done = shell("release", "cdcdcdcd", "--yes")
    assert done.code == 4
    assert "several records begin with cdcdcdcd" in done.err


def test_a_live_record_is_5(shell: Shell, maker: Maker) -> None:
    """P-19: ``forget`` and ``resolve`` refuse it without asking."""
    record = maker.alive().record_id.hex()
    assert shell("forget", record).code == 5
    assert shell("resolve", record, "--stage", "charge", "--not-done", "--yes").code == 5
    assert shell("forget", record, "--force", "--yes").code == 0


def test_a_state_that_does_not_allow_it_is_6(shell: Shell, maker: Maker) -> None:
    """P-19: the record does not change."""
    record = maker.completed().record_id.hex()
    assert shell("release", record, "--yes").code == 6
    assert shell("resolve", record, "--stage", "charge", "--not-done", "--yes").code == 6
    failed = maker.failed().record_id.hex()
    assert shell("resolve", failed, "--stage", "reserve", "--not-done", "--yes").code == 6


@pytest.mark.parametrize("command", ["list", "stats", "doctor", "show 0123abcd", "forget 0123abcd --yes"])
@pytest.mark.parametrize("url", DEAD.values(), ids=DEAD)
def test_a_store_that_is_down_is_7(command: str, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """P-19: for each command; standard output is empty."""
    name, *more = command.split()
    assert main([name, "--backend", url, *more]) == 7
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("open-idempotency: ")


def test_a_user_without_permission_on_redis_is_8(capsys: pytest.CaptureFixture[str]) -> None:
    """P-19: a wrong password, and a command that the user may not run."""
    server = Server("valkey", "--requirepass", "open sesame").start()
    try:
        assert main(["list", server.url]) == 8
        with server.connect() as client:
            client.execute_command("ACL", "SETUSER", "reader", "on", ">pw", "~*", "+ping", "+time")
        assert main(["list", server.url.replace("redis://", "redis://reader:pw@")]) == 8
    finally:
        server.stop()


def test_a_user_without_permission_on_postgresql_is_8(
    postgres18: PostgresServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """P-19: the tables exist, and this user has no rights to them."""
    url = postgres18.create_database("denied")
    with open_backend(url) as backend:
        backend.migrate()
    with postgres18.connect() as connection:
        connection.execute("DROP ROLE IF EXISTS stranger")
        connection.execute("CREATE ROLE stranger LOGIN")
        connection.commit()
    try:
        assert main(["list", url.replace("postgres@", "stranger@")]) == 8
        assert "InsufficientPrivilege" in capsys.readouterr().err
    finally:
        with postgres18.connect() as connection:
            connection.execute("DROP ROLE stranger")
            connection.commit()


def test_a_record_of_a_newer_version_is_9(shell: Shell, maker: Maker, tmp_path: Path) -> None:
    """P-19: it is neither shown nor changed."""
    record_id = maker.alive().record_id
    connection = sqlite3.connect(tmp_path / "records.db")
    with connection:
        connection.execute("UPDATE open_idempotency_records SET record_version = 99")
    connection.close()
    for command in ("show", "release", "forget"):
        done = shell(command, record_id.hex(), *(["--yes"] if command != "show" else []))
        assert done.code == 9
        assert "unknown version 99" in done.err
    listed = shell("list")
    assert (listed.code, listed.out) == (0, "no records\n")
    assert "1 records could not be read" in listed.err


def test_nobody_to_ask_is_10_and_nothing_is_done(shell: Shell, maker: Maker, backend: Backend) -> None:
    """P-19, P-21: without a terminal; the message names --yes."""
    lease = maker.in_doubt()
    before = backend.get(Get(lease.record_id))
    for command in (["release"], ["forget"], ["resolve", "--stage", "charge", "--not-done"]):
        done = shell(*command, lease.record_id.hex())
        assert (done.code, done.out) == (10, "")
        assert "--yes" in done.err
    assert backend.get(Get(lease.record_id)) == before


def test_problems_that_the_doctor_finds_are_11(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    """P-19: warnings count with --strict."""
    assert shell("doctor").code == 0
    Path("bare.db").touch()
    assert main(["doctor", "sqlalchemy+sqlite:///bare.db"]) == 11
    assert "open-idempotency migrate" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["nosuch"], ["purge", "a", "b"], ["ledger", "oracle"]], ids=str)
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    """O-34."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


@pytest.mark.parametrize("library", EXTRAS)
def test_a_missing_extra_is_1_and_is_named(library: str) -> None:
    """O-34: in a process that cannot import the client library."""
    done = _run(EXTRAS[library], f"sys.modules[{library!r}] = None")
    assert done.returncode == 1
    assert "pip install 'open-idempotency[" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("settings", ["", "nosuch.settings"], ids=["no settings", "settings that do not exist"])
def test_django_without_settings_is_1(settings: str) -> None:
    """O-34: outside a project; the message names the variable."""
    done = _run("django://default", f"os.environ['DJANGO_SETTINGS_MODULE'] = {settings!r}")
    assert done.returncode == 1
    assert "set DJANGO_SETTINGS_MODULE" in done.stderr
    assert "Traceback" not in done.stderr


def _run(url: str, before: str) -> subprocess.CompletedProcess[str]:
    script = f"import os, sys; {before}; from open_idempotency.cli import main; sys.exit(main(['migrate', {url!r}]))"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=SECONDS, check=False)
