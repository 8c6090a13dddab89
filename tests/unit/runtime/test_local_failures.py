"""Which errors count as those of a backend, and that no others do."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from typing import Any

import pytest

from open_idempotency._runtime.processes import is_local
from open_idempotency.backend import Complete, Get, Wait, Withdraw
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.conformance.support import ManualClock, claim_of
from open_idempotency.exceptions import BackendUnavailable, SyncAsyncMismatch

_HERE = [
    (MemoryError(), "MemoryError; raise the memory limit"),
    (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "ulimit -n"),
    (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), "ConnectionRefusedError"),
    (TimeoutError("late"), "TimeoutError: late"),
    (RuntimeError("can't start new thread"), "ulimit -u"),
    (RuntimeError("can't create new thread at interpreter shutdown"), "unless the process is ending"),
    (RuntimeError("cannot schedule new futures after interpreter shutdown"), "unless the process is ending"),
    (RuntimeError("Executor shutdown has been called"), "unless the process is ending"),
]
_BUGS = [
    TypeError("a"),
    RuntimeError("a"),
    RecursionError("a"),
    AttributeError("a"),
    KeyError("a"),
    SyncAsyncMismatch("a"),
]


def _calls(clock: ManualClock) -> list[Callable[[], Any]]:
    backend = MemoryBackend(clock=clock)
    claim = claim_of(b"1" * 32)
    lease = backend.claim(claim).lease
    other = backend.to_async()
    return [
        lambda: backend.complete(Complete(lease, b"response")),
        lambda: asyncio.run(other.complete(Complete(lease, b"response"))),
        lambda: backend.withdraw(Withdraw(claim)),
        lambda: asyncio.run(other.withdraw(Withdraw(claim))),
        lambda: backend.get(Get(lease.record_id)),
        lambda: list(backend.scan()),
        lambda: backend.purge(),
        lambda: asyncio.run(_scanned(other)),
    ]


async def _scanned(backend: Any) -> list[Any]:
    return [record async for record in backend.scan()]


@pytest.mark.parametrize(("error", "said"), _HERE, ids=lambda value: value if isinstance(value, str) else "")
def test_what_fails_in_the_process_is_a_backend_that_does_not_answer(error: Exception, said: str) -> None:
    """B-10a: sync and async, with the cause, and with what to do where that is known."""
    assert is_local(error)
    clock = ManualClock()
    for call in _calls(clock):
        clock.fails_with = error
        with pytest.raises(BackendUnavailable, match=said) as raised:
            call()
        assert raised.value.__cause__ is error


@pytest.mark.parametrize("error", _BUGS, ids=repr)
def test_our_own_bugs_stay_what_they_are(error: Exception) -> None:
    """B-10a: nothing tries them again, and nothing hides them."""
    assert not is_local(error)
    clock = ManualClock()
    for call in _calls(clock):
        clock.fails_with = error
        with pytest.raises(type(error)) as raised:
            call()
        assert raised.value is error


class _Unable(MemoryBackend):
    """Cannot be told of ends."""

    def wait(self, c: Wait, /) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_a_wait_that_fails_is_a_pause() -> None:
    """B-10a, O-04: waiting never raises; the next claim says more."""
    _Unable().wait(Wait(b"1" * 32, 0.01, 0.01))
