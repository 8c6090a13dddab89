"""The ledger on a Django database alias, in the transaction that ``atomic`` or ATOMIC_REQUESTS has begun there."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from django.db import DatabaseError, connections
from django.utils.connection import ConnectionDoesNotExist

from open_idempotency._perform.loops import current_library
from open_idempotency.exceptions import ConfigurationError, WrongColour
from open_idempotency.ledger.problems import dialect_named, is_missing, missing, no_transaction
from open_idempotency.ledger.steps import Parameters, Rows

_NAMED = re.compile(r"(?<!:):(\w+)")


class DjangoTransaction:
    """The atomic block that this thread's connection is in."""

    awaited = False

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.dialect = dialect_named(connection.vendor)

    def execute(self, statement: str, parameters: Parameters) -> Rows:
        """See ``Transaction.execute``."""
        with self._connection.cursor() as cursor:
            try:
                cursor.execute(_with_percents(statement), dict(parameters))
            except DatabaseError as error:
                if is_missing(error):
                    raise missing(error, self.dialect) from error
                raise
            return list(cursor.fetchall()) if cursor.description else []


def transaction_of(alias: str) -> DjangoTransaction:
    """See ``transactions.transaction_of``."""
    if current_library() is not None:
        raise WrongColour(
            f"tx={alias!r}: Django's transactions are blocking; use `with` or `idem.run(...)` in a thread"
        )
    try:
        connection = connections[alias]
    except ConnectionDoesNotExist as error:
        known = ", ".join(connections)
        raise ConfigurationError(f"tx=: DATABASES has no {alias!r}; it has {known}") from error
    if not connection.in_atomic_block:
        raise no_transaction(f"Django's database {alias!r}", f"use `with transaction.atomic({alias!r}):`")
    if connection.needs_rollback:
        raise ConfigurationError(f"tx=: the transaction on {alias!r} has failed and will be rolled back")
    return DjangoTransaction(connection)


@lru_cache(maxsize=32)
def _with_percents(statement: str) -> str:
    return _NAMED.sub(r"%(\1)s", statement.replace("%", "%%"))
