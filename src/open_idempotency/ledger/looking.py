"""Looks for a committed response in the ledger that ``ledger=`` of a policy names, outside of any attempt.

Nothing is locked, and nothing changes.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from importlib import import_module
from typing import Any

from open_idempotency._core.commands import Look
from open_idempotency._runtime.loops import in_thread
from open_idempotency.exceptions import ConfigurationError
from open_idempotency.ledger.steps import arun, find_response, run
from open_idempotency.ledger.transactions import transaction_of


def look(command: Look) -> bytes | None:
    """The response that the policy's ledger has for a request; None without one. Raises what its database raises."""
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
