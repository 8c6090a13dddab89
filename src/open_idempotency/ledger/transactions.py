"""The application's own transaction: the types that ``tx=`` accepts, and the search for a committed response.

``tx=`` is recognised by its type, without importing any library. ``look`` and ``alook`` search the ledger that
``ledger=`` of a policy names, outside of any attempt. They lock nothing and change nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from importlib import import_module
from typing import Any, NamedTuple

from open_idempotency._core.commands import Look
from open_idempotency._runtime.loops import in_thread
from open_idempotency.exceptions import ConfigurationError
from open_idempotency.ledger.steps import Transaction, arun, find_response, run

_EXPECTED = (
    "tx= takes a SQLAlchemy Session, Connection, AsyncSession or AsyncConnection, a Django database alias, a psycopg "
    "connection or a sqlite3.Connection; in a decorator also a callable that returns one from the call's arguments"
)


class _Kind(NamedTuple):
    """A type that ``tx=`` accepts: its module and name, and the module of this package that wraps it."""

    library: str
    name: str
    module: str


_KINDS = (
    _Kind("sqlalchemy.orm", "Session", "on_sqlalchemy"),
    _Kind("sqlalchemy.orm", "scoped_session", "on_sqlalchemy"),
    _Kind("sqlalchemy.orm", "sessionmaker", "on_sqlalchemy"),  # listed so that it is refused instead of called
    _Kind("sqlalchemy.engine", "Connection", "on_sqlalchemy"),
    _Kind("sqlalchemy.ext.asyncio", "AsyncSession", "on_sqlalchemy"),
    _Kind("sqlalchemy.ext.asyncio", "async_scoped_session", "on_sqlalchemy"),
    _Kind("sqlalchemy.ext.asyncio", "async_sessionmaker", "on_sqlalchemy"),
    _Kind("sqlalchemy.ext.asyncio", "AsyncConnection", "on_sqlalchemy"),
    _Kind("psycopg", "Connection", "on_psycopg"),
    _Kind("psycopg", "AsyncConnection", "on_psycopg"),
    _Kind("sqlite3", "Connection", "on_sqlite3"),
)


def transaction_of(tx: object) -> Transaction:
    """The transaction that a value of ``tx=`` stands for.

    Raises ``ConfigurationError``, which says what to do, for an unknown type, a connection that commits each statement
    by itself, an unknown alias, or a database that the ledger does not support.
    """
    module = _module_for(tx)
    if module is None:
        raise ConfigurationError(f"{_EXPECTED}; not {type(tx).__name__}")
    if isinstance(tx, str) and not _has_django():  # the message omits the string, which may be a URL with a password
        raise ConfigurationError(
            f"tx= is a string, which is a Django database alias, but Django is not set up; {_EXPECTED}"
        )
    make: Callable[[Any], Transaction] = import_module(f"open_idempotency.ledger.{module}").transaction_of
    return make(tx)


def is_transaction(tx: object) -> bool:
    """Whether ``tx`` is of a known type. Some known types are callable too, such as ``scoped_session``."""
    return _module_for(tx) is not None


def _has_django() -> bool:
    conf = sys.modules.get("django.conf")
    return "DJANGO_SETTINGS_MODULE" in os.environ or (conf is not None and conf.settings.configured)


def _module_for(tx: object) -> str | None:
    """The module of this package that wraps a transaction of this type; None for an unknown type."""
    if isinstance(tx, str):
        return "on_django"
    for kind in _KINDS:
        known = getattr(sys.modules.get(kind.library), kind.name, None)
        if isinstance(known, type) and isinstance(tx, known):
            return kind.module
    return None


# The search for a committed response


def look(command: Look) -> bytes | None:
    """The response that the policy's ledger has for a request, or None. Raises what its database raises."""
    if isinstance(command.ledger, str):
        found: bytes | None = _django().look(command.ledger, command.record_id, command.fingerprint)
        return found
    opened = _opened(command)
    if not isinstance(opened, AbstractContextManager):
        raise ConfigurationError(
            "ledger: it opens an async transaction, but this adapter is sync; give a sync one, such as `engine.begin`"
        )
    return _look_in(opened, command)


async def alook(command: Look) -> bytes | None:
    """``look`` for async adapters. A sync transaction is opened in a thread."""
    if isinstance(command.ledger, str):
        found: bytes | None = await _django().alook(command.ledger, command.record_id, command.fingerprint)
        return found
    found_or_opened = await in_thread(_look_unless_async, command)
    if not isinstance(found_or_opened, AbstractAsyncContextManager):
        return found_or_opened
    async with found_or_opened as tx:
        return await arun(find_response(transaction_of(tx), command.record_id, command.fingerprint))


def _look_unless_async(command: Look) -> bytes | AbstractAsyncContextManager[Any] | None:
    """The response, if the transaction is sync; else the async context manager, to be entered on the event loop.

    It runs in a thread, since opening a transaction may block.
    """
    opened = _opened(command)
    return opened if isinstance(opened, AbstractAsyncContextManager) else _look_in(opened, command)


def _look_in(opened: AbstractContextManager[Any], command: Look) -> bytes | None:
    with opened as tx:
        return run(find_response(transaction_of(tx), command.record_id, command.fingerprint))


def _opened(command: Look) -> Any:
    assert callable(command.ledger)
    opened = command.ledger()
    if not isinstance(opened, AbstractContextManager | AbstractAsyncContextManager):
        raise ConfigurationError(
            f"ledger: it returned {type(opened).__name__}; it has to return a context manager of a transaction, as "
            "`engine.begin` does"
        )
    return opened


def _django() -> Any:
    return import_module("open_idempotency.ledger.on_django")
