"""Looking into a ledger for the response that it has, outside of any attempt: nothing is locked, nothing changes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from importlib import import_module
from typing import Any

from open_idempotency._core.commands import Call, Look
from open_idempotency._core.drivers import drive, drive_async
from open_idempotency._perform.loops import current_library, in_thread
from open_idempotency.exceptions import ConfigurationError
from open_idempotency.ledger.steps import Kept, Transaction, find_response
from open_idempotency.ledger.transactions import transaction_of


def response_in(transaction: Transaction, record_id: bytes, fingerprint: bytes) -> bytes | None:
    """What a blocking transaction sees of a request's response."""
    steps = find_response(transaction, record_id, fingerprint)
    return drive(steps, {Call: lambda command: command.function()})


async def aresponse_in(transaction: Transaction, record_id: bytes, fingerprint: bytes) -> bytes | None:
    """``response_in``, awaited."""
    steps = find_response(transaction, record_id, fingerprint)
    return await drive_async(steps, {Call: lambda command: command.function()}, _unshielded)


async def _unshielded(call: Callable[[], Awaitable[Any]]) -> Any:
    return await call()


# Whether a response was committed


def is_seen(transaction: Transaction, kept: Kept) -> bool:
    """Whether another transaction than the one that wrote it sees this response: then it was committed."""
    return response_in(transaction, kept.record_id, kept.fingerprint) == kept.response


async def ais_seen(transaction: Transaction, kept: Kept) -> bool:
    """``is_seen``, awaited."""
    return await aresponse_in(transaction, kept.record_id, kept.fingerprint) == kept.response


def in_thread_of_a_loop(ask: Callable[[], bool]) -> Callable[[], bool | Awaitable[bool]]:
    """A blocking question that is asked in a thread where an event loop runs, and else at once."""
    return lambda: ask() if current_library() is None else in_thread(ask)


# What ``ledger=`` of a policy names


def look(command: Look) -> bytes | None:
    """The response that the policy's ledger has for a request. Raises what its database does."""
    if isinstance(command.ledger, str):
        found: bytes | None = _django().look(command.ledger, command.record_id, command.fingerprint)
        return found
    opened = _opened(command)
    if not isinstance(opened, AbstractContextManager):
        raise ConfigurationError("ledger: it opens an asynchronous transaction, and this adapter is blocking")
    return _look_in(opened, command)


async def alook(command: Look) -> bytes | None:
    """``look``, awaited; a blocking transaction is opened in a thread."""
    if isinstance(command.ledger, str):
        found: bytes | None = await _django().alook(command.ledger, command.record_id, command.fingerprint)
        return found
    found_or_opened = await in_thread(_look_unless_awaited, command)
    if not isinstance(found_or_opened, AbstractAsyncContextManager):
        return found_or_opened
    async with found_or_opened as tx:
        return await aresponse_in(transaction_of(tx), command.record_id, command.fingerprint)


def _look_unless_awaited(command: Look) -> bytes | AbstractAsyncContextManager[Any] | None:
    """All of a blocking look, since opening may block, too; of an awaited one what is to be entered on its loop."""
    opened = _opened(command)
    return opened if isinstance(opened, AbstractAsyncContextManager) else _look_in(opened, command)


def _look_in(opened: AbstractContextManager[Any], command: Look) -> bytes | None:
    with opened as tx:
        return response_in(transaction_of(tx), command.record_id, command.fingerprint)


def _opened(command: Look) -> Any:
    assert callable(command.ledger)
    opened = command.ledger()
    if not isinstance(opened, AbstractContextManager | AbstractAsyncContextManager):
        raise ConfigurationError(
            f"ledger: it returned {type(opened).__name__}, and not a context manager of a transaction as "
            "`engine.begin` does"
        )
    return opened


def _django() -> Any:
    return import_module("open_idempotency.ledger.on_django")
