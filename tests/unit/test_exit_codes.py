"""The exit codes of ``open-idempotency``: whoever runs it from a script has nothing else to go by."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from open_idempotency.cli import main

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
    """O-34: also where there is nothing to migrate, as in Redis."""
    assert main([command, url]) == 7
    out, err = capsys.readouterr()
    assert out == ""
    assert "refused" in err or "no connection in time" in err  # PostgreSQL's pool tries for as long as it may


@pytest.mark.parametrize("command", ["migrate", "purge"])
@pytest.mark.parametrize("url", WRONG.values(), ids=WRONG)
def test_a_wrong_url_is_1(command: str, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """O-34: the message says what is wrong with it."""
    assert main([command, url]) == 1
    assert capsys.readouterr().err.startswith("open-idempotency: backend: ")


@pytest.mark.parametrize("scheme", ["sqlite", "sqlalchemy+sqlite"])
def test_purging_creates_no_database(scheme: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """O-34: a mistyped path is an error, and no database without records."""
    assert main(["purge", f"{scheme}:///typo.db"]) == 1
    assert f"no database file {tmp_path}/typo.db" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_missing_table_is_7_and_the_command_that_makes_it_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """O-34: the file is there, and has no tables."""
    Path("empty.db").touch()
    assert main(["purge", "sqlalchemy+sqlite:///empty.db"]) == 7
    assert "open-idempotency migrate" in capsys.readouterr().err


@pytest.mark.parametrize("scheme", ["sqlite", "sqlalchemy+sqlite"])
def test_what_is_done_is_0(scheme: str, capsys: pytest.CaptureFixture[str]) -> None:
    """O-34: migrating makes the database, and says so once."""
    url = f"{scheme}:///records.db"
    assert [main(["migrate", url]), main(["migrate", url]), main(["purge", url])] == [0, 0, 0]
    made, again, purged = capsys.readouterr().out.splitlines()
    assert made.startswith("applied ")
    assert (again, purged) == ("nothing to apply", "deleted 0")


def test_a_server_that_responds_is_0(valkey_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """O-34: Redis needs no migration, and says so itself."""
    assert main(["migrate", valkey_url]) == 0
    assert capsys.readouterr().out == "nothing to apply\n"


@pytest.mark.parametrize("dialect", ["postgresql", "mysql", "mariadb", "sqlite"])
def test_the_script_of_the_ledger_is_0(dialect: str, capsys: pytest.CaptureFixture[str]) -> None:
    """O-34: nothing but SQL on standard output."""
    assert main(["ledger", dialect]) == 0
    assert capsys.readouterr().out.count("CREATE TABLE") >= 2


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
