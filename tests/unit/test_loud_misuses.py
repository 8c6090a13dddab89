"""Misuses that would silently cost a second run: each is an error or a warning (O-36)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from django.http import HttpResponse
from django.test import AsyncClient, Client
from fastapi import Depends, FastAPI
from flask import Flask
from starlette.applications import Starlette

from open_idempotency import asgi, fastapi, rules, starlette, wsgi
from open_idempotency._flask import survey
from open_idempotency._routes import coverage
from open_idempotency.adapter import Adapter, AsyncAdapter
from open_idempotency.exceptions import ConfigurationError
from open_idempotency.fastapi import IdempotencyRule
from open_idempotency.flask import Idempotency
from open_idempotency.hooks import Request, Response
from tests.django_project.calls import post, project
from tests.unit import every_adapter
from tests.unit.every_adapter import ADAPTERS, KEY
from tests.unit.starlette.test_starlette_start import refused

Caplog = pytest.LogCaptureFixture


@pytest.fixture(autouse=True)
def _a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of a new process: nothing is reported, no view has a rule, no extension waits for an application."""
    monkeypatch.setattr(coverage.spelling, "reported", False)
    monkeypatch.setattr(rules, "registry", rules.RuleRegistry())
    survey.uninitialised.clear()


def warnings(caplog: Caplog) -> list[str]:
    """The messages that were logged at level WARNING or above."""
    found = [each for each in caplog.records if each.name == "open_idempotency" and each.levelno >= logging.WARNING]
    return [each.getMessage() for each in found]


# A key under another name


