"""Two services on one backend, one of which passes its caller's key and credentials on to the other."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import fastapi
import flask
import httpx
import pytest
import uvicorn
from werkzeug.serving import make_server

from open_idempotency import events, open_backend
from open_idempotency._core.keys import owner_at_host
from open_idempotency._core.notify import Advice
from open_idempotency.fastapi import IdempotencyMiddleware
from open_idempotency.flask import Idempotency
from open_idempotency.policy import IdempotencyPolicy
from tests.docs.served import listening
from tests.unit.builders import Listener, request_of
from tests.unit.wsgi.wsgi_server import environ, hello, serve

SECONDS = 20.0


def payments(store: str, **policy: Any) -> flask.Flask:
    """The inner service: it charges on every path."""
    app = flask.Flask("payments")
    app.add_url_rule("/<path:path>", "charge", lambda path: ({"charged": path}, 201), methods=["POST"])
    Idempotency(app, store, **policy)
    return app


def orders(store: str, charge: Callable[[fastapi.Request, bytes], httpx.Response], **policy: Any) -> fastapi.FastAPI:
    """The outer service: it responds with the status of the charge."""
    app = fastapi.FastAPI()
    app.add_middleware(IdempotencyMiddleware, backend=store, **policy)

    def order(request: fastapi.Request) -> fastapi.Response:
        charged = charge(request, b'{"item":1}')
        return fastapi.Response(charged.content, 201 if charged.status_code == 201 else 502)

    app.post("/orders", status_code=201)(order)
    return app


@contextmanager
def served_by_werkzeug(app: Any) -> Iterator[str]:
    """Serve the application on a real server, in a thread; yield its address."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(SECONDS)
        server.server_close()


@contextmanager
def served_by_uvicorn(app: Any) -> Iterator[str]:
    """The same for ASGI."""
    with listening() as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield "http://{}:{}".format(*listener.getsockname())
        finally:
            server.should_exit = True
            thread.join(SECONDS)


class Both:
    """The two services, and the events of both."""

    def __init__(self, stack: ExitStack, store: str, path: str, names: tuple[str, str]) -> None:
        self.reported = {"orders": Listener(), "payments": Listener()}
        self.responses: list[httpx.Response] = []
        behind = payments(store, application=names[1], on_event=self.reported["payments"])
        address = stack.enter_context(served_by_werkzeug(behind))

        def charge(request: fastapi.Request, body: bytes) -> httpx.Response:
            passed = {name: request.headers[name] for name in ("idempotency-key", "authorization", "content-type")}
            self.responses.append(httpx.post(f"{address}{path}", content=body, headers=passed, timeout=SECONDS))
            return self.responses[-1]

        in_front = orders(store, charge, application=names[0], on_event=self.reported["orders"])
        self.address = stack.enter_context(served_by_uvicorn(in_front))
        self.fields = {"idempotency-key": str(uuid4()), "authorization": "Bearer a", "content-type": "application/json"}

    def order(self) -> int:
        """The client's request, or a retry of it."""
        url = f"{self.address}/orders"
        return httpx.post(url, content=b'{"item":1}', headers=self.fields, timeout=SECONDS).status_code

    def shared(self) -> list[events.NameShared]:
        """The reports of the inner service."""
        return [event for event in self.reported["payments"].seen if isinstance(event, events.NameShared)]


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Callable[..., Both]]:
    """Starts the two services on a backend of their own."""
    with ExitStack() as stack:
        yield lambda path, names: Both(stack, f"sqlite:///{tmp_path}/idem.db", path, names)


#: the path on which the outer service sends its request on, and the status that it gets: for another request, and for
#: the same request
REFUSALS = [("/charges", 422), ("/orders", 409)]


