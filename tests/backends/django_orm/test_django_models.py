"""The application's models through Django's ORM: ``dumpdata``, ``loaddata``, and queries of a project."""

from __future__ import annotations

import io
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db.models import Model, Value

from tests import mariadb_server
from tests.backends.django_orm import on_django
from tests.postgres_server import PostgresServer

from open_idempotency.django import models  # isort: skip

ID = "00ff" * 16
TIMES: dict[str, Any] = {"claimed_at": 1.5, "lease_end": 31.5, "ttl": 86400.0, "expires_at": 86431.5}
ROWS: list[Model] = [
    models.Record(
        record_id=ID,
        record_version=1,
        fingerprint="",
        status=1,
        owner="aa",
        token=2**62,
        attempt=1,
        final=False,
        **TIMES,
    ),
    models.Stage(record_id=ID, stage_id="01", name=b"charge", stage_key=b"\x00\xff", frame=b"\xfe"),
    models.Reservation(scope_id="bb", record_id=ID, ends=1.5),
    models.Scope(scope_id="bb", ends=1.5),
    models.LedgerEntry(record_id=ID, token=1, fingerprint="cc", response=b"\x00\xff", expires_at=1.5),
    models.LedgerStage(record_id=ID, stage_id="01", name="order", stage_key="", frame=None),
]


@pytest.fixture(params=["sqlite", "postgresql", *["mysql"] * mariadb_server.IN_USE])
def alias(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of each kind."""
    if request.param == "sqlite":
        settings = on_django.sqlite(tmp_path)
    elif request.param == "mysql":
        settings = on_django.mysql(mariadb_server.url())
    else:
        server: PostgresServer = request.getfixturevalue("postgres18")
        database = f"django_models_{secrets.token_hex(4)}"
        server.create_database(database)
        settings = on_django.postgresql(server, database)
    with on_django.aliased(settings) as alias:
        _emptied(alias)
        yield alias


def _emptied(alias: str) -> None:
    for row in ROWS:
        type(row)._default_manager.using(alias).all().delete()


def _kept(alias: str) -> list[dict[str, Any]]:
    found = [type(row)._default_manager.using(alias).values() for row in ROWS]
    return [{name: _plain(value) for name, value in row.items()} for rows in found for row in rows]


def _plain(value: Any) -> Any:
    return bytes(value) if isinstance(value, memoryview) else value


def _inserted(row: Model, alias: str, *, together: bool) -> None:
    manager = type(row)._default_manager.using(alias)
    values = {field.attname: getattr(row, field.attname) for field in row._meta.concrete_fields}
    if together:
        manager.bulk_create([type(row)(**values)])
    else:
        manager.create(**values)


def test_every_model_goes_through_a_dump_and_back(alias: str, tmp_path: Path) -> None:
    """B-09: ``dumpdata`` and ``loaddata`` copy the tables to another database, byte for byte."""
    for row in ROWS:
        _inserted(row, alias, together=False)
    before = _kept(alias)
    assert len(before) == len(ROWS)
    dump = io.StringIO()
    call_command("dumpdata", "open_idempotency", database=alias, stdout=dump, skip_checks=True)
    _emptied(alias)
    assert _kept(alias) == []
    (tmp_path / "dump.json").write_text(dump.getvalue())
    call_command("loaddata", str(tmp_path / "dump.json"), database=alias, verbosity=0, skip_checks=True)
    assert _kept(alias) == before


def test_a_project_may_write_and_find_rows_of_its_own(alias: str) -> None:
    """B-09: single and bulk inserts, updates by value and by expression, and lookups."""
    for row in ROWS:
        _inserted(row, alias, together=True)
    records = models.Record.objects.using(alias)
    record = records.get(record_id=ID.upper())
    record.fingerprint = "dd"
    record.save()
    records.filter(pk__in=[ID]).update(owner=Value("ee", output_field=models.Record._meta.get_field("owner")))
    (after,) = records.filter(fingerprint="dd", owner="ee").values_list("record_id", "owner")
    assert after == (ID, "ee")
