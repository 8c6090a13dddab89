"""However a request ends, its lease is not renewed any more: otherwise its key would be blocked for ``max_run``."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import flask
import pytest
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, HttpResponse

from open_idempotency import events, idem
from open_idempotency._engine import shutdown
from open_idempotency._engine.heartbeat import _Beats
from open_idempotency.asgi import IdempotencyMiddleware as AsgiMiddleware
from open_idempotency.backend import Claim, Complete, Fail, Leased, Release, Renew
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.exceptions import BackendUnavailable
from open_idempotency.flask import Idempotency
from open_idempotency.wsgi import IdempotencyMiddleware as WsgiMiddleware
from tests.django_project.calls import project
from tests.unit.builders import eventually
from tests.unit.wsgi.wsgi_server import KEY, environ, serve

LEASE = 0.6


class TimeLimit(BaseException):
    """An exception like gevent's ``Timeout``, which is no ``Exception``."""


class HookedBackend(MemoryBackend):
    """The memory backend with hooks that run in its calls: ``hooks`` once, ``hooks_each`` each time."""

    def __init__(self) -> None:
        super().__init__()
        self.hooks: dict[type, Callable[[Any], object]] = {}
        self.hooks_each: dict[type, Callable[[Any], object]] = {}

    def _run_hooks(self, command: Any) -> None:
        self.hooks.pop(type(command), lambda _: None)(command)
        self.hooks_each.get(type(command), lambda _: None)(command)

    def claim(self, c: Claim, /) -> Any:
        result = super().claim(c)
        self._run_hooks(c)
        return result

    def renew(self, c: Renew, /) -> Any:
        self._run_hooks(c)
        return super().renew(c)

    def complete(self, c: Complete, /) -> Any:
        self._run_hooks(c)
        return super().complete(c)

    def fail(self, c: Fail, /) -> None:
        self._run_hooks(c)
        super().fail(c)

    def release(self, c: Release, /) -> None:
        self._run_hooks(c)
        super().release(c)


class Site:
    """One adapter with a view that calls the test's function."""

    def __init__(self) -> None:
        self.backend = HookedBackend()
        self.app: Any = None
        self.act: Callable[[], int] = lambda: 201
        self.heard: Callable[[events.Event], object] = lambda _: None
        self.options: dict[str, Any] = {"lease": LEASE, "on_event": lambda event: self.heard(event)}
        self.runs = 0
        self.seen = 0

    def view(self) -> int:
        """The view of each adapter."""
        self.runs += 1
        self.seen = max(self.seen, self.watched)
        return self.act()

    @property
    def watched(self) -> int:
        """How many leases are renewed."""
        # A copy: threads of applications that end take themselves out.
        beats = [each for each in list(shutdown._leases.get()) if isinstance(each, _Beats)]
        return sum(len(each._watched) for each in beats if each._backend is self.backend)

    def send(self, body: bytes = b"") -> None:
        """Send one request with a key, however it ends."""
        with suppress(Exception, TimeLimit, asyncio.CancelledError):
            self.app(body)


def _asgi(site: Site) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        status = site.view()
        await asyncio.sleep(0)
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"x"})

    return _awaited(AsgiMiddleware(app, site.backend, **site.options))


def _wsgi(site: Site) -> Any:
    def app(made: Any, start_response: Any) -> Any:
        start_response(f"{site.view()} Said", [])
        return [b"x"]

    return _blocking(WsgiMiddleware(app, site.backend, **site.options))


def _wsgi_stream(site: Site) -> Any:
    def app(made: Any, start_response: Any) -> Any:
        start_response(f"{site.view()} Said", [])
        yield b"x"

    return _blocking(WsgiMiddleware(app, site.backend, **site.options))


def _flask(site: Site) -> Any:
    app = flask.Flask("tests.unit.engine.test_watched_leases")
    app.add_url_rule("/0", "view", lambda: ("x", site.view()), methods=["POST"])
    Idempotency(app, backend=site.backend, **site.options)
    return _blocking(app)


def _django(site: Site) -> Any:
    return _blocking(WSGIHandler())


def _django_async(site: Site) -> Any:
    return _awaited(ASGIHandler())


@contextmanager
def _project(site: Site, awaits: bool) -> Iterator[None]:
    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse("x", status=site.view())

    async def awaited(request: HttpRequest) -> HttpResponse:
        return view(request)

    settings = {f"IDEMPOTENCY_{name.upper()}": value for name, value in site.options.items()}
    with project(awaited if awaits else view, IDEMPOTENCY_BACKEND=site.backend, **settings):
        yield


def _blocking(app: Any) -> Any:
    return lambda body: serve(app, environ(body, PATH_INFO="/0"))