@pytest.mark.parametrize(("path", "status"), REFUSALS)
def test_two_services_under_one_name_refuse_each_other_for_ever_and_say_why(
    both: Callable[..., Both], path: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """O-22: the detail of the problem, a warning and an event name ``application=``; warning and event come once."""
    two = both(path, ("", ""))
    assert [two.order() for _ in range(3)] == [502, 502, 502]
    assert [response.status_code for response in two.responses] == [status] * 3
    assert all("application=" in response.json()["detail"] for response in two.responses)
    assert [(event.method, event.path) for event in two.shared()] == [("POST", path)]
    warned = [r for r in caplog.records if r.levelno == logging.WARNING and "NameShared" in r.getMessage()]
    assert len(warned) == 1
    assert 'application="..."' in warned[0].getMessage()
    assert "Bearer" not in warned[0].getMessage()


@pytest.mark.parametrize(("path", "status"), REFUSALS)
@pytest.mark.parametrize("names", [("orders", "payments"), ("orders", ""), ("", "payments")])
def test_with_names_of_their_own_each_runs_once(
    both: Callable[..., Both], path: str, status: int, names: tuple[str, str]
) -> None:
    """O-22: this is the cure. One name is enough for two services; a third one without a name would share the other."""
    two = both(path, names)
    assert [two.order() for _ in range(2)] == [201, 201]
    assert len(two.responses) == 1
    assert two.shared() == []


def refused(*hosts: str, **policy: Any) -> list[type[events.Event]]:
    """The reports of a request, and of others with its key to these hosts."""
    from open_idempotency.wsgi import IdempotencyMiddleware as WsgiMiddleware

    listener = Listener()
    app = WsgiMiddleware(hello, "memory://", on_event=listener, **policy)
    for number, host in enumerate(hosts):
        sent = environ(b"%d" % number, HTTP_HOST=host)
        if not host:
            del sent["HTTP_HOST"]
        serve(app, sent)
    return [kind for kind in listener.kinds() if kind in (events.KeyReused, events.NameShared)]


def test_a_mistake_of_a_client_is_not_taken_for_two_services() -> None:
    """O-22: one host, in any case; no host; a policy that separates hosts, or has a name."""
    assert refused("a.example", *["A.example"] * 4) == [events.KeyReused] * 4
    assert refused("", *["a.example"] * 4) == [events.KeyReused] * 4
    assert refused("a.example", *[""] * 4) == [events.KeyReused] * 4
    assert refused("a.example", *["b.example"] * 4, application="shop") == [events.KeyReused] * 4
    assert refused("a.example", "b.example", scope_by_host=True) == []


def test_it_is_reported_once() -> None:
    """O-22: once for all refused requests."""
    assert refused("a", *"bbbbc") == [events.KeyReused] * 2 + [events.NameShared] + [events.KeyReused] * 3


def test_a_refusal_costs_no_further_call_before_the_third_by_one_record() -> None:
    """O-22: only the third in a row is suspicious; then the record is read once in ten seconds."""
    advice = Advice()
    assert [advice.may_look(b"one", now) for now in (0.0, 1.0, 2.0)] == [False, False, True]
    assert [advice.may_look(b"two", now) for now in (3.0, 4.0, 11.9, 12.0, 12.1)] == [False, False, False, True, False]
    advice.has_found()
    assert not advice.may_look(b"two", 1e9)


def test_what_is_remembered_of_refusals_is_bounded() -> None:
    """O-22: a client that invents keys does not fill the memory."""
    advice = Advice()
    assert not any(advice.may_look(b"%d" % number, 0.0) for number in range(1_000))
    assert len(advice._refusals) == 64
    assert not advice.may_look(b"999", 0.0)
    assert advice.may_look(b"999", 0.0)


def test_the_owner_of_a_claim_stays_its_own() -> None:
    """O-22, B-08: 16 bytes, of which the last nine are random."""
    request, policy = request_of(headers=[(b"host", b"a.example")]), IdempotencyPolicy()
    one, two = (owner_at_host(bytes([n]) * 16, request, policy) for n in (1, 2))
    assert (len(one), one[:7], one[7:]) == (16, two[:7], b"\x01" * 9)
    assert owner_at_host(b"o" * 16, request, IdempotencyPolicy(application="shop")) == b"o" * 16


def test_a_backend_that_fails_meanwhile_changes_no_response(tmp_path: Path) -> None:
    """O-22: the refusal is the same, and the failure is an event of its own."""
    from open_idempotency.backends.memory import MemoryBackend
    from open_idempotency.exceptions import BackendUnavailable
    from open_idempotency.wsgi import IdempotencyMiddleware as WsgiMiddleware

    class Blind(MemoryBackend):
        def get(self, record_id: bytes, /) -> Any:
            raise BackendUnavailable("no reads today")

    listener = Listener()
    app = WsgiMiddleware(hello, Blind(), on_event=listener)
    serve(app, environ(b"1", HTTP_HOST="a"))
    for _ in range(3):
        assert serve(app, environ(b"2", HTTP_HOST="b")).status.startswith("422")
    assert listener.kinds()[-2:] == [events.BackendFailed, events.KeyReused]


def test_the_store_of_the_two_has_one_record_of_both(tmp_path: Path, both: Callable[..., Both]) -> None:
    """O-22: so they refuse each other."""
    two = both("/charges", ("", ""))
    two.order()
    backend = open_backend(f"sqlite:///{tmp_path}/idem.db")
    assert len(list(backend.scan())) == 1
    backend.close()
