"""B-10a under real conditions: a process that can open no further thread or file, on every backend."""

from __future__ import annotations

import asyncio
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from open_idempotency import open_backend
from open_idempotency._runtime import on_asyncio
from open_idempotency._runtime.processes import PerProcess
from open_idempotency.backend import (
    AsyncBackend,
    Backend,
    Complete,
    Fail,
    Finished,
    Get,
    Lease,
    Leased,
    Release,
    Renew,
    Reserve,
    SaveStage,
    Unreserve,
    Wait,
)
from open_idempotency.backends.django_orm import DjangoBackend
from open_idempotency.backends.sqlalchemy import SqlalchemyBackend
from open_idempotency.backends.sqlite import SqliteBackend
from open_idempotency.backends.sqlite import backend as loop_threads
from open_idempotency.conformance.support import AsyncVerbs, claim_of, stage_of
from open_idempotency.exceptions import BackendUnavailable
from tests.backends.django_orm import on_django
from tests.backends.sql_databases import make_tables, postgres_url

_TIMEOUT = 0.3
_SOON = 30.0


@contextmanager
def without_threads() -> Iterator[None]:
    """Starting a thread fails, as at the limit of processes, which does not apply to root."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    loop_threads._idle.pop()
    on_asyncio._executors.pop()
    before = threading.Thread.start
    threading.Thread.start = start
    try:
        yield
    finally:
        threading.Thread.start = before


@contextmanager
def without_files() -> Iterator[None]:
    """No file descriptor is available."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 2, before[1]))
    try:
        while True:
            try:
                taken.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                break
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for descriptor in taken:
            os.close(descriptor)


class Made:
    """Makes a backend of each kind."""

    def __init__(self, request: pytest.FixtureRequest, folder: Path) -> None:
        self._request = request
        self._path = folder / "records.db"

    def memory(self) -> Backend:
        return open_backend("memory://")

    def sqlite(self) -> Backend:
        return SqliteBackend(str(self._path), timeout=_TIMEOUT)

    def sqlite_one_by_one(self) -> Backend:
        return SqliteBackend(str(self._path), timeout=_TIMEOUT, coalesce=False)

    def redis(self) -> Backend:
        return open_backend(f"{self._request.getfixturevalue('valkey_url')}?timeout={_TIMEOUT}")

    def redis_one_by_one(self) -> Backend:
        return open_backend(f"{self._request.getfixturevalue('valkey_url')}?timeout={_TIMEOUT}&coalesce=no")

    def postgres(self) -> Backend:
        return open_backend(self._request.getfixturevalue("postgres18").url() + f"?timeout={_TIMEOUT}")

    def sqlalchemy(self) -> Backend:
        return self._on_sqlalchemy(f"sqlite:///{self._path}")

    def aiosqlite(self) -> Backend:
        make_tables(f"sqlite:///{self._path}")
        return SqlalchemyBackend(f"sqlalchemy+sqlite+aiosqlite:///{self._path}", timeout=_TIMEOUT)

    def sqlalchemy_psycopg(self) -> Backend:
        return self._on_sqlalchemy(postgres_url(self._request.getfixturevalue("postgres18")))

    def _on_sqlalchemy(self, url: str) -> Backend:
        make_tables(url)
        return SqlalchemyBackend(f"sqlalchemy+{url}", timeout=_TIMEOUT)

    def django(self) -> Backend:
        alias = on_django.aliased(on_django.sqlite(self._path.parent))
        name = alias.__enter__()
        self._request.addfinalizer(lambda: alias.__exit__(None, None, None))
        return DjangoBackend(name, timeout=_TIMEOUT)


KINDS = [name for name in vars(Made) if not name.startswith("_")]


@pytest.fixture(autouse=True)
def no_thread_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    idle: PerProcess[list[Any]] = PerProcess(list)
    monkeypatch.setattr(loop_threads, "_idle", idle)
    monkeypatch.setattr(on_asyncio, "_executors", PerProcess(on_asyncio._executors.by_pid._make))


async def _in_time(verbs: AsyncVerbs, verb: str, command: Any) -> Any:
    """The result of a call without shortage; repeated while a slow machine makes it time out."""
    deadline = time.monotonic() + _SOON
    while True:
        try:
            return await verbs.call(verb, command)
        except BackendUnavailable:
            if time.monotonic() > deadline:
                raise


async def _leased(verbs: AsyncVerbs, record_id: bytes) -> Lease:
    result = await _in_time(verbs, "claim", claim_of(record_id))
    assert isinstance(result, Leased), result
    return result.lease


async def _in_want(verbs: AsyncVerbs, want: Callable[[], Any]) -> None:
    """Every verb succeeds or raises ``BackendUnavailable``; a refused command is not executed later."""
    record_id = os.urandom(32)
    lease, failed, released = [await _leased(verbs, key) for key in (record_id, os.urandom(32), os.urandom(32))]
    claims = [claim_of(os.urandom(32)) for _ in range(3)]
    await verbs.close()  # so that the connections have to be made anew
    calls: list[tuple[str, Any]] = [
        *(("claim", claim) for claim in claims),
        ("renew", Renew([lease])),
        ("save_stage", SaveStage(lease, stage_of("a stage"))),
        ("get", Get(record_id)),
        ("delete", os.urandom(32)),
        ("purge", 10),
        ("reserve", Reserve(os.urandom(32), record_id, 5, 30.0, 600.0)),
        ("unreserve", Unreserve(os.urandom(32), record_id)),
        ("fail", Fail(failed)),
        ("release", Release(released)),
        ("complete", Complete(lease, b"response")),
    ]
    refused: list[Any] = []
    causes: list[BaseException | None] = []
    with want():
        for verb, command in calls:
            try:
                await verbs.call(verb, command)
            except BackendUnavailable as error:
                refused.append(command)
                causes.append(error.__cause__)
        await verbs.call("wait", Wait(record_id, 0.01, 0.01))
    assert None not in causes
    if calls[-1][1] in refused:
        await _in_time(verbs, "complete", Complete(lease, b"response"))
    assert await _in_time(verbs, "claim", claim_of(record_id, fingerprint=lease.fingerprint)) == Finished(b"response")
    # Threads can start again, so a command that was left in a queue would have run by now.
    for claim in claims:
        if claim in refused:
            result = await _in_time(verbs, "claim", claim_of(claim.record_id))
            assert isinstance(result, Leased)
            assert result.lease.attempt == 1


@pytest.mark.parametrize("want", [without_threads, without_files])
@pytest.mark.parametrize("mode", ["sync", "asyncio", "trio"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_process_without_resources_has_an_unavailable_backend(
    kind: str, mode: str, want: Callable[[], Any], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """B-10a: in every verb, whatever the driver raises; a completion succeeds when resources are back."""
    backend: Backend = getattr(Made(request, tmp_path), kind)()

    async def test(made: Backend | AsyncBackend) -> None:
        verbs = AsyncVerbs(made)
        await _in_want(verbs, want)
        await verbs.close()

    if mode == "trio":
        trio.run(test, backend.to_async())
    elif mode == "asyncio":
        asyncio.run(asyncio.wait_for(test(backend.to_async()), 120))
    else:
        with suppress(StopIteration):
            test(backend).send(None)  # it never waits
    backend.close()
