"""Work that a request does not cost: counts, never times."""

from __future__ import annotations

import asyncio
import gc
import io
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import Depends, FastAPI
from prometheus_client import CollectorRegistry

from open_idempotency import events, rules
from open_idempotency._core.models import Response
from open_idempotency._core.notify import everyday_log
from open_idempotency._engine import event_log
from open_idempotency._starlette import at_call
from open_idempotency.asgi import IdempotencyMiddleware
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.fastapi import IdempotencyMiddleware as FastApiMiddleware
from open_idempotency.fastapi import idempotent
from open_idempotency.telemetry import prometheus
from open_idempotency.wsgi import IdempotencyMiddleware as WsgiMiddleware
from tests.unit.builders import Listener

KEY = b"0123456789abcdef"
BODY = b"b" * 5_000
SENT = b"a" * 5_000
Message = dict[str, Any]


@pytest.fixture(autouse=True)
def _nothing_else_is_counted() -> Iterator[None]:
    """Garbage of other tests is collected before, since its finalizers would count as calls of the library."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def _app(scope: Any, receive: Any, send: Any) -> None:
    scope["received"] = await receive()
    await send({"type": "http.response.start", "status": 201, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": SENT})


async def _post(
    app: Any, body: bytes = BODY, key: bytes | None = KEY, method: str = "POST"
) -> tuple[Message, list[Message]]:
    """The scope and the messages of one request."""
    headers = [(b"host", b"a"), *([] if key is None else [(b"idempotency-key", key)])]
    scope: Message = {"type": "http", "method": method, "path": "/charges", "query_string": b"", "headers": headers}
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return scope, sent


@contextmanager
def count_made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[type]]:
    """The classes of the events that are created in the block."""
    made: list[type] = []
    kinds = [each for each in vars(events).values() if isinstance(each, type) and issubclass(each, events.Event)]
    with monkeypatch.context() as patched:
        for kind in kinds:
            patched.setattr(kind, "__init__", _noting(kind, made))
        yield made


def _noting(kind: type, made: list[type]) -> Any:
    original = kind.__init__

    def noting(self: Any, *args: Any, **kwargs: Any) -> None:
        made.append(type(self))
        original(self, *args, **kwargs)

    return noting


@pytest.mark.parametrize("listener", [None, Listener()], ids=["nobody listens", "somebody listens"])
def test_an_event_is_made_only_where_somebody_listens(
    listener: Listener | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a listener a new key, its replay and a mismatch create no event; a problem creates one for the log."""
    app = IdempotencyMiddleware(_app, "memory://", on_event=listener)
    with count_made(monkeypatch) as made:
        asyncio.run(_post(app))
        asyncio.run(_post(app))
        asyncio.run(_post(app, b"other"))
    everyday = [events.Claimed, events.Completed, events.Replayed, events.KeyReused] if listener else []
    assert made == [*everyday, events.ProblemSent]


def test_a_reference_is_made_only_for_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """O-32: other requests do not pay for the random bytes."""
    asked: list[int] = []
    monkeypatch.setattr(
        event_log, "os", SimpleNamespace(urandom=lambda count: asked.append(count) or os.urandom(count))
    )
    app = IdempotencyMiddleware(_app, "memory://")
    asyncio.run(_post(app))
    asyncio.run(_post(app))
    assert asked == []
    asyncio.run(_post(app, b"other"))
    assert len(asked) == 1


def test_the_log_costs_two_questions_for_a_new_key_and_one_for_a_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    """O-33: each decision checks once whether level DEBUG is on; if not, nothing is created and nothing logged."""
    asked: list[int] = []
    logger = logging.getLogger("open_idempotency")
    monkeypatch.setattr(logging.Logger, "log", _forbidden)
    monkeypatch.setattr(everyday_log, "on", lambda: asked.append(1) or logger.isEnabledFor(logging.DEBUG))
    app = IdempotencyMiddleware(_app, "memory://")
    with count_made(monkeypatch) as made:
        asyncio.run(_post(app))
        assert len(asked) == 2
        asyncio.run(_post(app))
        assert len(asked) == 3
        asyncio.run(_post(app, key=None))
        assert len(asked) == 3
    assert made == []


def _forbidden(*_: object) -> None:
    raise AssertionError("it logs where the level is off")


