"""Deleting what has expired: in bounded batches, and safe in parallel, since rows that somebody else holds are left."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from open_idempotency.backends.sqlalchemy import statements
from open_idempotency.backends.sqlalchemy.transactions import Transaction

_CLAIMS = itertools.count(1)
_EVERY = 16
_PURGED_AT_A_CLAIM = 64


def now_and_then(tx: Transaction) -> None:
    """Every so many new records, delete several times as many expired ones, so that they do not pile up."""
    if next(_CLAIMS) % _EVERY == 0:
        _records(tx, _PURGED_AT_A_CLAIM)


def purge(tx: Transaction, limit: int) -> int:
    """Delete at most ``limit`` expired records and reservations; how many were."""
    purged = _records(tx, limit)
    _scopes(tx, limit)
    return purged + reservations(tx, limit - purged)


def _records(tx: Transaction, limit: int) -> int:
    expired = [bytes(row[0]) for row in tx.rows(statements.EXPIRED, now=tx.now, limit=limit)]
    forget(tx, expired)
    return len(expired)


def forget(tx: Transaction, record_ids: Sequence[bytes]) -> None:
    """Delete records whose rows are locked, with their stages."""
    if not record_ids:
        return
    parameters = [{"id": record_id} for record_id in record_ids]
    tx.run(statements.DELETE_STAGES, parameters)
    tx.run(statements.DELETE, parameters)


def reservations(tx: Transaction, limit: int) -> int:
    """Delete at most ``limit`` expired reservations; how many were."""
    if limit < 1:
        return 0
    expired = tx.rows(statements.EXPIRED_RESERVATIONS, now=tx.now, limit=limit)
    if expired:
        tx.run(statements.DELETE_RESERVATION, [{"scope": bytes(row[0]), "id": bytes(row[1])} for row in expired])
    return len(expired)


def _scopes(tx: Transaction, limit: int) -> None:
    expired = tx.rows(statements.EXPIRED_SCOPES, now=tx.now, limit=limit)
    if expired:
        tx.run(statements.DELETE_SCOPE, [{"scope": bytes(row[0])} for row in expired])
