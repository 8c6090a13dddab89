"""Local failures (no threads, no memory) count as those of a backend; bugs do not."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from functools import wraps
from typing import Any

import pytest

from open_idempotency._core.commands import Steps, ask
from open_idempotency._engine.engine import AsyncPerformer, Performer
from open_idempotency._runtime.processes import is_local, unguarded
from open_idempotency.backend import Complete, Completed, Get, Wait, Withdraw
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.backends.threaded import ThreadedBackend
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
def test_a_failure_in_the_process_counts_as_an_unavailable_backend(error: Exception, said: str) -> None:
    """B-10a: sync and async; the error has its cause, and a cure where one is known."""
    assert is_local(error)
    clock = ManualClock()
    for call in _calls(clock):
        clock.fails_with = error
        with pytest.raises(BackendUnavailable, match=said) as raised:
            call()
        assert raised.value.__cause__ is error


@pytest.mark.parametrize("error", _BUGS, ids=repr)
def test_our_own_bugs_stay_what_they_are(error: Exception) -> None:
    """B-10a: they are neither retried nor hidden."""
    assert not is_local(error)
    clock = ManualClock()
    for call in _calls(clock):
        clock.fails_with = error
        with pytest.raises(type(error)) as raised:
            call()
        assert raised.value is error


class _Unable(MemoryBackend):
    """A backend without notifications."""

    def wait(self, c: Wait, /) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_a_wait_that_fails_is_a_pause() -> None:
    """B-10a, O-04: waiting never raises; the next claim decides."""
    _Unable().wait(Wait(b"1" * 32, 0.01, 0.01))


class _Failing(MemoryBackend):
    """A backend without memory for a completion."""

    def complete(self, c: Complete, /) -> Completed:
        raise MemoryError


class _AsyncFailing(ThreadedBackend):
    """An async backend without memory for a completion."""

    async def complete(self, c: Complete, /) -> Completed:
        raise MemoryError


class _Described(_Failing):
    """A backend with a wrapper of the application around a verb."""

    @wraps(_Failing.complete)
    def complete(self, c: Complete, /) -> Completed:
        raise KeyError("described")


def test_what_is_put_around_a_verb_stays_without_its_guard() -> None:
    """B-10a: only the guard itself is removed."""
    failing, described = _Failing(), _Described()
    lease = failing.claim(claim_of(b"1" * 32)).lease
    with pytest.raises(BackendUnavailable):
        failing.complete(Complete(lease, b"response"))
    with pytest.raises(MemoryError):
        unguarded(failing.complete)(Complete(lease, b"response"))
    with pytest.raises(KeyError):
        unguarded(described.complete)(Complete(lease, b"response"))
    assert unguarded(print) is print


@pytest.mark.parametrize("library", ["sync", "asyncio"])
def test_a_request_meets_no_local_failure(library: str) -> None:
    """B-10a: a performer calls the timed verbs without their guards, and guards them itself."""
    failing = _Failing()
    lease = failing.claim(claim_of(b"1" * 32)).lease

    def steps() -> Steps[None]:
        yield from ask(Complete(lease, b"response"))

    run = {
        "sync": lambda: Performer(failing).run(steps()),
        "asyncio": lambda: asyncio.run(AsyncPerformer(_AsyncFailing(failing)).run(steps())),
    }[library]
    with pytest.raises(BackendUnavailable, match="raise the memory limit") as raised:
        run()
    assert isinstance(raised.value.__cause__, MemoryError)