def _request_files(**fields: Any) -> set[str]:
    """The files of the package that a new key, its replay and a mismatch pass through."""
    app = IdempotencyMiddleware(_app, "memory://", **fields)
    asyncio.run(_post(app, key=b"fedcba9876543210"))
    seen: set[str] = set()

    def note(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            seen.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        for body in (BODY, BODY, b"other"):
            asyncio.run(_post(app, body))
    finally:
        sys.setprofile(None)
    return {name for name in seen if "open_idempotency" in name}


@pytest.mark.parametrize("listener", [None, Listener()], ids=["nobody listens", "somebody listens"])
def test_a_request_passes_nothing_of_telemetry_where_it_is_off(listener: Listener | None) -> None:
    """P-37: also with a plain listener; with telemetry it does."""

    def measured(files: set[str]) -> set[str]:
        return {name for name in files if "open_idempotency/telemetry/" in name or name.endswith("measuring.py")}

    assert measured(_request_files(on_event=listener)) == set()
    assert measured(_request_files(on_event=prometheus(CollectorRegistry())))


def test_nothing_is_said_of_a_request_where_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """P-25: neither route nor trace is read for a new key and a replay."""
    monkeypatch.setattr(event_log, "context_of", _forbidden)
    app = IdempotencyMiddleware(_app, "memory://")
    asyncio.run(_post(app))
    asyncio.run(_post(app))
    with pytest.raises(AssertionError, match="where the level is off"):
        asyncio.run(_post(app, b"other"))


def test_a_body_in_one_message_reaches_the_application_uncopied() -> None:
    """The application gets the very object of the server."""
    scope, _ = asyncio.run(_post(IdempotencyMiddleware(_app, "memory://")))
    assert scope["received"]["body"] is BODY


def test_a_response_in_one_message_reaches_the_client_uncopied() -> None:
    """The client gets the very object of the application."""
    _, sent = asyncio.run(_post(IdempotencyMiddleware(_app, "memory://")))
    assert sent[-1]["body"] is SENT


def test_what_a_hook_redacts_is_the_applications_own_body() -> None:
    """The body is copied only into the record."""
    seen: list[Response] = []

    def redact(response: Response) -> Response:
        seen.append(response)
        return response

    asyncio.run(_post(IdempotencyMiddleware(_app, "memory://", redact=redact)))
    assert seen[0].body is SENT


def test_a_wsgi_response_in_one_piece_reaches_the_server_uncopied() -> None:
    """The server gets the very list that the application returned."""
    whole = [SENT]

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("201 Created", [("Content-Type", "text/plain")])
        return whole

    environ = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/charges",
        "HTTP_IDEMPOTENCY_KEY": KEY.decode(),
        "CONTENT_LENGTH": "0",
        "wsgi.input": io.BytesIO(),
    }
    assert WsgiMiddleware(app, "memory://")(environ, lambda *_: None) is whole


def test_requests_start_no_thread_but_the_one_heartbeat() -> None:
    """L-01: one thread serves all requests of a backend, whatever their number."""
    app = IdempotencyMiddleware(_app, MemoryBackend())

    async def many() -> None:
        await _post(app, key=b"first-of-them-all")
        before = set(threading.enumerate())
        await asyncio.gather(*(_post(app, key=b"%016d" % number) for number in range(50)))
        assert set(threading.enumerate()) <= before

    asyncio.run(many())


def test_without_a_key_no_backend_no_thread_and_no_event_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request passes through, with the server's own ``receive`` and ``send``."""
    given: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        given.extend((scope, receive, send))

    async def receive() -> Message:
        raise AssertionError("nobody reads")

    async def send(message: Message) -> None:
        raise AssertionError("nobody sends")

    before = set(threading.enumerate())
    scope = {"type": "http", "method": "POST", "path": "/charges", "query_string": b"", "headers": []}
    with count_made(monkeypatch) as made:
        asyncio.run(IdempotencyMiddleware(app, "memory://", on_event=Listener())(scope, receive, send))
    assert [one is other for one, other in zip(given, (scope, receive, send), strict=True)] == [True] * 3
    assert made == []
    assert set(threading.enumerate()) <= before


async def _nothing() -> None:
    """A dependency."""


async def _warm_and_count(app: Any, method: str = "POST") -> list[str]:
    """The functions of this package that the second of two requests without a key calls."""
    await _post(app, key=None, method=method)
    called: list[str] = []

    def note(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_globals.get("__name__", "").startswith("open_idempotency."):
            called.append(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        await _post(app, key=None, method=method)
    finally:
        sys.setprofile(None)
    return called


def test_without_a_key_only_the_places_of_a_claim_are_passed_under_fastapi(monkeypatch: pytest.MonkeyPatch) -> None:
    """LIMITS 2, O-18: the middleware, and the three functions in which a claim would be made."""
    monkeypatch.setattr(rules, "registry", rules.RuleRegistry())
    app = FastAPI()
    app.add_middleware(FastApiMiddleware, backend="memory://")

    @app.post("/charges", dependencies=[Depends(_nothing)])
    async def create() -> int:
        return 1

    at_call.hook()  # in this process another test may have been the first to import FastAPI
    called = asyncio.run(_warm_and_count(app))
    places = {"handle_and_claim", "solve_and_claim", "run_or_replay", "_take_stand_in"}
    assert set(called) == {"__call__", "__init__", *places}  # the attempt is made for idem
    assert len(called) <= 8


def test_a_look_at_other_spellings_of_the_header_costs_no_call() -> None:
    """O-36: a request without a key costs no call for it, under plain ASGI."""
    assert asyncio.run(_warm_and_count(IdempotencyMiddleware(_app, "memory://"))) == ["__call__", "__init__"]
    ruled = IdempotencyMiddleware(_app, "memory://", rules={"/charges": {"ttl": 60}})
    assert not {"key_among", "warn"}.intersection(asyncio.run(_warm_and_count(ruled)))


def test_where_rules_are_used_a_get_calls_nothing_more_under_fastapi() -> None:
    """O-25: whether a rule is read is checked only for requests that no middleware has seen."""
    app = FastAPI()
    app.add_middleware(FastApiMiddleware, backend="memory://")

    @app.api_route("/charges", methods=["GET", "POST"])
    @idempotent(required=True)
    async def create() -> int:
        return 1

    at_call.hook()
    called = asyncio.run(_warm_and_count(app, "GET"))
    assert "handle_and_claim" in called
    assert not {"is_unseen", "look_at_route", "look_at_endpoint", "rules_on", "treat"}.intersection(called)
