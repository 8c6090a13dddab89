"""``Once``: what is refused before anything runs, what a call costs, and the effects of failures."""

from __future__ import annotations

import functools
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pydantic
import pytest
from starlette.testclient import TestClient

from open_idempotency import (
    BackendUnavailable,
    ConfigurationError,
    IdempotencyPolicy,
    InProgress,
    KeyNested,
    KeyRejected,
    KeyReused,
    LeaseLost,
    NotCommitted,
    Once,
    OutcomeUnknown,
    PayloadRejected,
    RecordUnreadable,
    StageValueError,
    Status,
    SyncAsyncMismatch,
    TooManyKeys,
    events,
    idem,
    operations,
)
from open_idempotency._core.keys import About
from open_idempotency.backend import Claim, ClaimResult, Complete, Fail, Get, Record, Release, Wait
from open_idempotency.backends.memory import MemoryBackend
from tests.http.backends import WatchedBackend
from tests.unit.builders import Listener

URL = "memory://"


class Count:
    """A function that counts its calls."""

    def __init__(self, result: Any = "made") -> None:
        self.calls = 0
        self.result = result

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


@pytest.fixture
def backend() -> WatchedBackend:
    """A backend that records its calls."""
    return WatchedBackend(MemoryBackend())


@pytest.fixture
def once(backend: WatchedBackend) -> Once:
    return Once(backend, scope="invoices")


def asked(backend: WatchedBackend) -> list[type]:
    """The commands that the backend was given."""
    return [type(command) for command in backend.commands]


# What a call costs


def test_a_new_key_costs_two_backend_calls_and_a_known_one_costs_one(once: Once, backend: WatchedBackend) -> None:
    """N-18: claim and completion; a claim alone."""
    once.run("k", Count())
    assert asked(backend) == [Claim, Complete]
    once.run("k", Count())
    assert asked(backend) == [Claim, Complete, Claim]
    with once.begin("b", payload=1) as attempt:
        attempt.complete(1)
    assert asked(backend) == [Claim, Complete, Claim, Claim, Complete]


@pytest.mark.anyio
async def test_an_awaited_call_costs_the_same(once: Once, backend: WatchedBackend) -> None:
    """N-18: two calls for a new key, and one for a known key."""
    for _ in range(2):
        await once.arun("k", Count())
    assert asked(backend) == [Claim, Complete, Claim]


# What is refused before any backend call


@pytest.mark.parametrize("key", ["", " ", None, 7, b"k", ["k"], "\ud800"], ids=repr)
def test_a_key_that_is_no_name_is_refused(once: Once, backend: WatchedBackend, key: Any) -> None:
    """N-19: every verb refuses it."""
    work = Count()
    for call in (
        lambda: once.run(key, work),
        lambda: once.begin(key, payload=1),
        lambda: once.status(key),
        lambda: once.forget(key),
        lambda: once(key=lambda: key)(work)(),
    ):
        with pytest.raises(KeyRejected, match="key"):
            call()
    assert (work.calls, backend.commands) == (0, [])


class Cart:
    """A class that is not JSON."""


DEEP: Any = functools.reduce(lambda within, _: [within], range(200), [])


@pytest.mark.parametrize(
    "payload",
    [Cart(), {1: "a"}, float("nan"), {"cart": [Cart()]}, {"a", "b"}, DEEP],
    ids=["object", "numbered", "nan", "nested", "set", "deep"],
)  # fmt: skip
def test_a_payload_that_is_no_json_is_refused(once: Once, backend: WatchedBackend, payload: object) -> None:
    """N-06: as an argument and as ``payload=``."""
    work = Count()
    with pytest.raises(PayloadRejected, match="payload="):
        once.run("k", work, payload)
    with pytest.raises(PayloadRejected, match="payload="):
        once.run("k", work, payload=payload)
    with pytest.raises(PayloadRejected, match="payload="):
        once.begin("k", payload=payload)
    assert (work.calls, backend.commands) == (0, [])


