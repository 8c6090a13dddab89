"""Draining: the running attempts of a process are failed, on real backends, at every point of a request."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from open_idempotency import BackendUnavailable, LeaseLost, drain, events, idem, open_backend
from open_idempotency._core.attempt import Attempt, Phase
from open_idempotency._core.commands import Claim, Fail, KeepAlive
from open_idempotency._core.models import Busy, Leased, Response
from open_idempotency._core.settlement import finish
from open_idempotency._engine.engine import Engine
from open_idempotency.backend import Backend, Get, Refused, SaveStage, Stage, Status
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.wsgi import IdempotencyMiddleware
from tests.unit.builders import PRINT, Listener, engine_of, eventually

SCRIPT = Path(__file__).with_name("drain_scripts.py")
LEASE = 30.0


class Desk:
    """An engine, and the attempts that run on it."""

    def __init__(self, backend: Backend | str, **fields: Any) -> None:
        self.listener = Listener()
        self.engine: Engine = engine_of(backend, on_event=self.listener, **fields)
        self.attempts: list[Attempt] = []

    def claim(self, name: bytes = b"r", owner: bytes = b"") -> Any:
        """Claim a record; return the backend's result."""
        command = Claim(name.ljust(32, b"."), PRINT, (owner or name).rjust(16, b"."), LEASE, 60.0)
        return self.engine.backend.claim(command)

    def admit(self, name: bytes = b"r", *stages: Stage) -> Attempt:
        """Begin an attempt that has saved these stages."""
        leased = self.claim(name)
        assert isinstance(leased, Leased)
        attempt = Attempt.of(leased.lease, leased.stages, self.engine.policy, "/")
        self.attempts.append(attempt)
        self.engine.heartbeat.keep(KeepAlive(attempt))
        for stage in stages:
            self.engine.backend.save_stage(_save(attempt, stage))
        return attempt

    def status(self, attempt: Attempt) -> Status:
        """The status of the record."""
        assert attempt.lease is not None
        record = self.engine.backend.get(Get(attempt.lease.record_id))
        assert record is not None
        return record.status

    def close(self) -> None:
        """End all attempts, so that none affects another test."""
        for attempt in self.attempts:
            self.engine.heartbeat.forget(attempt)
        self.engine.heartbeat.close()
        self.engine.backend.close()


def _save(attempt: Attempt, stage: Stage) -> Any:
    assert attempt.lease is not None
    return SaveStage(attempt.lease, stage)


@pytest.fixture
def open_desk() -> Iterator[Callable[..., Desk]]:
    """Opens a desk: ``open_desk(backend, **fields)``."""
    desks: list[Desk] = []

    def open_one(backend: Backend | str, **fields: Any) -> Desk:
        desks.append(Desk(backend, **fields))
        return desks[-1]

    yield open_one
    for desk in desks:
        desk.close()


@pytest.fixture(params=["memory", "sqlite"])
def desk(request: pytest.FixtureRequest, tmp_path: Path, open_desk: Callable[..., Desk]) -> Desk:
    """A desk on each backend that needs no server."""
    backends = {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path}/records.db"}
    return open_desk(open_backend(backends[request.param]))


def test_a_retry_runs_at_once_with_the_stages_and_as_the_next_attempt(desk: Desk) -> None:
    """L-06: the drain records a failure and not a release, since the handler had begun."""
    saved = Stage("reserve", "", b"frame")
    desk.admit(b"r", saved)
    assert isinstance(desk.claim(owner=b"retry"), Busy)
    assert drain() == 1
    retry = desk.claim(owner=b"retry")
    assert isinstance(retry, Leased)
    assert (retry.lease.attempt, retry.stages) == (2, (saved,))


def test_all_that_runs_is_given_up_in_one_pass_and_nothing_a_second_time(desk: Desk) -> None:
    """L-06: a drain concerns the whole process, and repeating it is harmless."""
    attempts = [desk.admit(b"%d" % number) for number in range(20)]
    assert drain() == 20
    assert {desk.status(attempt) for attempt in attempts} == {Status.FAILED}
    assert drain() == 0
    assert desk.listener.kinds() == [events.Failed] * 20


def test_every_engine_of_the_process_is_drained(open_desk: Callable[..., Desk]) -> None:
    """L-06: with all adapters and backends."""
    desks = [open_desk(MemoryBackend()) for _ in range(3)]
    attempts = [desk.admit() for desk in desks]
    assert drain() == 3
    assert [desk.status(attempt) for desk, attempt in zip(desks, attempts, strict=True)] == [Status.FAILED] * 3


def test_a_process_without_leases_has_nothing_to_drain(desk: Desk) -> None:
    """L-06."""
    before = time.monotonic()
    assert drain(timeout=20.0) == 0
    assert time.monotonic() - before < 10.0


def test_what_was_given_up_is_not_renewed_any_more(desk: Desk) -> None:
    """L-06, L-01: a renewal would concern the retry's lease."""
    attempt = desk.admit()
    drain()
    assert attempt.lost
    assert not desk.engine.heartbeat._beats.get()._watched


