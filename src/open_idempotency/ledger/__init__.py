"""The ledger: two small tables in the application's own database, for stages and responses that commit with its rows.

``tx=`` of a stage and ``idem.atomic`` write to the ledger (S-05, S-06), whatever backend holds the records. This module
is for deployments: it has the tables, as a script or as SQLAlchemy metadata for Alembic, and the purge. Django gets the
tables from the migrations of ``open_idempotency.django``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from open_idempotency.exceptions import SyncAsyncMismatch
from open_idempotency.ledger import steps as _steps
from open_idempotency.ledger.dialects import dialect_named
from open_idempotency.ledger.transactions import transaction_of

if TYPE_CHECKING:
    from sqlalchemy import MetaData

__all__ = ["apurge", "forget", "metadata", "purge", "schema"]


def schema(dialect: str) -> str:
    """The SQL script that creates the ledger's tables. ``dialect``: postgresql, mysql, mariadb or sqlite.

    Raises ``ConfigurationError`` for another dialect. Since 0.1.
    """
    return dialect_named(dialect).schema()


def metadata(into: MetaData | None = None) -> MetaData:
    """SQLAlchemy metadata with the ledger's tables, for Alembic's ``target_metadata``.

    ``into``: metadata to which the tables are added; without it, new metadata. Since 0.1.
    """
    from open_idempotency.ledger.on_sqlalchemy import add_tables

    return add_tables(into)


def purge(tx: object, limit: int = 1000) -> int:
    """Delete at most ``limit`` expired entries in the caller's transaction; returns how many were found.

    ``tx``: a sync transaction, as for a stage. It may run while the application does, and several times in parallel.
    Raises ``ConfigurationError`` if ``tx`` is no transaction, and ``SyncAsyncMismatch`` if it is async. Since 0.1.
    """
    transaction = transaction_of(tx)
    if transaction.awaited:
        raise SyncAsyncMismatch("purge: tx is async; use `await apurge(...)`")
    return _steps.run(_steps.purge(transaction, limit))


def forget(tx: object, record_ids: Sequence[bytes]) -> int:
    """Delete the entries of these records, with their stages, in the caller's transaction; returns how many were found.

    Use it for erasure, and never for a request that still runs: a retry of it runs again. ``tx``: a sync transaction,
    as for a stage. Raises ``ConfigurationError`` if ``tx`` is no transaction, and ``SyncAsyncMismatch`` if it is async.
    Since 0.1.
    """
    transaction = transaction_of(tx)
    if transaction.awaited:
        raise SyncAsyncMismatch("forget: tx is async; use a sync transaction")
    return _steps.run(_steps.forget(transaction, record_ids))


async def apurge(tx: object, limit: int = 1000) -> int:
    """Delete at most ``limit`` expired entries in the caller's async transaction; returns how many were found.

    ``tx``: an async transaction, as for a stage. It may run while the application does, and several times in parallel.
    Raises ``ConfigurationError`` if ``tx`` is no transaction, and ``SyncAsyncMismatch`` if it is sync. Since 0.1.
    """
    transaction = transaction_of(tx)
    if not transaction.awaited:
        raise SyncAsyncMismatch("apurge: tx is sync; use `purge(...)`")
    return await _steps.arun(_steps.purge(transaction, limit))