def test_the_error_of_a_payload_has_nothing_of_its_values(once: Once) -> None:
    """N-06."""
    with pytest.raises(PayloadRejected) as refused:
        once.run("k", Count(), {"password": "hunter2", "cart": Cart()})
    assert "hunter2" not in str(refused.value)


async def _coroutine(*_: Any) -> int:
    return 1


def _generator() -> Iterator[int]:
    yield 1


async def _async_generator() -> AsyncIterator[int]:
    yield 1


def test_a_coroutine_function_in_run_is_refused(once: Once, backend: WatchedBackend) -> None:
    """N-19: also where the call alone shows that it is one; then the attempt has failed."""
    for function in (_coroutine, functools.partial(_coroutine, 1)):
        with pytest.raises(SyncAsyncMismatch, match="arun"):
            once.run("k", function)
    assert backend.commands == []
    with pytest.raises(SyncAsyncMismatch, match="arun"):
        once.run("k", lambda: _coroutine())
    assert once.status("k").status is Status.FAILED


@pytest.mark.parametrize("function", [_generator, _async_generator, functools.partial(_generator)])
def test_generator_functions_are_refused(once: Once, backend: WatchedBackend, function: Any) -> None:
    """N-19: called and decorated."""
    with pytest.raises(TypeError, match="generator"):
        once.run("k", function)
    with pytest.raises(TypeError, match="generator"):
        once(key=lambda: "k")(function)
    assert backend.commands == []


def test_what_is_no_function_is_refused(once: Once) -> None:
    """N-19: such as the result of a function, or a coroutine."""
    with pytest.raises(TypeError, match="pass the function and its arguments separately"):
        once.run("k", 7)  # type: ignore[arg-type]  # it is wrong on purpose
    with pytest.raises(TypeError, match="pass the function and its arguments separately"):
        once.run("k", _coroutine())  # type: ignore[arg-type]  # it is wrong on purpose
    with pytest.raises(TypeError, match="decorates a function"):
        once(key=lambda: "k")(7)  # type: ignore[type-var]  # it is wrong on purpose


def test_arguments_that_do_not_fit_are_refused(once: Once, backend: WatchedBackend) -> None:
    """N-19."""

    def work(order: int) -> int:
        return order

    with pytest.raises(TypeError):
        once.run("k", work, 1, 2)
    assert backend.commands == []


def test_an_argument_that_may_be_meant_for_the_function_is_refused(once: Once) -> None:
    """N-19: ``functools.partial`` passes it to the function."""

    def work(payload: int) -> int:
        return payload

    with pytest.raises(TypeError, match=r"functools\.partial"):
        once.run("k", work, payload=7)
    assert once.run("k", functools.partial(work, payload=7)) == 7


def test_a_decorator_without_a_key_is_refused(once: Once) -> None:
    """N-19."""
    for wrong in (lambda: once(Count()), lambda: once(), lambda: once(key=_coroutine), lambda: once(key="k")):  # type: ignore[arg-type]  # it is wrong on purpose
        with pytest.raises(TypeError, match="key="):
            wrong()


@pytest.mark.parametrize("errors", [ValueError, [int], ("no",)])
def test_memo_errors_are_a_tuple_of_exception_classes(once: Once, errors: Any) -> None:
    """N-19."""
    with pytest.raises(TypeError, match="memo_errors="):
        once.run("k", Count(), memo_errors=errors)


@pytest.mark.parametrize("wait", [-1, "5", float("inf"), True])
def test_a_wait_that_is_no_time_is_refused(once: Once, wait: Any) -> None:
    """N-19."""
    with pytest.raises(ConfigurationError, match="wait"):
        once.run("k", Count(), wait=wait)
    assert once.run("k", Count(), wait=timedelta(seconds=1)) == "made"


@pytest.mark.anyio
async def test_a_sync_verb_on_an_event_loop_is_refused(once: Once, backend: WatchedBackend) -> None:
    """N-19: the call would block the loop."""
    work = Count()
    for call in (
        lambda: once.run("k", work),
        lambda: once.begin("k", payload=1).__enter__(),
        lambda: once.status("k"),
        lambda: once.forget("k"),
        once(key=lambda: "k")(lambda: work()),
    ):
        with pytest.raises(SyncAsyncMismatch, match=r"await|async"):
            call()
    assert (work.calls, backend.commands) == (0, [])


def test_an_async_verb_outside_of_a_loop_is_refused_at_the_call(once: Once) -> None:
    """N-19."""
    for call in (lambda: once.arun("k", Count()), lambda: once.astatus("k"), lambda: once.aforget("k")):
        with pytest.raises(SyncAsyncMismatch, match="event loop"):
            call()


# Construction


@pytest.mark.parametrize("scope", [None, "", " ", 7, lambda: "x"])
def test_a_once_without_a_scope_is_refused(scope: Any) -> None:
    """N-20."""
    with pytest.raises(ConfigurationError, match="scope: name the kind of work"):
        Once(URL, scope=scope)
    with pytest.raises(ConfigurationError, match="scope: name the kind of work"):
        Once(URL)


def test_a_once_without_a_backend_is_refused() -> None:
    """N-20."""
    with pytest.raises(ConfigurationError, match="backend: none given"):
        Once(scope="invoices")


@pytest.mark.parametrize(
    "fields",
    [
        {"header": "X"}, {"methods": ["PUT"]}, {"fingerprint": "none"}, {"store": bool}, {"on_failed": "replay"},
        {"error_ttl": 5}, {"max_wait": 5}, {"required": True}, {"redact": bool}, {"compat": "stripe"},
        {"stream_grace": 1}, {"scope_by_route": True}, {"render_problem": bool},
    ],
    ids=str,
)  # fmt: skip
def test_fields_that_mean_nothing_without_http_are_refused(fields: dict[str, Any]) -> None:
    """N-20: the error has the field's name and what to do."""
    (name,) = fields
    with pytest.raises(ConfigurationError, match=rf"^{name}: .*(leave it out|memo_errors=)"):
        Once(URL, scope="invoices", **fields)


def test_fields_that_no_policy_has_or_that_are_wrong_are_refused() -> None:
    """N-20."""
    with pytest.raises(ConfigurationError, match="did you mean lease"):
        Once(URL, scope="invoices", leese=5)
    with pytest.raises(ConfigurationError, match="lease"):
        Once(URL, scope="invoices", lease=0)


# The payload


@dataclass
class Line:
    sku: str
    price: Decimal


def test_values_that_json_lacks_count_as_stage_values_are_written(once: Once) -> None:
    """N-06: they are nested, and encoded by their own types."""
    work = Count()
    once.run("k", work, {"lines": [Line("mug", Decimal("9.90"))]}, at=timedelta(days=1))
    assert once.run("k", work, {"lines": [Line("mug", Decimal("9.90"))]}, at=timedelta(days=1)) == "made"
    with pytest.raises(KeyReused):
        once.run("k", work, {"lines": [Line("mug", Decimal("9.91"))]}, at=timedelta(days=1))


@pytest.mark.parametrize("other", [1.0, "1", True, None, [1]])
def test_payloads_that_json_writes_otherwise_are_others(once: Once, other: object) -> None:
    """N-06: two payloads are equal only if their encodings are."""
    once.run("k", Count(), 1)
    with pytest.raises(KeyReused):
        once.run("k", Count(), other)


def test_a_default_that_is_added_to_a_function_changes_no_payload(once: Once) -> None:
    """N-06: messages may be in flight while a new version is deployed."""

    def old(order: int) -> str:
        return "made"

    def new(order: int, copies: int = 1) -> str:
        raise AssertionError

    once.run("k", old, 7)
    assert once.run("k", new, 7) == "made"


def test_another_secret_is_another_record() -> None:
    """N-02: the digests are keyed."""
    backend = MemoryBackend()
    results = [Once(backend, scope="s", secret=bytes([n]) * 16).run("k", Count(n)) for n in (1, 2)]
    assert results == [1, 2]


# The block form


