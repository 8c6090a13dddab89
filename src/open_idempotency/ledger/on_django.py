"""The ledger on a Django database alias, in the transaction that ``atomic`` or ATOMIC_REQUESTS has begun there."""

from __future__ import annotations

import re
from collections.abc import Awaitable
from functools import lru_cache
from typing import Any

from asgiref.sync import sync_to_async
from django.db import DatabaseError, connections, transaction
from django.utils.connection import ConnectionDoesNotExist

from open_idempotency._core.attempt import End, Watch
from open_idempotency._runtime.loops import current_library
from open_idempotency.exceptions import ConfigurationError, SyncAsyncMismatch
from open_idempotency.ledger.dialects import dialect_named, explain, no_transaction
from open_idempotency.ledger.steps import Parameters, Rows, StoredResponse, find_response, is_visible, run

_NAMED = re.compile(r"(?<!:):(\w+)")


class DjangoTransaction:
    """The atomic block of this thread's connection."""

    awaited = False

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.dialect = dialect_named(connection.vendor)
        self.entered: object = None

    def current(self) -> object:
        """Constant, since Django lets no code end the transaction within an atomic block."""
        return True

    def watch(self, stored: StoredResponse | None) -> Watch:
        """Watch for the commit of a response. A stage is not watched: its atomic block ends before the view does."""
        if stored is None:
            return Watch(lambda: End.UNREPORTED)
        alias = self._connection.alias

        def is_committed() -> bool:
            return look(alias, stored.record_id, stored.fingerprint) == stored.response

        def ask() -> bool | Awaitable[bool]:
            return is_committed() if current_library() is None else sync_to_async(is_committed)()

        return Watch(_CommitHook(self._connection, stored).end, ask)

    def execute(self, statement: str, parameters: Parameters) -> Rows:
        """Run a statement on the connection. Returns its rows."""
        with self._connection.cursor() as cursor:
            try:
                cursor.execute(_with_percents(statement), dict(parameters))
            except DatabaseError as error:
                explain(error, error.__cause__, self.dialect)
                raise
            return list(cursor.fetchall()) if cursor.description else []


class _CommitHook:
    """Reports the end of the transaction, with a hook that Django calls after the commit.

    Django drops the hook at a rollback, even to the savepoint of an outer block. It keeps the hook at a rollback to a
    savepoint that was created by hand, so the hook looks for the response.
    """

    def __init__(self, connection: Any, stored: StoredResponse) -> None:
        self._connection = connection
        self._stored = stored
        self._end = End.OPEN
        connection.on_commit(self._call)
        # First in the list: Django calls no further hooks after one that raises.
        hooks = connection.run_on_commit
        hooks.insert(0, hooks.pop())

    def _call(self) -> None:
        try:
            is_there = is_visible(DjangoTransaction(self._connection), self._stored)
            self._end = End.COMMITTED if is_there else End.ROLLED_BACK
        except DatabaseError:  # the view's work is committed, and must not fail because of this query
            self._end = End.DOUBTFUL

    def end(self) -> End:
        """The end of the transaction, as far as it is known."""
        if self._end is not End.OPEN:
            return self._end
        is_pending = any(self._call in hook for hook in list(self._connection.run_on_commit))
        if not is_pending or not self._connection.in_atomic_block:
            return End.DOUBTFUL  # after a rollback, or after a COMMIT that raised
        # The transaction of a ``TestCase`` stays open, but for the application the block has committed.
        return End.OPEN if _is_begun(self._connection) else End.COMMITTED


def transaction_of(alias: str) -> DjangoTransaction:
    """The transaction on a database alias.

    Raises ``SyncAsyncMismatch`` on an event loop. Raises ``ConfigurationError`` if the alias is unknown, if no atomic
    block is open there, or if its transaction has failed.
    """
    if current_library() is not None:
        raise SyncAsyncMismatch(
            f"tx={alias!r}: Django's transactions are sync; use `with` or `idem.run(...)` in a thread"
        )
    connection = _connection("tx=", alias)
    if not _is_begun(connection):
        begun = ", ".join(repr(other.alias) for other in connections.all(initialized_only=True) if _is_begun(other))
        what = f"Django's database {alias!r}" + (f", unlike {begun}," if begun else "")
        raise no_transaction(what, f"use `with transaction.atomic({alias!r}):`, or the alias that has your rows")
    if connection.needs_rollback:
        raise ConfigurationError(f"tx=: the transaction on {alias!r} has failed and will be rolled back")
    return DjangoTransaction(connection)


def look(alias: str, record_id: bytes, fingerprint: bytes) -> bytes | None:
    """The response that the ledger in this database has for a request; None without one."""
    connection = _connection("ledger", alias)
    with transaction.atomic(alias):  # so that the read has a transaction of its own, which ends
        return run(find_response(DjangoTransaction(connection), record_id, fingerprint))


async def alook(alias: str, record_id: bytes, fingerprint: bytes) -> bytes | None:
    """``look`` for async adapters; it runs in the thread that Django has for sync code."""
    return await sync_to_async(look)(alias, record_id, fingerprint)


def _connection(option: str, alias: str) -> Any:
    try:
        return connections[alias]
    except ConnectionDoesNotExist as error:
        known = ", ".join(connections)
        raise ConfigurationError(f"{option}: DATABASES has no {alias!r}; it has {known}") from error


def _is_begun(connection: Any) -> bool:
    """Whether the application has an atomic block open.

    Blocks of a ``TestCase`` do not count, as for ``durable``: in production they do not exist.
    """
    blocks = getattr(connection, "atomic_blocks", None) or [None]
    own = any(not getattr(block, "_from_testcase", False) for block in blocks)
    return bool(connection.in_atomic_block and own)


@lru_cache(maxsize=32)
def _with_percents(statement: str) -> str:
    return _NAMED.sub(r"%(\1)s", statement.replace("%", "%%"))