def send_by(name: str, sent: str, monkeypatch: pytest.MonkeyPatch, **policy: Any) -> list[int]:
    """The statuses of three requests whose key is in the header ``sent``."""
    fields = {"User-Agent": "test", **({sent: KEY} if sent else {})}
    monkeypatch.setattr(every_adapter, "FIELDS", fields)
    if not name.startswith("django"):
        send = ADAPTERS[name]("memory://", (), **policy)
        return [send().status for _ in range(3)]
    settings = {f"IDEMPOTENCY_{key.upper()}": value for key, value in policy.items()}

    async def send_awaited() -> list[int]:
        client = AsyncClient()
        return [(await post(client, key=None, headers=fields)).status_code for _ in range(3)]

    with project(lambda _: HttpResponse("ran", status=201), IDEMPOTENCY_BACKEND="memory://", **settings):
        if name == "django":
            client = Client()
            return [post(client, key=None, headers=fields).status_code for _ in range(3)]
        return asyncio.run(send_awaited())


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_key_under_another_name_is_warned_about_once(
    name: str, caplog: Caplog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O-36: with the header and what to do, and without the key. The requests run."""
    assert send_by(name, "X-Idempotency-Key", monkeypatch) == [201, 201, 201]
    (said,) = warnings(caplog)
    assert "x-idempotency-key, which is not read" in said.lower()
    assert "aliases=" in said
    assert KEY not in said


@pytest.mark.parametrize("name", ADAPTERS)
def test_no_other_header_is_taken_for_a_key(name: str, caplog: Caplog, monkeypatch: pytest.MonkeyPatch) -> None:
    """O-36: nor is a header in ``aliases=``, or the header itself."""
    send_by(name, "", monkeypatch)
    send_by(name, "X-Request-Id", monkeypatch)
    send_by(name, "X-Idempotency-Key", monkeypatch, aliases=("X-Idempotency-Key",))
    send_by(name, "Idempotency-Key", monkeypatch)
    assert warnings(caplog) == []


@pytest.mark.parametrize("header", ["Idempotency_Key", "IdempotencyKey", "X_Idempotency_Key"])
@pytest.mark.parametrize("name", ["asgi", "fastapi"])
def test_other_spellings_are_known_where_headers_are_bytes(
    name: str, header: str, caplog: Caplog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O-36: a WSGI server drops or replaces underscores."""
    send_by(name, header, monkeypatch)
    (said,) = warnings(caplog)
    assert header.lower() in said


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_standard_header_is_another_name_where_header_names_one(
    name: str, caplog: Caplog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O-36: with ``header=`` clients of other services may still send the standard header."""
    send_by(name, "Idempotency-Key", monkeypatch, header="Order-Key")
    (said,) = warnings(caplog)
    assert "a request without Order-Key has the header" in said


def test_under_fastapi_it_is_found_where_views_have_rules(caplog: Caplog, monkeypatch: pytest.MonkeyPatch) -> None:
    """O-36: each request is inspected there; a method that is not covered needs no key."""
    monkeypatch.setattr(rules.registry, "in_use", True)
    send_by("fastapi", "X-Idempotency-Key", monkeypatch, methods=["PUT"])
    assert warnings(caplog) == []
    send_by("fastapi", "X-Idempotency-Key", monkeypatch)
    assert len(warnings(caplog)) == 1


def test_an_adapter_of_ones_own_warns_too(caplog: Caplog) -> None:
    """O-36: sync and async."""
    request = Request("POST", b"/charges", b"", [(b"x-idempotency-key", KEY.encode())], None)
    done = Response(201, [], b"done")

    async def handler() -> Response:
        return done

    assert Adapter("memory://").handle(request, b"", lambda: done) is done
    assert len(warnings(caplog)) == 1
    coverage.spelling.reported = False
    asyncio.run(AsyncAdapter("memory://").handle(request, b"", handler))
    assert len(warnings(caplog)) == 2


# A rule that was not called


def test_a_rule_that_was_not_called_keeps_the_application_from_starting() -> None:
    """O-36: each request would be 422, since FastAPI takes the fields of the class for parameters of the request."""
    app = FastAPI()
    app.add_middleware(fastapi.IdempotencyMiddleware, backend="memory://")

    @app.post("/charges", dependencies=[Depends(IdempotencyRule)])
    def charge() -> str:
        return "done"

    assert "call it: Depends(IdempotencyRule())" in refused(app)


# The middleware of the other interface


def hello(environ: Any, start_response: Any) -> list[bytes]:
    """A WSGI application."""
    start_response("200 OK", [])
    return [b"hello"]


async def hello_awaited(scope: Any, receive: Any, send: Any) -> None:
    """An ASGI application."""


class Layer:
    """A layer that accepts any arguments."""

    def __call__(self, *args: Any) -> Any:
        """Nothing."""


@pytest.mark.parametrize("kind", [asgi, starlette, fastapi])
@pytest.mark.parametrize(
    "app", [hello, Flask("shop"), Flask("shop").wsgi_app, wsgi.IdempotencyMiddleware(hello, "memory://")]
)
def test_a_wsgi_application_in_an_asgi_middleware_is_refused_at_once(kind: Any, app: Any) -> None:
    """O-36: the error says what to use instead."""
    with pytest.raises(
        ConfigurationError, match=r"use open_idempotency\.wsgi around it, or in Flask Idempotency\(app\)"
    ):
        kind.IdempotencyMiddleware(app, "memory://")


@pytest.mark.parametrize(
    "app",
    [
        hello_awaited,
        FastAPI(),
        Starlette(),
        asgi.IdempotencyMiddleware(hello_awaited, "memory://"),
        lambda a, b, c: None,
    ],
)
def test_an_asgi_application_in_the_wsgi_middleware_is_refused_at_once(app: Any) -> None:
    """O-36: the error says what to use instead; also for ``add_middleware``."""
    with pytest.raises(ConfigurationError, match=r"use the one of open_idempotency\.fastapi, \.starlette or \.asgi"):
        wsgi.IdempotencyMiddleware(app, "memory://")


@pytest.mark.parametrize("make", [asgi.IdempotencyMiddleware, wsgi.IdempotencyMiddleware])
@pytest.mark.parametrize("app", [None, "shop:app", lambda one: None])
def test_what_is_no_application_is_refused_at_once(make: Callable[..., Any], app: Any) -> None:
    """O-36: the error says how an application is called."""
    with pytest.raises(ConfigurationError, match="cannot be called with"):
        make(app, "memory://")


@pytest.mark.parametrize("make", [asgi.IdempotencyMiddleware, wsgi.IdempotencyMiddleware])
def test_what_may_be_an_application_is_taken(make: Callable[..., Any]) -> None:
    """O-36: layers that accept any arguments, functions whose signature Python does not know, and partial functions."""
    for app in (Layer(), print, partial(lambda *args: None, 1)):
        assert make(app, "memory://").app is app


# An extension without an application


def test_an_extension_that_no_application_has_is_warned_about_at_the_first_request(caplog: Caplog) -> None:
    """O-36: ``init_app`` was forgotten."""
    app = Flask("shop")
    app.post("/0")(lambda: ("ran", 201))
    Idempotency(backend="memory://")
    for _ in range(2):
        assert app.test_client().post("/0", headers={"Idempotency-Key": KEY}).status_code == 201
    (said,) = warnings(caplog)
    assert "init_app(app) was never called" in said


def test_an_extension_that_has_an_application_is_not_warned_about(caplog: Caplog) -> None:
    """O-36: nor is one that is switched off; a second application need not have one."""
    other, app = Flask("other"), Flask("shop")
    Idempotency(backend="memory://").init_app(app)
    Idempotency(enabled=False)
    for each in (other, app):
        each.post("/0")(lambda: ("ran", 201))
        assert each.test_client().post("/0", headers={"Idempotency-Key": KEY}).status_code == 201
    assert warnings(caplog) == []