def test_a_block_without_a_result_is_an_error(once: Once) -> None:
    """N-04: the next block resumes the work."""
    with pytest.raises(ConfigurationError, match=r"attempt\.complete"), once.begin("k", payload=1):
        pass
    assert once.status("k").status is Status.FAILED
    with once.begin("k", payload=1) as attempt:
        attempt.complete()
    assert attempt.result is None


def test_a_block_is_used_once_and_in_order(once: Once) -> None:
    """N-04."""
    attempt = once.begin("k", payload=1)
    for wrong in (lambda: attempt.done, lambda: attempt.result, lambda: attempt.complete(1)):
        with pytest.raises(RuntimeError, match="not entered"):
            wrong()
    with attempt:
        with pytest.raises(RuntimeError, match="no result yet"):
            _ = attempt.result
        attempt.complete(1)
        with pytest.raises(RuntimeError, match="already"):
            attempt.complete(2)
    with pytest.raises(RuntimeError, match="entered already"):
        attempt.__enter__()
    with once.begin("k", payload=1) as later, pytest.raises(RuntimeError, match="done before"):
        later.complete(2)


def _complete_and_fail(once: Once) -> None:
    with once.begin("k", payload=1) as attempt:
        attempt.complete(1)
        raise ZeroDivisionError


def test_an_error_behind_complete_fails_the_attempt(once: Once) -> None:
    """N-04: the result is recorded only when the block ends."""
    with pytest.raises(ZeroDivisionError):
        _complete_and_fail(once)
    assert once.status("k").status is Status.FAILED


# Requests


def test_a_call_within_a_protected_request_is_independent_of_it(backend: WatchedBackend) -> None:
    """N-14: the record, the stages and the failure of each are its own."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    from open_idempotency.starlette import IdempotencyMiddleware

    once, mail = Once(backend, scope="mails"), Count("sent")
    statuses = iter([500, 201])

    async def endpoint(request: Request) -> JSONResponse:
        await idem.asave_stage("mine", 1)
        sent = await once.arun("order-1", mail)
        stages = [stage.name for stage in idem.stages]
        return JSONResponse([sent, stages, idem.attempt], next(statuses))

    app = Starlette(routes=[Route("/orders", endpoint, methods=["POST"])])
    app.add_middleware(IdempotencyMiddleware, backend=backend)
    client = TestClient(app)
    replies = [client.post("/orders", headers={"Idempotency-Key": "k" * 16}) for _ in range(3)]

    assert [(reply.status_code, reply.json()) for reply in replies] == [
        (500, ["sent", ["mine"], 1]),
        (201, ["sent", ["mine"], 2]),
        (201, ["sent", ["mine"], 2]),
    ]
    assert mail.calls == 1


# The backend is unavailable


class Away(WatchedBackend):
    """A backend that raises when it claims or reads."""

    def __init__(self, error: Exception) -> None:
        super().__init__(MemoryBackend())
        self.error: Exception | None = error
        #: the error to raise after a call has waited
        self.error_after_waiting: Exception | None = None

    def wait(self, c: Wait, /) -> None:
        super().wait(c)
        self.error = self.error_after_waiting

    def claim(self, c: Claim, /) -> Any:
        if self.error is not None:
            raise self.error
        return super().claim(c)

    def get(self, c: Get, /) -> Any:
        if self.error is not None:
            raise self.error
        return super().get(c)


def test_nothing_runs_while_the_backend_is_away() -> None:
    """N-15: the error has the driver's error as its cause."""
    away, work = Away(BackendUnavailable("down")), Count()
    once = Once(away, scope="s")
    with pytest.raises(BackendUnavailable) as raised:
        once.run("k", work)
    assert raised.value.__cause__ is away.error
    for look in (once.status, once.forget):
        with pytest.raises(BackendUnavailable):
            look("k")
    assert work.calls == 0


def test_failing_open_calls_the_function_unprotected(caplog: pytest.LogCaptureFixture) -> None:
    """N-15: an error is logged; stages run plainly, and nothing is stored."""
    away, listener, stage = Away(BackendUnavailable("down")), Listener(), Count()
    once = Once(away, scope="s", fail_open=True, on_event=listener)

    with caplog.at_level(logging.ERROR, "open_idempotency"):
        assert [once.run("k", lambda: idem.run("stage", stage)) for _ in range(2)] == ["made"] * 2

    assert stage.calls == 2
    assert listener.kinds().count(events.FailedOpen) == 2
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 2
    with pytest.raises(BackendUnavailable):
        once.status("k")


def test_failing_open_runs_nothing_whose_record_cannot_be_read() -> None:
    """N-15."""
    work = Count()
    with pytest.raises(RecordUnreadable):
        Once(Away(RecordUnreadable("damaged")), scope="s", fail_open=True).run("k", work)
    assert work.calls == 0


def test_failing_open_runs_nothing_beside_an_attempt_that_is_known() -> None:
    """N-15: the backend becomes unavailable while the call waits for the attempt."""
    away, work, began = Away(BackendUnavailable("down")), Count(), threading.Event()
    away.error_after_waiting, away.error, may_end = away.error, None, threading.Event()
    once = Once(away, scope="s", fail_open=True)

    def first() -> None:
        began.set()
        may_end.wait(30)

    thread = threading.Thread(target=once.run, args=("k", first), kwargs={"payload": 1})
    thread.start()
    try:
        assert began.wait(30)
        with pytest.raises(BackendUnavailable, match="another attempt was running"):
            once.run("k", work, payload=1, wait=30)
    finally:
        may_end.set()
        thread.join()
    assert work.calls == 0


def test_a_result_that_is_not_recorded_in_time_is_returned_and_recorded_later(backend: WatchedBackend) -> None:
    """N-24."""
    recorded = threading.Event()
    listener = Listener()

    def listen(event: events.Event) -> None:
        listener(event)
        if isinstance(event, events.RecordedLate):
            recorded.set()

    once = Once(backend, scope="s", respond_within=0, on_event=listen)
    backend.away.set()
    assert once.run("k", Count()) == "made"
    assert events.Unrecorded in listener.kinds()
    backend.away.clear()
    assert recorded.wait(30)
    never = Count()
    assert once.run("k", never) == "made"
    assert never.calls == 0


# Leases


def test_a_call_whose_key_was_taken_over_gets_the_result_of_the_later_one(backend: WatchedBackend) -> None:
    """N-25."""
    once = Once(backend, scope="s")

    def superseded() -> str:
        record = next(backend.scan())
        backend.inner.delete(record.record_id)
        assert once._engine.backend is backend
        thread = threading.Thread(target=once.run, args=("k", Count("the later one's")), kwargs={"payload": 1})
        thread.start()
        thread.join()
        return "mine"

    assert once.run("k", superseded, payload=1) == "the later one's"


def test_a_call_whose_key_is_held_by_a_later_one_has_lost_it(backend: WatchedBackend) -> None:
    """N-25."""
    once, may_end, began = Once(backend, scope="s"), threading.Event(), threading.Event()

    def later() -> str:
        began.set()
        may_end.wait(30)
        return "later"

    def superseded() -> str:
        backend.inner.delete(next(backend.scan()).record_id)
        thread.start()
        began.wait(30)
        return "mine"

    thread = threading.Thread(target=once.run, args=("k", later), kwargs={"payload": 1})
    try:
        with pytest.raises(LeaseLost):
            once.run("k", superseded, payload=1)
    finally:
        may_end.set()
        thread.join()
    assert once.run("k", Count(), payload=1) == "later"


def test_an_unsure_lease_is_renewed_before_the_function(backend: WatchedBackend) -> None:
    """N-25, L-10: the process stood still between the reply of the claim and the function."""
    once, work = Once(backend, scope="s", lease=0.2), Count()
    # Another call has the key by then, and has ended.
    other = Once(backend.inner, scope="s")
    gone = threading.Event()

    def stand_still(claim: Claim) -> None:
        backend.inner.delete(claim.record_id)
        other.run("k", Count("the other one's"), payload=1)
        gone.wait(0.3)

    backend.after_claim.append(stand_still)
    assert once.run("k", work, payload=1) == "the other one's"
    assert work.calls == 0


def test_each_decision_is_an_event(backend: WatchedBackend) -> None:
    """N-23."""
    listener = Listener()
    once = Once(backend, scope="s", on_event=listener)
    once.run("k", Count(), 1)
    once.run("k", Count(), 1)
    with pytest.raises(KeyReused):
        once.run("k", Count(), 2)
    with pytest.raises(ZeroDivisionError):
        once.run("f", Count(ZeroDivisionError()))
    assert listener.kinds() == [
        events.Claimed, events.Completed, events.Replayed, events.KeyReused, events.Claimed, events.Failed,
    ]  # fmt: skip
    assert listener.problems == []


# Ends


def test_an_end_of_the_process_in_the_middle_goes_by_on_abandoned(backend: WatchedBackend) -> None:
    """N-11: SystemExit is no failure of the work."""
    once = Once(backend, scope="s", on_abandoned="reject")
    with pytest.raises(SystemExit):
        once.run("k", Count(SystemExit()))
    with pytest.raises(OutcomeUnknown):
        once.run("k", Count())


def test_a_stage_that_is_never_awaited_keeps_no_result(backend: WatchedBackend) -> None:
    """N-12, O-36."""
    import asyncio

    once = Once(backend, scope="s")

    async def forgetful() -> str:
        idem.arun("charge", Count())
        return "made"

    async def main() -> None:
        with pytest.raises(NotCommitted, match="charge"):
            await once.arun("k", forgetful)

    with pytest.warns(RuntimeWarning, match="never awaited"):
        asyncio.run(main())
    assert Fail in asked(backend)
    assert Complete not in asked(backend)


@pytest.mark.parametrize("error", [InProgress("busy", 3.0), TooManyKeys("full", 4.0), OutcomeUnknown("unknown", True)])
def test_errors_can_be_pickled(error: Any) -> None:
    """Task queues pickle the errors that a task raises."""
    make, arguments, *state = error.__reduce__()  # what pickle calls
    again = make(*arguments)
    again.__dict__.update(*(each for each in state if each))
    assert (type(again), str(again)) == (type(error), str(error))
    assert vars(again) == vars(error)


def test_a_record_that_is_no_result_is_not_read(backend: WatchedBackend) -> None:
    """N-01: such as one of a newer version."""
    from open_idempotency._core.models import Response
    from open_idempotency._core.stored_response import encode_response

    once = Once(backend, scope="s")
    with once.begin("k", payload=1) as attempt:
        assert attempt.attempt is not None
        lease = attempt.attempt.lease
        assert lease is not None
        attempt.complete(1)
    backend.inner.delete(lease.record_id)
    claimed: Any = backend.inner.claim(Claim(lease.record_id, lease.fingerprint, b"o" * 16, 30, 60))
    backend.inner.complete(Complete(claimed.lease, encode_response(Response(200, [], b"[]"))))
    with pytest.raises(RecordUnreadable):
        once.run("k", Count(), payload=1)
    assert Release not in asked(backend)


# Forgetting while an attempt runs, and what operators find


def _on_a_clock_that_is_slow() -> MemoryBackend:
    return MemoryBackend(clock=lambda: time.time() - 3600)


def test_a_live_attempt_is_not_forgotten_by_a_machine_whose_clock_is_ahead() -> None:
    """N-17, N-16: the backend's clock decides whether the attempt is alive, so no second attempt runs beside it."""
    once = Once(_on_a_clock_that_is_slow(), scope="invoices")
    with once.begin("k", payload=None) as attempt:
        assert once.status("k").alive
        with pytest.raises(InProgress):
            once.forget("k")
        attempt.complete("made")
    assert once.run("k", Count("again"), payload=None) == "made"


