"""``manage.py idempotency``: all commands, with the backend and the policy of the settings."""

# ruff: noqa: E402 (Django has to be set up before what needs its settings is imported)
from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.django_project import set_up

set_up()

from django.core.management import CommandError, call_command
from django.test import override_settings

from open_idempotency import open_backend
from open_idempotency.backend import Backend, Get
from tests.backends.django_orm import on_django
from tests.cli.running import SECONDS, environment
from tests.operations.stores import Maker

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Backend]:
    """The backend of a Django project whose records are in its own database."""
    with on_django.aliased(on_django.sqlite(tmp_path)) as alias:
        url = f"django://{alias}"
        with override_settings(IDEMPOTENCY_BACKEND=url), open_backend(url) as backend:
            yield backend


def _manage(*arguments: str) -> str:
    out = io.StringIO()
    call_command("idempotency", *arguments, stdout=out, stderr=io.StringIO())
    return out.getvalue()


def test_a_stuck_record_is_found_explained_and_freed(project: Backend) -> None:
    """P-22: with the backend of IDEMPOTENCY_BACKEND, and suggested commands that can be copied."""
    lease = Maker(project).in_doubt()
    record = lease.record_id.hex()[:12]
    assert record in _manage("list", "--state", "stuck")
    assert f"manage.py idempotency resolve {record} --stage charge --found JSON" in _manage("show", record)
    _manage("resolve", record, "--stage", "charge", "--found", '"ch_1"', "--yes")
    assert json.loads(_manage("list", "--state", "stuck", "--json")) == []


def test_other_commands_work_too(project: Backend) -> None:
    """P-22."""
    lease = Maker(project).alive()
    assert json.loads(_manage("stats", "--json"))["total"] == 1
    assert "ok" in _manage("doctor")
    assert _manage("migrate") == "nothing to apply\n"
    assert _manage("purge") == "deleted 0\n"
    assert "CREATE TABLE" in _manage("ledger", "sqlite")
    _manage("release", lease.record_id.hex(), "--yes")
    _manage("forget", lease.record_id.hex(), "--yes")
    assert project.get(Get(lease.record_id)) is None


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["show", "0123abcd"], 3),
        (["forget", "0123abcd"], 3),
        (["resolve", "0123abcd", "--stage", "s", "--not-done"], 3),
    ],
    ids=str,
)
def test_errors_are_of_django_with_our_exit_codes(project: Backend, arguments: list[str], code: int) -> None:
    """P-19, P-22: ``call_command`` raises CommandError, and ``manage.py`` exits with the code."""
    with pytest.raises(CommandError, match="no record") as refused:
        _manage(*arguments)
    assert refused.value.returncode == code


def test_without_a_backend_in_the_settings_it_says_so() -> None:
    """P-22: the error names the missing setting."""
    with pytest.raises(CommandError, match="IDEMPOTENCY_BACKEND: none given") as refused:
        _manage("list")
    assert refused.value.returncode == 1


def test_a_live_record_is_named_on_standard_error_alone(project: Backend) -> None:
    """P-19, P-22: exit code 5, as in the shell."""
    lease = Maker(project).alive()
    with pytest.raises(CommandError, match="held by an attempt") as refused:
        _manage("forget", lease.record_id.hex())
    assert refused.value.returncode == 5


def test_manage_py_ends_with_our_exit_codes(tmp_path: Path) -> None:
    """P-19, P-22: in a separate process; wrong usage is 2."""
    script = tmp_path / "manage.py"
    script.write_text(
        "import sys\nfrom django.core.management import execute_from_command_line as run\nrun(sys.argv)\n",
        encoding="utf-8",
    )
    (tmp_path / "project.py").write_text(
        "SECRET_KEY = 'only for tests'\nUSE_TZ = True\n"
        "INSTALLED_APPS = ['django.contrib.contenttypes', 'open_idempotency.django']\n"
        "MIDDLEWARE = ['open_idempotency.django.IdempotencyMiddleware']\n"
        f"IDEMPOTENCY_BACKEND = 'sqlite:///{tmp_path}/records.db'\nROOT_URLCONF = 'project'\nurlpatterns = []\n",
        encoding="utf-8",
    )
    for arguments, code, said in (
        (["migrate"], 0, ""),
        (["show", "0123abcd"], 3, "no record begins with 0123abcd"),
        (["nosuch"], 2, "invalid choice"),
        (["show", "--help"], 0, ""),
    ):
        done = subprocess.run(
            [sys.executable, str(script), "idempotency", *arguments],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            env=environment(DJANGO_SETTINGS_MODULE="project"),
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == code, done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr
