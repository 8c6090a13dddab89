"""Custom adapters: the sync and the async form, and the example on ``http.server``."""

from __future__ import annotations

import asyncio
import http.client
import threading
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from typing import Any

import pytest
import trio

from examples.adapter_http_server import IdempotentHandler
from open_idempotency import BackendUnavailable, IdempotencyPolicy, events, idem
from open_idempotency.adapter import Adapter, AsyncAdapter
from open_idempotency.backend import AsyncBackend, Complete, Completed
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.backends.threaded import ThreadedBackend
from open_idempotency.hooks import Request, Response

CREATED = Response(201, [(b"content-type", b"text/plain")], b"done")


def _request(key: str = "a-key-of-32-characters-or-so-0001", path: bytes = b"/pay") -> Request:
    return Request("POST", path, b"", [(b"idempotency-key", key.encode())], native=None)


Call = Callable[..., Response]


@pytest.fixture(params=["sync", "asyncio", "trio"])
def form(request: pytest.FixtureRequest) -> str:
    form: str = request.param
    return form


@pytest.fixture
def reported() -> list[events.Event]:
    return []


@pytest.fixture
def call(form: str, reported: list[events.Event]) -> Call:
    """Call ``handle`` of either form; the handler is a sync function."""
    policy = IdempotencyPolicy(on_event=reported.append, max_request_bytes=100)
    if form == "sync":
        return Adapter("memory://", policy=policy).handle
    adapter = AsyncAdapter("memory://", policy=policy)

    def run(request: Request, body: bytes, handler: Callable[[], Response], **more: Any) -> Response:
        async def main() -> Response:
            async def handle() -> Response:
                return handler()

            return await adapter.handle(request, body, handle, **more)

        return asyncio.run(main()) if form == "asyncio" else trio.run(main)

    return run


def test_a_retry_gets_the_stored_response_and_the_handler_runs_once(call: Call) -> None:
    """O-02, R-01: first run and replay; the framework says who the caller is."""
    runs: list[int] = []

    def handler() -> Response:
        runs.append(1)
        return CREATED

    first = call(_request(), b"{}", handler, user="ada")
    again = call(_request(), b"{}", handler, user="ada")
    assert (first.status, first.body, len(runs)) == (201, b"done", 1)
    assert (again.status, again.body) == (201, b"done")
    assert (b"idempotent-replayed", b"true") in [(name.lower(), value) for name, value in again.headers]
    call(_request(), b"{}", handler, user="eve")
    assert len(runs) == 2


def test_another_body_under_the_same_key_is_refused(call: Call) -> None:
    """O-05: 422."""
    call(_request(), b"{}", lambda: CREATED)
    assert call(_request(), b"[1]", lambda: CREATED).status == 422


def test_a_request_that_runs_already_is_refused(call: Call) -> None:
    """O-03: 409 while the first request runs."""
    inner: list[int] = []

    def handler() -> Response:
        # On a thread of its own, as a second request comes on one.
        second = threading.Thread(target=lambda: inner.append(call(_request(), b"{}", lambda: CREATED).status))
        second.start()
        second.join(20)
        return CREATED

    assert call(_request(), b"{}", handler).status == 201
    assert inner == [409]


def _fail() -> Response:
    raise ZeroDivisionError


def test_an_error_fails_the_attempt_and_is_raised_on(call: Call, reported: list[events.Event]) -> None:
    """L-04: the attempt counts, and the next request runs at once."""
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            call(_request(), b"{}", _fail)
    assert call(_request(), b"{}", lambda: CREATED).status == 201
    assert [event.attempt for event in reported if isinstance(event, events.Claimed)] == [1, 2, 3]
    assert len([event for event in reported if isinstance(event, events.Failed)]) == 2


def _on_either_loop(form: str, main: Callable[[], Any]) -> None:
    asyncio.run(main()) if form == "asyncio" else trio.run(main)


@pytest.mark.parametrize("form", ["asyncio", "trio"])
def test_an_async_retry_resumes_behind_the_last_stage(form: str) -> None:
    """S-01: the stage of the failed attempt is not repeated."""
    adapter = AsyncAdapter("memory://")
    charges: list[int] = []

    async def charge() -> int:
        charges.append(1)
        return len(charges)

    async def handler() -> Response:
        await idem.arun("charge", charge)
        if not idem.resumed:
            raise ZeroDivisionError
        return CREATED

    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            await adapter.handle(_request(), b"{}", handler)
        assert (await adapter.handle(_request(), b"{}", handler)).status == 201
        assert charges == [1]

    _on_either_loop(form, main)


def test_a_cancelled_handler_fails_its_attempt_and_the_next_request_runs_at_once() -> None:
    """L-04: the next request does not wait for the lease."""
    adapter = AsyncAdapter("memory://")

    async def main() -> None:
        started = asyncio.Event()

        async def handler() -> Response:
            started.set()
            await asyncio.Event().wait()
            return CREATED

        async def again() -> Response:
            return CREATED

        task = asyncio.create_task(adapter.handle(_request(), b"{}", handler))
        await started.wait()
        assert (await adapter.handle(_request(), b"{}", again)).status == 409
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await adapter.handle(_request(), b"{}", again)).status == 201

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_method_that_is_not_covered_runs_without_protection(call: Call) -> None:
    """The policy's ``methods`` apply, as in every adapter."""
    got = Request("GET", b"/pay", b"", [(b"idempotency-key", b"a-key-of-32-characters-or-so-0001")], native=None)
    assert [call(got, b"", lambda: CREATED).status for _ in range(2)] == [201, 201]


def test_scope_sees_the_request_of_the_framework(form: str) -> None:
    """``native`` is whatever object the adapter passes, in either form."""
    seen: list[object] = []

    def scope(request: Request) -> str:
        seen.append(request.native)
        return "ada"

    mine = Request(
        "POST", b"/pay", b"", [(b"idempotency-key", b"a-key-of-32-characters-or-so-0001")], native="the framework's"
    )
    if form == "sync":
        Adapter("memory://", scope=scope).handle(mine, b"", lambda: CREATED)
    else:
        adapter = AsyncAdapter("memory://", scope=scope)

        async def handler() -> Response:
            return CREATED

        async def main() -> None:
            await adapter.handle(mine, b"", handler)

        _on_either_loop(form, main)
    assert seen == ["the framework's"]


def test_a_body_over_the_limit_is_refused_before_the_handler(call: Call) -> None:
    """O-07: 413."""
    assert call(_request(), b"x" * 101, pytest.fail).status == 413


def test_a_handler_that_returns_something_else_fails_its_attempt(call: Call) -> None:
    """Bad input: the message names the required type."""
    with pytest.raises(TypeError, match=r"open_idempotency\.hooks\.Response, not str"):
        call(_request(), b"{}", lambda: "done")


def test_a_body_that_is_no_bytes_fails_its_attempt(call: Call, reported: list[events.Event]) -> None:
    """Bad input: the next request does not wait for the lease of a response that cannot be stored."""
    wrong: Any = "done"
    with pytest.raises(TypeError, match="bytes, not str"):
        call(_request(), b"{}", lambda: Response(201, [], wrong))
    assert any(isinstance(event, events.Failed) for event in reported)


class _FailsToComplete(MemoryBackend):
    """A backend that becomes unavailable while the handler runs."""

    def complete(self, c: Complete, /) -> Completed:
        raise BackendUnavailable("away")

    def to_async(self) -> AsyncBackend:
        return ThreadedBackend(self)


@pytest.mark.parametrize("form", ["sync", "asyncio"])
def test_a_response_that_is_not_on_record_says_so(form: str) -> None:
    """L-08: the client gets the response, with a mark."""
    policy = IdempotencyPolicy(respond_within=0.05, record_within=0.1)

    async def main() -> Response:
        async def handler() -> Response:
            return CREATED

        return await AsyncAdapter(_FailsToComplete(), policy=policy).handle(_request(), b"", handler)

    if form == "sync":
        response = Adapter(_FailsToComplete(), policy=policy).handle(_request(), b"", lambda: CREATED)
    else:
        response = asyncio.run(main())
    assert (response.status, response.body) == (201, b"done")
    assert (b"idempotency-status", b"unrecorded") in [(name.lower(), value) for name, value in response.headers]


class _Shop(IdempotentHandler):
    charges: list[bytes]
    broken: bool

    def respond(self, body: bytes) -> Response:
        idem.run("charge", self.charges.append, body)
        if type(self).broken:
            raise RuntimeError("the mail server is away")
        return CREATED

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing, to keep the test's output clean."""


@pytest.fixture
def shop() -> Iterator[tuple[type[_Shop], int]]:
    class Shop(_Shop):
        adapter = Adapter("memory://", required=True)
        charges: list[bytes] = []
        broken = False

    server = ThreadingHTTPServer(("127.0.0.1", 0), Shop)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield Shop, server.server_address[1]
    server.shutdown()
    thread.join(20)
    server.server_close()


def _post(port: int, body: bytes, key: str | None = "a-key-of-32-characters-or-so-0001") -> tuple[int, str | None]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    headers = {} if key is None else {"Idempotency-Key": key}
    connection.request("POST", "/pay", body, headers)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status, response.getheader("Idempotent-Replayed")


def test_the_example_runs_once_replays_refuses_and_resumes(shop: tuple[type[_Shop], int]) -> None:
    """O-02, O-05, O-06, S-01: the adapter of the docs on ``http.server``, over HTTP."""
    application, port = shop
    application.broken = True
    assert _post(port, b"5") == (500, None)
    application.broken = False
    assert _post(port, b"5") == (201, None)
    assert application.charges == [b"5"]
    assert _post(port, b"5") == (201, "true")
    assert _post(port, b"6")[0] == 422
    assert _post(port, b"5", None)[0] == 400
    assert application.charges == [b"5"]