@pytest.mark.anyio
async def test_a_live_attempt_is_not_forgotten_by_a_task_on_a_machine_whose_clock_is_ahead() -> None:
    """N-17, N-16."""
    once = Once(_on_a_clock_that_is_slow(), scope="invoices")
    async with once.begin("k", payload=None) as attempt:
        assert (await once.astatus("k")).alive
        with pytest.raises(InProgress):
            await once.aforget("k")
        attempt.complete("made")
    assert await once.aforget("k")
    assert not await once.aforget("k")


class _ClaimedBetween(MemoryBackend):
    """A backend on which another worker claims the record after the next ``get``."""

    def __init__(self) -> None:
        super().__init__()
        self.claims: list[Claim] = []

    def get(self, c: Get, /) -> Record | None:
        found = super().get(c)
        while self.claims:
            self.claim(self.claims.pop())
        return found


def test_an_attempt_that_begins_while_its_key_is_forgotten_keeps_the_key() -> None:
    """N-17: only the record that was read is deleted, in one atomic call."""
    backend = _ClaimedBetween()
    once = Once(backend, scope="invoices")
    with pytest.raises(RuntimeError):
        once.run("k", Count(RuntimeError("failed")), payload=None)
    (failed,) = backend.scan()
    backend.claims.append(Claim(failed.record_id, failed.fingerprint, b"o" * 16, 60.0, 60.0))
    with pytest.raises(InProgress):
        once.forget("k")
    (record,) = backend.scan()
    assert record.owner == b"o" * 16


def test_a_record_says_its_scope_and_its_worker_to_operators(backend: WatchedBackend) -> None:
    """N-31: commands can name stuck work, and erasing a caller does not count it as a record of an unknown caller."""
    once = Once(backend, scope="invoices")
    once.run("order-7", Count(), payload=None)
    once.run("order-8", Count(), payload=None)
    first, second = map(About.of, backend.scan())
    assert (first.method, first.route) == ("", "invoices")
    assert first.holder == f"{socket.gethostname()}:{os.getpid()}"
    assert first.caller == second.caller != b""
    assert first.key != second.key
    assert operations.stats(backend).routes == {"invoices": 2}
    erasure = operations.erase(backend, IdempotencyPolicy(), user=7)
    assert (erasure.found, erasure.unknown) == ((), 0)


# One block, entered twice at the same time


class _SlowToClaim(MemoryBackend):
    """A backend whose claim returns when the block was entered a second time."""

    def __init__(self) -> None:
        super().__init__()
        self.claiming, self.may_return = threading.Event(), threading.Event()

    def claim(self, c: Claim, /) -> ClaimResult:
        self.claiming.set()
        assert self.may_return.wait(20)
        return super().claim(c)


def test_a_block_that_two_threads_enter_at_once_runs_in_one_of_them() -> None:
    """N-04: both claims would have one owner, and so both would get the lease."""
    backend = _SlowToClaim()
    block = Once(backend, scope="invoices").begin("k", payload=None)
    entered: list[str] = []

    def enter() -> None:
        with block as attempt:
            entered.append("first")
            attempt.complete("made")

    thread = threading.Thread(target=enter)
    thread.start()
    try:
        assert backend.claiming.wait(20)
        with pytest.raises(RuntimeError, match="entered already"), block:
            entered.append("second")
    finally:
        backend.may_return.set()
        thread.join(20)
    assert entered == ["first"]


def test_a_block_that_was_refused_is_not_entered_again(once: Once) -> None:
    """N-04: its owner may have been withdrawn, so a later use needs a claim of its own."""
    threads: list[type[BaseException]] = []
    with once.begin("k", payload=None) as first:
        second = once.begin("k", payload=None)
        with pytest.raises(KeyNested), second:
            pass

        def enter() -> None:
            for _ in range(2):
                try:
                    with second:
                        pass
                except Exception as error:
                    threads.append(type(error))

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join(20)
        first.complete(1)
    assert threads == [InProgress, RuntimeError]


# Payloads that hide something


class _Card(pydantic.BaseModel):
    number: pydantic.SecretStr