def test_an_operator_who_wants_no_second_run_after_an_abandoned_one_gets_none(open_desk: Callable[..., Desk]) -> None:
    """O-09: ``on_abandoned="reject"``."""
    desk = open_desk(MemoryBackend(), on_abandoned="reject")
    desk.admit()
    assert drain() == 1
    assert isinstance(desk.claim(owner=b"retry"), Refused)


def test_a_response_that_comes_too_late_is_not_sent_as_a_success(desk: Desk) -> None:
    """L-03, L-06: a retry may be running by then."""
    attempt = desk.admit()
    drain()
    verdict = desk.engine.sync.run(finish(attempt, Response(201, [], b"made")))
    assert isinstance(verdict, Response)
    assert verdict.status == 409
    assert desk.status(attempt) is Status.FAILED


def test_a_handler_that_goes_on_is_stopped_at_its_next_stage() -> None:
    """S-07, L-06: its client gets a 409, not half of a response."""
    ran: list[str] = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        idem.run("before", lambda: ran.append("before"))
        assert drain() == 1
        with pytest.raises(LeaseLost):
            idem.run("after", lambda: ran.append("after"))
        start_response("201 Created", [])
        return [b"made"]

    statuses: list[str] = []
    environ = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/",
        "CONTENT_LENGTH": "0",
        "HTTP_IDEMPOTENCY_KEY": "a-key-that-is-long-enough",
        "wsgi.input": io.BytesIO(),
        "wsgi.url_scheme": "http",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
    }
    middleware = IdempotencyMiddleware(app, MemoryBackend())
    b"".join(middleware(environ, lambda status, headers: statuses.append(status)))
    assert ran == ["before"]
    assert [status[:3] for status in statuses] == ["409"]


def test_what_is_being_recorded_is_waited_for(desk: Desk) -> None:
    """L-06, L-08: a process that exits now would interrupt the completion."""
    attempt = desk.admit()
    attempt.phase = Phase.ENDED
    found: list[int] = []
    drainer = threading.Thread(target=lambda: found.append(drain(timeout=20.0)))
    drainer.start()
    drainer.join(0.2)
    assert drainer.is_alive()
    assert not attempt.lost
    desk.engine.heartbeat.forget(attempt)
    drainer.join(10)
    assert found == [0]


class Broken(MemoryBackend):
    """A backend whose ``fail`` raises, or returns only when the gate opens."""

    def __init__(self) -> None:
        super().__init__()
        self.error: Exception | None = None
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def fail(self, c: Fail, /) -> None:
        """Raise or wait, as prepared."""
        self.entered.set()
        assert self.gate.wait(30)
        if self.error is not None:
            raise self.error
        super().fail(c)


@pytest.mark.parametrize("error", [BackendUnavailable("down"), RuntimeError("a backend's own bug")])
def test_a_backend_that_is_down_leaves_it_to_the_lease(open_desk: Callable[..., Desk], error: Exception) -> None:
    """L-06, L-02: a drain promises no more, and never raises."""
    backend = Broken()
    desk = open_desk(backend)
    attempt = desk.admit()
    backend.error = error
    assert drain() == 0
    assert desk.listener.kinds() == [events.BackendFailed]
    assert desk.status(attempt) is Status.IN_PROGRESS


def test_a_backend_that_hangs_costs_no_more_than_the_timeout(open_desk: Callable[..., Desk]) -> None:
    """L-06: the timeout bounds all leases together; leases that were not reached stay as they were."""
    backend = Broken()
    desk = open_desk(backend)
    attempts = [desk.admit(b"%d" % number) for number in range(5)]
    backend.gate.clear()
    for _ in range(20):
        before = time.monotonic()
        assert drain(timeout=0.2) == 0
        assert time.monotonic() - before < 5.0
        if backend.entered.is_set():  # on a slow machine the first pass may be over before it has begun
            break
    backend.gate.set()
    eventually(lambda: len(desk.listener.seen) == 1)
    assert sum(attempt.lost for attempt in attempts) == 1


def test_a_signal_that_interrupts_a_new_lease_can_drain() -> None:
    """L-06: the drain takes no lock that the interrupted code could hold."""
    assert run("signal") == ["drained"]


def test_a_forked_child_drains_its_own_leases_and_not_its_parents() -> None:
    """B-11: parent and child each drain their own."""
    assert run("fork") == ["child 1", "parent 1"]


@pytest.mark.parametrize("ending", ["exit", "thread", "mp-fork", "mp-spawn", "sigterm"])
def test_a_process_that_ends_releases_what_it_had(tmp_path: Path, ending: str) -> None:
    """L-06: a normal exit drains without any call."""
    path = tmp_path / "records.db"
    run(ending, str(path))
    backend = open_backend(f"sqlite:///{path}")
    (record,) = backend.scan()
    backend.close()
    assert record.status is Status.FAILED


def test_a_child_whose_threads_finish_their_work_is_not_drained_before(tmp_path: Path) -> None:
    """L-06: multiprocessing runs its exit functions before it joins threads."""
    path = tmp_path / "records.db"
    run("mp-thread", str(path))
    backend = open_backend(f"sqlite:///{path}")
    (record,) = backend.scan()
    backend.close()
    assert record.status is Status.COMPLETED


def run(*words: str) -> list[str]:
    """The lines that a script prints."""
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode in (0, 143), ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended.stdout.splitlines()