def _awaited(app: Any) -> Any:
    async def through(body: bytes) -> None:
        headers = [(b"idempotency-key", KEY.encode()), (b"content-length", b"%d" % len(body))]
        scope = {"type": "http", "method": "POST", "path": "/0", "query_string": b"", "headers": headers}
        parts = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> dict[str, Any]:
            for part in parts:
                return part
            await asyncio.Event().wait()  # the client stays
            raise AssertionError

        async def send(message: dict[str, Any]) -> None:
            pass

        await app(scope, receive, send)

    return lambda body: asyncio.run(through(body))


ADAPTERS = {
    "asgi": _asgi,
    "wsgi": _wsgi,
    "wsgi stream": _wsgi_stream,
    "flask": _flask,
    "django": _django,
    "django async": _django_async,
}


@pytest.fixture(params=list(ADAPTERS))
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """Each adapter."""
    made = Site()
    if "django" in request.param:
        with _project(made, "async" in request.param):
            made.app = ADAPTERS[request.param](made)
            yield made
    else:
        made.app = ADAPTERS[request.param](made)
        yield made


def _raises(error: BaseException) -> Callable[..., Any]:
    def act(*_: Any) -> Any:
        raise error

    return act


def _takes_over(site: Site) -> Callable[[Any], None]:
    """Another worker begins the second attempt while this process stands still."""

    def take_over(claim: Claim) -> None:
        time.sleep(1.2 * LEASE)
        result = site.backend.claim(replace(claim, owner=os.urandom(16)))
        assert isinstance(result, Leased)

    return take_over


@pytest.mark.parametrize("status", [201, 302, 401, 409, 500])
def test_a_view_that_returns(site: Site, status: int) -> None:
    """L-01: whether its response is stored or not."""
    site.act = lambda: status
    site.send()
    assert (site.runs, site.seen, site.watched) == (1, 1, 0)


@pytest.mark.parametrize("error", [ValueError("a"), TimeLimit(), asyncio.CancelledError()], ids=repr)
def test_a_view_that_raises(site: Site, error: BaseException) -> None:
    """L-01, L-04."""
    site.act = _raises(error)
    site.send()
    assert (site.runs, site.seen, site.watched) == (1, 1, 0)


def test_requests_for_which_no_view_runs(site: Site) -> None:
    """L-01: a replay, and a key that is reused for another body."""
    site.send()
    site.send()
    site.send(b"another")
    assert (site.runs, site.watched) == (1, 0)


def test_a_stage_in_doubt(site: Site) -> None:
    """L-01, S-04: the doubt is raised in the view."""

    def act() -> int:
        with idem.stage("charge", external=True):
            raise ConnectionError("the connection was lost")

    site.act = act
    site.send()
    site.send()
    assert (site.runs, site.watched) == (2, 0)


def test_a_claim_whose_listener_ends_the_request(site: Site) -> None:
    """L-01, L-11: between the claim and the view; the claim is released, and the next request runs."""

    def heard(event: events.Event) -> None:
        if isinstance(event, events.Claimed):
            raise TimeLimit

    site.heard = heard
    site.send()
    eventually(lambda: site.watched == 0)
    assert site.runs == 0
    site.heard = lambda _: None
    site.send()
    assert (site.runs, site.watched) == (1, 0)


def test_a_handler_that_must_not_begin(site: Site) -> None:
    """L-01, L-10: another attempt has taken over."""
    site.backend.hooks[Claim] = _takes_over(site)
    site.send()
    assert (site.runs, site.watched) == (0, 0)


@pytest.mark.parametrize("error", [BackendUnavailable("down"), ValueError("a"), TimeLimit()], ids=repr)
def test_a_question_before_the_handler_that_fails(site: Site, error: BaseException) -> None:
    """L-01, L-10: the owner of the lease is unknown, so nothing runs."""
    site.backend.hooks[Claim] = lambda _: time.sleep(1.2 * LEASE)
    # Each time: the heartbeat may renew before the question asks.
    site.backend.hooks_each[Renew] = _raises(error)
    site.send()
    eventually(lambda: site.watched == 0)
    assert (site.runs, site.watched) == (0, 0)


@pytest.mark.parametrize("status", [201, 409, 500])
@pytest.mark.parametrize("error", [BackendUnavailable("down"), ValueError("a"), TimeLimit()], ids=repr)
def test_an_end_that_is_not_recorded_at_once(site: Site, status: int, error: BaseException) -> None:
    """L-01, L-08: the lease is renewed until the end is recorded in the background, and no longer."""
    site.act = lambda: status
    for verb in (Complete, Release, Fail):
        site.backend.hooks[verb] = _raises(error)
    site.send()
    eventually(lambda: site.watched == 0)
    assert site.runs == 1


def test_a_lease_that_is_lost_while_the_view_runs(site: Site) -> None:
    """L-01, L-03."""
    claims: list[Claim] = []
    site.backend.hooks[Claim] = claims.append

    def act() -> int:
        site.backend.delete(claims[0].record_id)
        site.backend.claim(replace(claims[0], owner=os.urandom(16)))
        return 201

    site.act = act
    site.send()
    assert (site.runs, site.watched) == (1, 0)