class _Shown(_Card):
    @pydantic.field_serializer("number")
    def _write(self, number: pydantic.SecretStr) -> str:
        return number.get_secret_value()


class _Wallet(pydantic.BaseModel):
    cards: dict[str, list[_Card]]


@pytest.mark.parametrize(
    "payload",
    [
        _Card(number=pydantic.SecretStr("4111")),
        {"card": _Card(number=pydantic.SecretStr("4111"))},
        _Wallet(cards={"main": [_Card(number=pydantic.SecretStr("4111"))]}),
    ],
    ids=["field", "member", "deep"],
)
def test_a_payload_whose_secret_is_written_as_stars_is_refused(
    once: Once, backend: WatchedBackend, payload: object
) -> None:
    """N-06: a call with another secret would get the result of this one."""
    with pytest.raises(PayloadRejected, match="hides a secret") as refused:
        once.run("k", Count(), payload=payload)
    assert "4111" not in str(refused.value)
    assert list(backend.scan()) == []


_FINGERPRINT = """
import pydantic
from open_idempotency._stages.once_calls import fingerprint_of

class Order(pydantic.BaseModel):
    tags: set[str] = set("abcdef")
    groups: dict[int, frozenset[frozenset[str]]] = {1: frozenset({frozenset("uvw"), frozenset("xyz")})}
    lines: list[str] = ["b", "a"]

print(fingerprint_of({"order": Order()}, None, "it").hex())
print(fingerprint_of({"order": Order(lines=["a", "b"])}, None, "it").hex())
"""


def test_the_sets_of_a_model_are_the_same_payload_in_each_process() -> None:
    """N-06, N-01: the hash of a text differs by process, and so does the order of a set of texts; the order of a list
    does not.
    """
    found = {
        subprocess.run(
            [sys.executable, "-c", _FINGERPRINT],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        for seed in "1234"
    }
    (only,) = found
    assert len(set(only.split())) == 2


@pytest.mark.parametrize("secret", [b"4111", b"4222"])
def test_a_payload_whose_model_hides_bytes_is_refused(once: Once, backend: WatchedBackend, secret: bytes) -> None:
    """N-06."""
    with pytest.raises(PayloadRejected, match="hides a secret"):
        once.run("k", Count(), payload=_Sealed(code=pydantic.SecretBytes(secret)))
    assert list(backend.scan()) == []


class _Sealed(pydantic.BaseModel):
    code: pydantic.SecretBytes


def test_a_payload_whose_model_writes_its_secret_is_compared(once: Once) -> None:
    """N-06: an empty secret equals only itself."""
    once.run("k", Count(), payload=_Shown(number=pydantic.SecretStr("4111")))
    with pytest.raises(KeyReused):
        once.run("k", Count(), payload=_Shown(number=pydantic.SecretStr("4222")))
    assert once.run("empty", Count(), payload=_Card(number=pydantic.SecretStr(""))) == "made"


class _Spare(pydantic.BaseModel):
    number: pydantic.SecretStr | None = None


def test_a_result_that_hides_a_secret_is_not_stored_as_stars(backend: WatchedBackend) -> None:
    """S-09, N-07: the call itself gets it, later calls raise, and the log says what to do."""
    listener = Listener()
    once, card = Once(backend, scope="invoices", on_event=listener), _Spare(number=pydantic.SecretStr("4111"))
    create = Count(card)
    assert once.run("k", create, returns=_Spare, payload=1) is card
    with pytest.raises(OutcomeUnknown, match="_Spare"):
        once.run("k", create, returns=_Spare, payload=1)
    assert create.calls == 1
    (reported,) = [event for event in listener.seen if isinstance(event, events.ResultNotKept)]
    assert "get_secret_value()" in reported.cure


def test_a_declared_result_that_hides_a_secret_fails_before_the_effect(once: Once) -> None:
    """S-09, N-07."""
    create = Count()
    with pytest.raises(StageValueError, match=r"SecretStr.*get_secret_value\(\)"):
        once.run("k", create, returns=_Card, payload=1)
    assert create.calls == 0
