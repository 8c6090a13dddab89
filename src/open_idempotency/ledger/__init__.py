"""The ledger: two small tables in the application's own database, for stages and answers that commit with its rows.

``tx=`` of a stage uses them (S-05), whatever backend holds the records. Here is what a deployment needs: the tables,
as a script or as SQLAlchemy's metadata for Alembic (Django's migrations have them too), and the purge.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from open_idempotency._core.commands import Call
from open_idempotency._core.drivers import drive
from open_idempotency._core.drivers import drive_async as _drive_async
from open_idempotency.exceptions import WrongColour
from open_idempotency.ledger import steps as _steps
from open_idempotency.ledger.problems import dialect_named
from open_idempotency.ledger.transactions import transaction_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any

    from sqlalchemy import MetaData

__all__ = ["apurge", "metadata", "purge", "schema"]


def schema(dialect: str) -> str:
    """The script that makes the tables. ``dialect``: postgresql, mysql, mariadb or sqlite.

    Raises ``ConfigurationError`` for another one. Since 0.1.
    """
    return dialect_named(dialect).schema()


def metadata(into: MetaData | None = None) -> MetaData:
    """SQLAlchemy's metadata with the tables, or ``into`` with them added, as Alembic's ``target_metadata`` takes it.

    Since 0.1.
    """
    from open_idempotency.ledger.tables import add_tables

    return add_tables(into)


def purge(tx: object, limit: int = 1000) -> int:
    """Delete at most ``limit`` entries that have expired, in the caller's transaction; how many there were to delete.

    ``tx``: as for a stage. Safe to run while the application does, and several times at once. Raises as ``tx=`` does.
    Since 0.1.
    """
    transaction = transaction_of(tx)
    if transaction.awaited:
        raise WrongColour("purge: tx is asynchronous; use `await apurge(...)`")
    return drive(_steps.purge(transaction, limit), {Call: lambda command: command.function()})


async def apurge(tx: object, limit: int = 1000) -> int:
    """``purge``, awaited."""
    transaction = transaction_of(tx)
    if not transaction.awaited:
        raise WrongColour("apurge: tx is not asynchronous; use `purge(...)`")
    return await _drive_async(_steps.purge(transaction, limit), {Call: lambda command: command.function()}, _unshielded)


async def _unshielded(call: Callable[[], Awaitable[Any]]) -> Any:
    return await call()
