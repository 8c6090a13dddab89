"""``manage.py idempotency_purge``: delete what has expired, of the records and of the ledger, in bounded batches."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DEFAULT_DB_ALIAS, Error, connections, transaction

from open_idempotency import ledger
from open_idempotency.backends.django_orm.backend import file_of
from open_idempotency.backends.registry import open_backend, refuse_new_file
from open_idempotency.django.conf import read_settings
from open_idempotency.exceptions import ConfigurationError, IdempotencyError, first_line


class Command(BaseCommand):
    """Deletes expired records. It may run beside the application, and several times at once. Since 0.1.

    Exit codes of ``manage.py``: 0 done; 1 not done, with the reason on standard error; 2 wrong usage.
    """

    help = "Deletes expired records from the backend of IDEMPOTENCY_BACKEND, and expired entries from the ledger."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Which databases have a ledger, and how much to delete in one transaction."""
        parser.add_argument(
            "--database", action="append", dest="aliases", metavar="ALIAS", help="has a ledger; may be repeated"
        )
        parser.add_argument("--batch", type=_count, default=1000, metavar="N", help="rows in a transaction")

    def handle(self, *args: Any, **options: Any) -> None:
        """Delete, and print how many rows were deleted."""
        batch: int = options["batch"]
        aliases: list[str] = options["aliases"] or [DEFAULT_DB_ALIAS]
        unknown = [alias for alias in aliases if alias not in connections]
        if unknown:
            raise CommandError(f"DATABASES has no {', '.join(unknown)}")
        alias = ""
        try:
            self.stdout.write(f"records: {_purge_records(batch)}")
            for alias in aliases:
                refuse_new_file(file_of(alias))
                self.stdout.write(f"ledger of {alias}: {_purge_ledger(alias, batch)}")
        except IdempotencyError as error:
            raise CommandError(str(error)) from error
        except Error as error:  # the transaction could not begin or commit
            raise CommandError(f"the ledger of {alias}: {type(error).__name__}: {first_line(error)}") from error


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise ValueError(text)
    return count


def _purge_records(batch: int) -> int:
    named = read_settings().get("backend")
    if named is None:
        raise ConfigurationError("IDEMPOTENCY_BACKEND: none given")
    backend = open_backend(named)
    purged = 0
    try:
        refuse_new_file(backend.file)
        while deleted := backend.purge(batch):
            purged += deleted
    finally:
        if isinstance(named, str):
            backend.close()
    return purged


def _purge_ledger(alias: str, batch: int) -> int:
    purged = 0
    while True:
        with transaction.atomic(alias):
            deleted = ledger.purge(alias, batch)
        purged += deleted
        if deleted < batch:
            return purged
