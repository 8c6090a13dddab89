"""O-04: O-04 over real sockets: what a waiting duplicate gets, what it costs, and that other requests get threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from tests.http.behaviours import PATIENCE, Call, Reply
from tests.http.conftest import NewCase
from tests.http.endpoints import Steps, charge, gated
from tests.http.sites import Case, assert_problem
from tests.http.variants import ON_UVICORN, on_memory_only

STORM = 32
#: backends that are notified when a request ends, and need not poll
on_notified_backends = pytest.mark.on_backends("memory", "redis")


def _until(condition: Callable[[], bool]) -> None:
    """Wait, for a bounded time, for a condition that a server's thread brings about."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.002)


@contextmanager
def _running(case: Case) -> Iterator[Future[httpx.Response]]:
    """The first request, held at its gate until the end of the block at the latest."""
    first = case.start()
    try:
        assert case.script.arrived.wait(PATIENCE)
        yield first
    finally:
        case.script.release.set()


def _gated_and_failing_once(call: Call) -> Steps:
    if len(call.script.runs) > 1:
        return (yield from charge(call))
    yield from gated(call)
    return Reply(503, [], b"not now")


@on_notified_backends
def test_a_duplicate_that_is_notified_polls_no_more(new_case: NewCase) -> None:
    """O-04: one claim before it waits and one after."""
    case = new_case(gated, "waits")
    with _running(case) as first:
        started = time.monotonic()
        duplicate = case.start()
        case.wait_for_a_waiter()
        case.script.release.set()
        assert duplicate.result(PATIENCE).content == first.result(PATIENCE).content
    # On a slow machine it may have looked by itself meanwhile, once a second at most.
    looks = int(time.monotonic() - started)
    assert case.verbs.count("Claim") <= 1 + 2 + looks


def test_a_waiting_duplicate_runs_where_the_first_failed(new_case: NewCase) -> None:
    """O-04, O-08: it is notified of a failure too, and becomes the next attempt."""
    case = new_case(_gated_and_failing_once, "waits")
    with _running(case) as first:
        duplicate = case.start()
        case.wait_for_a_waiter()
        case.script.release.set()
        assert first.result(PATIENCE).status_code == 503
        assert duplicate.result(PATIENCE).json() == {"charge": 2}


@on_memory_only
def test_the_conflict_after_waiting_says_when_to_retry(new_case: NewCase) -> None:
    """O-03, O-04: by how long the first request has been running by then."""
    case = new_case(gated, "waits briefly")
    with _running(case):
        conflict = case.send()
    assert_problem(conflict, "in-progress", 409, retryable=True)
    assert conflict.headers["retry-after"] == "1"
    assert "preference-applied" not in conflict.headers


@on_memory_only
def test_a_client_that_asks_to_wait_gets_the_response(new_case: NewCase) -> None:
    """O-04, RFC 7240: a header says that its preference was applied, with the granted seconds."""
    case = new_case(gated, "waits long if asked")
    with _running(case) as first:
        duplicate = case.start(headers=[("prefer", "wait=100")])
        case.wait_for_a_waiter()
        impatient = case.send()
        case.script.release.set()
        assert duplicate.result(PATIENCE).content == first.result(PATIENCE).content
    assert duplicate.result().headers["preference-applied"] == "wait=8"
    assert impatient.status_code == 409
    assert "preference-applied" not in first.result().headers


def test_a_storm_of_waiting_duplicates_runs_once(new_case: NewCase) -> None:
    """O-04: all duplicates get equal bytes."""
    case = new_case(gated, "waits in numbers")
    with ThreadPoolExecutor(STORM) as clients, _running(case) as first:
        before = len(case.watched.waits)
        duplicates = [clients.submit(case.send) for _ in range(STORM)]
        _until(lambda: len(case.watched.waits) >= before + 5)
        case.script.release.set()
        responses = {(r.status_code, r.content) for r in (d.result(PATIENCE) for d in duplicates)}
        assert responses == {(201, first.result(PATIENCE).content)}
    assert len(case.runs) == 1


@on_memory_only
def test_waiting_duplicates_leave_threads_to_others(new_case: NewCase) -> None:
    """I6: they hold two of a server's eight threads, so other requests continue; tasks may all wait."""
    case, other = new_case(gated, "waits"), new_case(charge, "waits")
    with ThreadPoolExecutor(8) as clients, _running(case):
        before = len(case.watched.waits)
        duplicates = [clients.submit(case.send) for _ in range(8)]
        if case.site.adapter in ON_UVICORN:
            _until(lambda: len(case.watched.waits) >= before + 8)
        else:
            _until(lambda: sum(duplicate.done() for duplicate in duplicates) == 6)
        assert other.send().status_code == 201
        case.script.release.set()
        statuses = sorted(duplicate.result(PATIENCE).status_code for duplicate in duplicates)
    assert statuses == ([201] * 8 if case.site.adapter in ON_UVICORN else [201] * 2 + [409] * 6)
