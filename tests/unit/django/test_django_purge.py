"""``manage.py idempotency_purge``: what has expired is deleted, of the records and of the ledger, and nothing else."""

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
    """B-09: of whatever backend the settings name."""
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


def test_a_ledger_without_tables_is_told_with_the_command(tmp_path: Path) -> None:
    """What to do."""
    with (
        on_django.aliased(on_django.sqlite(tmp_path), migrated=False) as alias,
        pytest.raises(CommandError, match=r"manage\.py migrate open_idempotency"),
    ):
        _purge("--database", alias, backend="memory://")


def test_wrong_arguments_are_refused(alias: str) -> None:
    """Before anything is deleted."""
    with pytest.raises(CommandError, match="DATABASES has no nowhere"):
        _purge("--database", "nowhere", backend="memory://")
    with pytest.raises(CommandError, match="invalid"):
        _purge("--batch", "0", backend="memory://")
    with pytest.raises(CommandError, match="IDEMPOTENCY_BACKEND: none given"):
        _purge("--database", alias, backend=None)
