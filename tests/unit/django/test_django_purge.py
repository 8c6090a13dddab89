"""``manage.py idempotency_purge`` deletes expired records and expired ledger entries, and nothing else."""

from __future__ import annotations

import io
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import override_settings

from open_idempotency.backend import Get
from open_idempotency.backends.django_orm import DjangoBackend
from open_idempotency.conformance import ManualClock
from open_idempotency.conformance.support import claim_of
from tests.backends.django_orm import on_django

from open_idempotency.django.management.commands.idempotency_purge import Command  # isort: skip
from open_idempotency.django.models import LedgerEntry, LedgerStage  # isort: skip


@pytest.fixture
def alias(tmp_path: Path) -> Iterator[str]:
    with on_django.aliased(on_django.sqlite(tmp_path)) as alias:
        yield alias


def _purge(*arguments: str, backend: Any) -> list[str]:
    said = io.StringIO()
    with override_settings(IDEMPOTENCY_BACKEND=backend):
        call_command("idempotency_purge", *arguments, stdout=said, skip_checks=True)
    return said.getvalue().splitlines()


def _enter(alias: str, expires_at: float) -> str:
    digest = secrets.token_hex(32)
    LedgerEntry.objects.using(alias).create(record_id=digest, token=1, fingerprint="00", expires_at=expires_at)
    LedgerStage.objects.using(alias).create(record_id=digest, stage_id="00", name="order", stage_key="", frame=b"1")
    return digest


def test_expired_records_are_deleted_in_batches(alias: str) -> None:
    """B-09: the backend is the one that the settings name."""
    clock = ManualClock()
    backend = DjangoBackend(alias, clock=clock)
    try:
        for number in range(7):
            backend.claim(claim_of(b"old-%d" % number))
        clock.advance(100_000)
        live = claim_of(b"live")
        assert _purge("--batch", "2", "--database", alias, backend=backend)[0] == "records: 7"
        backend.claim(live)
        assert _purge("--database", alias, backend=backend)[0] == "records: 0"
        assert backend.get(Get(b"live")) is not None
    finally:
        backend.close()


def test_the_ledgers_expired_entries_are_deleted_with_their_stages(alias: str) -> None:
    """S-05: purged in batches, live ones left alone."""
    expired = [_enter(alias, 1.0) for _ in range(5)]
    live = _enter(alias, 1e12)
    assert _purge("--batch", "2", "--database", alias, backend="memory://") == ["records: 0", f"ledger of {alias}: 5"]
    assert [entry.record_id for entry in LedgerEntry.objects.using(alias).all()] == [live]
    left = {stage.record_id for stage in LedgerStage.objects.using(alias).all()}
    assert left == {live}
    assert not left & set(expired)


def test_a_ledger_without_tables_is_reported_with_the_command(tmp_path: Path) -> None:
    """O-34: the message names the command that creates them."""
    (tmp_path / "records.db").touch()
    with (
        on_django.aliased(on_django.sqlite(tmp_path), migrated=False) as alias,
        pytest.raises(CommandError, match=r"manage\.py migrate open_idempotency"),
    ):
        _purge("--database", alias, backend="memory://")


def test_a_database_that_is_not_there_is_not_created(tmp_path: Path, alias: str) -> None:
    """O-34: neither for the records nor for the ledger; a mistyped name is not an empty database."""
    missing = tmp_path / "typo.db"
    with pytest.raises(CommandError, match=r"no database file .*typo\.db"):
        _purge("--database", alias, backend=f"sqlite:///{missing}")
    settings = on_django.sqlite(tmp_path, NAME=str(missing))
    with on_django.aliased(settings, migrated=False) as typo:
        with pytest.raises(CommandError, match=r"no database file .*typo\.db"):
            _purge("--database", typo, backend="memory://")
        with pytest.raises(CommandError, match=r"no database file .*typo\.db"):
            _purge("--database", alias, backend=f"django://{typo}")
    assert not missing.exists()


def test_a_server_that_does_not_respond_is_named(alias: str) -> None:
    """O-34: the server of the records, or of the ledger; each is an error of the command and no traceback."""
    with pytest.raises(CommandError, match="Connection refused"):
        _purge("--database", alias, backend="redis://127.0.0.1:1")
    nowhere = {"ENGINE": "django.db.backends.postgresql", "HOST": "127.0.0.1", "PORT": "1", "NAME": "shop"}
    with (
        on_django.aliased(nowhere, migrated=False) as dead,
        pytest.raises(CommandError, match=f"the ledger of {dead}: OperationalError: .*Connection refused"),
    ):
        _purge("--database", dead, backend="memory://")


@pytest.mark.parametrize(
    ("backend", "arguments", "code"),
    [("memory://", [], 0), ("sqlite:///typo.db", [], 1), ("nosuch://", [], 1), ("memory://", ["--nonsense"], 2)],
    ids=["done", "no database", "wrong URL", "wrong usage"],
)
def test_the_exit_code_says_whether_it_was_done(
    alias: str, backend: str, arguments: list[str], code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """O-34: ``manage.py`` runs the command."""
    monkeypatch.chdir(tmp_path)
    command = ["manage.py", "idempotency_purge", "--skip-checks", "--database", alias, *arguments]
    with override_settings(IDEMPOTENCY_BACKEND=backend):
        if code == 0:
            Command().run_from_argv(command)
            return
        with pytest.raises(SystemExit) as ended:
            Command().run_from_argv(command)
        assert ended.value.code == code


def test_wrong_arguments_are_refused(alias: str) -> None:
    """Nothing is deleted before."""
    with pytest.raises(CommandError, match="DATABASES has no nowhere"):
        _purge("--database", "nowhere", backend="memory://")
    with pytest.raises(CommandError, match="invalid"):
        _purge("--batch", "0", backend="memory://")
    with pytest.raises(CommandError, match="IDEMPOTENCY_BACKEND: none given"):
        _purge("--database", alias, backend=None)
