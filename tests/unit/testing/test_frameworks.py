"""One line tests the idempotency of a view, in each framework and with each of its test clients."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import httpx
import pytest
import requests
import trio
from django.core.management import call_command
from django.test import AsyncClient, Client, override_settings
from fastapi.testclient import TestClient as FastClient
from starlette.testclient import TestClient
from werkzeug.test import Client as WerkzeugClient

from open_idempotency.testing import Kit, NotIdempotent
from tests import django_project
from tests.unit.testing import shops
from tests.unit.testing.bank import bank

django_project.set_up()
from rest_framework.test import APIClient  # noqa: E402 (Django has to be set up first)

PAYMENT = {"amount": 1999}

SYNC: dict[str, tuple[Callable[[], Any], str]] = {
    "FastAPI, coroutine": (lambda: FastClient(shops.fast), "/pay"),
    "FastAPI, function": (lambda: FastClient(shops.fast), "/def"),
    "FastAPI, exceptions become responses": (lambda: FastClient(shops.fast, raise_server_exceptions=False), "/pay"),
    "Starlette": (lambda: TestClient(shops.star), "/pay"),
    "Starlette, stream": (lambda: TestClient(shops.star), "/stream"),
    "Starlette on trio": (lambda: TestClient(shops.star, backend="trio"), "/pay"),
    "ASGI": (lambda: TestClient(shops.plain_asgi), "/pay"),
    "Flask": (shops.flasked.test_client, "/pay"),
    "Flask, async view": (shops.flasked.test_client, "/apay"),
    "Flask, stream": (shops.flasked.test_client, "/stream"),
    "WSGI": (lambda: WerkzeugClient(shops.plain_wsgi), "/pay"),
    "WSGI by httpx": (
        lambda: httpx.Client(transport=httpx.WSGITransport(app=shops.plain_wsgi), base_url="http://testserver"),
        "/pay",
    ),
}

ASYNC: dict[str, tuple[Any, str]] = {
    "FastAPI, coroutine": (shops.fast, "/pay"),
    "FastAPI, function": (shops.fast, "/def"),
    "Starlette": (shops.star, "/pay"),
    "Starlette, stream": (shops.star, "/stream"),
    "ASGI": (shops.plain_asgi, "/pay"),
}


@pytest.mark.parametrize("name", SYNC)
def test_a_view_is_tested_by_the_test_client_of_its_framework(idempotency: Kit, name: str) -> None:
    """T-01: the application is made at the top of a module, with a backend that does not exist."""
    make, path = SYNC[name]
    client = make()
    try:
        idempotency.assert_idempotent(client, f"POST {path}", json=PAYMENT, effects=bank.count)
    finally:
        if isinstance(client, httpx.Client):
            client.close()


def test_a_test_client_that_runs_the_lifespan_outlives_the_crashes(idempotency: Kit) -> None:
    """T-02: no crash ends its event loop, and requests in flight share it."""
    with FastClient(shops.fast) as client:
        idempotency.assert_idempotent(client, "POST /pay", json=PAYMENT, effects=bank.count)
        assert client.post("/pay", json=PAYMENT).status_code == 201


@pytest.mark.parametrize("run", [asyncio.run, trio.run], ids=["asyncio", "trio"])
@pytest.mark.parametrize("name", ASYNC)
def test_a_view_is_tested_by_an_async_client(idempotency: Kit, name: str, run: Any) -> None:
    """T-03: on the event loop of the test."""
    app, path = ASYNC[name]

    async def main() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://testserver") as client:
            await idempotency.aassert_idempotent(client, f"POST {path}", json=PAYMENT, effects=bank.count)

    run(main) if run is trio.run else run(main())


# Django


@contextmanager
def _project(**settings: Any) -> Iterator[None]:
    with override_settings(
        ROOT_URLCONF="tests.unit.testing.django_shop", IDEMPOTENCY_BACKEND=shops.NOWHERE, **settings
    ):
        yield


@pytest.fixture(scope="module")
def _database() -> None:
    call_command("migrate", verbosity=0)


@pytest.mark.parametrize("path", ["/pay", "/apay", "/rest", "/stream"])
@pytest.mark.parametrize("kind", [Client, APIClient])
def test_a_view_of_django_is_tested_by_its_client(idempotency: Kit, kind: Any, path: str) -> None:
    """T-01: sync and async views, and those of REST framework."""
    with _project():
        idempotency.assert_idempotent(kind(), f"POST {path}", json=PAYMENT, effects=bank.count)


def test_the_format_of_rest_frameworks_client_is_passed_on(idempotency: Kit) -> None:
    """T-01: options are passed to the client."""
    with _project():
        idempotency.assert_idempotent(APIClient(), "POST /rest", data=PAYMENT, format="json", effects=bank.count)


@pytest.mark.parametrize("path", ["/pay", "/apay", "/astream"])
def test_a_view_of_django_is_tested_by_its_async_client(idempotency: Kit, path: str) -> None:
    """T-03: sync views and coroutines."""

    async def main() -> None:
        with _project():
            await idempotency.aassert_idempotent(AsyncClient(), f"POST {path}", json=PAYMENT, effects=bank.count)

    asyncio.run(main())


@pytest.mark.usefixtures("_database")
@pytest.mark.parametrize("path", ["/sign-up", "/sign-up-in-stage"])
def test_rows_of_django_are_effects(idempotency: Kit, path: str) -> None:
    """T-04: the uncommitted rows of a killed worker are rolled back, and its committed rows are found."""
    from django.contrib.auth.models import User

    with _project():
        idempotency.assert_idempotent(Client(), f"POST {path}", effects=lambda: User.objects.values_list("username"))


def test_a_view_of_django_that_repeats_its_effects_is_found(idempotency: Kit) -> None:
    """T-05: two charges outside of a stage."""
    with _project(), pytest.raises(NotIdempotent, match=r"effects: \+4; one request alone: \+2"):
        idempotency.assert_idempotent(Client(), "POST /twice", json=PAYMENT, effects=bank.count)


# A server of the test's own process


def test_a_session_of_requests_is_a_client(idempotency: Kit) -> None:
    """T-01: the server runs in threads of the test's process."""
    server = make_server("127.0.0.1", 0, shops.plain_wsgi, _Threaded, _Quiet)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/pay"
        with requests.Session() as session:
            idempotency.assert_idempotent(session, f"POST {url}", json=PAYMENT, effects=bank.count, timeout=20)
    finally:
        server.shutdown()
        thread.join(20)
        server.server_close()


class _Threaded(ThreadingMixIn, WSGIServer):
    """A server with threads, as a duplicate in flight needs a second one."""


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing, as the client sees the response."""
