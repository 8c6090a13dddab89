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
from open_idempotency._perform.loops import current_library
from open_idempotency.exceptions import ConfigurationError, WrongColour
from open_idempotency.ledger.looking import is_seen, response_in
from open_idempotency.ledger.problems import dialect_named, explain, no_transaction
from open_idempotency.ledger.steps import Kept, Parameters, Rows

_NAMED = re.compile(r"(?<!:):(\w+)")


class DjangoTransaction:
    """The atomic block that this thread's connection is in."""

    awaited = False

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.dialect = dialect_named(connection.vendor)
        self.entered: object = None

    def current(self) -> object:
        """See ``Transaction.current``; Django lets nobody end it in an atomic block."""
        return True

    def watch(self, kept: Kept | None) -> Watch:
        """See ``Transaction.watch``; a stage's is not watched, since an atomic block ends before its view does."""
        if kept is None:
            return Watch(lambda: End.UNTOLD)
        alias = self._connection.alias

        def is_there() -> bool:
            return look(alias, kept.record_id, kept.fingerprint) == kept.response

        def ask() -> bool | Awaitable[bool]:
            return is_there() if current_library() is None else sync_to_async(is_there)()

        return Watch(_Hook(self._connection, kept).end, ask)

    def execute(self, statement: str, parameters: Parameters) -> Rows:
        """See ``Transaction.execute``."""
        with self._connection.cursor() as cursor:
            try:
                cursor.execute(_with_percents(statement), dict(parameters))
            except DatabaseError as error:
                explain(error, error.__cause__, self.dialect)
                raise
            return list(cursor.fetchall()) if cursor.description else []


class _Hook:
    """What Django calls after the commit, and forgets at a rollback, also at one to the savepoint of a block around it.

    It does not forget it at a rollback to a savepoint that was made by hand, so it looks for the response.
    """

    def __init__(self, connection: Any, kept: Kept) -> None:
        self._connection = connection
        self._kept = kept
        self._end = End.OPEN
        connection.on_commit(self._call)
        # First in the list: a hook of the view's that raises keeps those behind it from being called.
        hooks = connection.run_on_commit
        hooks.insert(0, hooks.pop())

    def _call(self) -> None:
        try:
            self._end = End.COMMITTED if is_seen(DjangoTransaction(self._connection), self._kept) else End.ROLLED_BACK
        except DatabaseError:  # the view's own work is done, and must not fail by this
            self._end = End.DOUBTFUL

    def end(self) -> End:
        """What became of the transaction."""
        if self._end is not End.OPEN:
            return self._end
        waits = any(self._call in hook for hook in list(self._connection.run_on_commit))
        if not waits or not self._connection.in_atomic_block:
            return End.DOUBTFUL  # after a rollback, or after a COMMIT that raised
        # What a ``TestCase`` holds open is committed as far as the application goes.
        return End.OPEN if _is_begun(self._connection) else End.COMMITTED


def transaction_of(alias: str) -> DjangoTransaction:
    """See ``transactions.transaction_of``."""
    if current_library() is not None:
        raise WrongColour(
            f"tx={alias!r}: Django's transactions are blocking; use `with` or `idem.run(...)` in a thread"
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
    """The response that the ledger in this database has for a request."""
    connection = _connection("ledger", alias)
    with transaction.atomic(alias):  # so that what is read is read in one transaction, and that it ends
        return response_in(DjangoTransaction(connection), record_id, fingerprint)


async def alook(alias: str, record_id: bytes, fingerprint: bytes) -> bytes | None:
    """``look``, awaited."""
    return await sync_to_async(look)(alias, record_id, fingerprint)


def _connection(field: str, alias: str) -> Any:
    try:
        return connections[alias]
    except ConnectionDoesNotExist as error:
        known = ", ".join(connections)
        raise ConfigurationError(f"{field}: DATABASES has no {alias!r}; it has {known}") from error


def _is_begun(connection: Any) -> bool:
    """Whether there is an atomic block of the application's. Those of a ``TestCase`` do not count, as for ``durable``:
    in production they are not there."""
    blocks = getattr(connection, "atomic_blocks", None) or [None]
    own = any(not getattr(block, "_from_testcase", False) for block in blocks)
    return bool(connection.in_atomic_block and own)


@lru_cache(maxsize=32)
def _with_percents(statement: str) -> str:
    return _NAMED.sub(r"%(\1)s", statement.replace("%", "%%"))
