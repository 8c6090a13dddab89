"""A test that cannot work raises an error that says what to write instead."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Response
from fastapi.testclient import TestClient

from open_idempotency import idem
from open_idempotency.fastapi import IdempotencyMiddleware, exempt
from open_idempotency.testing import Kit, KitError, aassert_idempotent, assert_idempotent
from tests import django_project
from tests.unit.testing.bank import Bank

django_project.set_up()
from django.test import RequestFactory  # noqa: E402 (Django has to be set up first)


@pytest.fixture
def bank() -> Bank:
    return Bank()


def _protected(bank: Bank, **policy: Any) -> FastAPI:
    app = FastAPI()
    app.add_middleware(IdempotencyMiddleware, backend="memory://", **policy)

    @app.post("/pay")
    async def pay() -> Any:
        return await idem.arun("charge", bank.acharge, 1, idem.key_for("charge"))

    @app.post("/unmarked")
    @exempt
    async def unmarked() -> Any:
        return {}

    @app.post("/refused")
    async def refused() -> Response:
        return Response("no", status_code=422)

    @app.post("/plain")
    async def plain() -> Any:
        return {}

    return app


@pytest.fixture
def client(bank: Bank) -> TestClient:
    return TestClient(_protected(bank))


# Applications


def test_an_application_without_the_middleware_is_reported(idempotency: Kit) -> None:
    """T-11: other applications in this process do not matter."""
    app = FastAPI()
    app.post("/pay")(lambda: {})  # noqa: PIE807 (FastAPI reads its signature)
    with pytest.raises(KitError, match=r"POST /pay got 200.*(no application with|is not in this application)"):
        idempotency.assert_idempotent(TestClient(app), "POST /pay")


def test_an_application_that_is_switched_off_is_reported(bank: Bank) -> None:
    """T-11: ``enabled=False`` is meant for other tests."""
    app = _protected(bank, enabled=False)
    client = TestClient(app)
    client.post("/pay")  # its middleware is made at the first request
    with Kit() as kit:
        taken = list(kit._taken)
        # as if no other test of this process had an application
        kit._taken[:] = [each for each in taken if (e := each.engine()) is None or not e.policy.enabled]
        try:
            with pytest.raises(KitError, match="enabled=False switches idempotency off"):
                kit.assert_idempotent(client, "POST /pay")
        finally:
            kit._taken[:] = taken


def test_a_route_that_is_not_covered_is_reported(idempotency: Kit, client: TestClient) -> None:
    """T-11: it runs without protection, which no response shows."""
    with pytest.raises(KitError, match=r"ran without protection, so it is not idempotent\. Its route is exempt"):
        idempotency.assert_idempotent(client, "POST /unmarked")
    with pytest.raises(KitError, match=r"no attempt began|ran without protection"):
        idempotency.duplicate_in_flight(client, "POST /unmarked")


def test_a_key_that_the_application_refuses_is_reported(idempotency: Kit, bank: Bank) -> None:
    """T-11: the error has the response, and how to pass another key."""

    def only_numbers(key: str) -> bool:
        return key.isdigit()

    client = TestClient(_protected(bank, validate=only_numbers))
    with pytest.raises(KitError, match=r"refused before its key was claimed: 400, .*pass key="):
        idempotency.assert_idempotent(client, "POST /pay")
    numbers = iter(range(10**20, 10**21))
    idempotency.assert_idempotent(client, "POST /pay", key=lambda: str(next(numbers)), effects=bank.count)


def test_the_header_of_the_policy_is_used(idempotency: Kit, bank: Bank) -> None:
    """T-11: a test may name another header."""
    other = TestClient(_protected(bank))
    client = TestClient(_protected(bank, header="X-Request-Key"))
    client.post("/pay")  # its middleware is made at the first request, and its header is known from then on
    idempotency.assert_idempotent(client, "POST /pay", effects=bank.count)
    idempotency.assert_idempotent(other, "POST /pay", effects=bank.count)
    idempotency.assert_idempotent(client, "POST /pay", header="X-Request-Key", effects=bank.count)
    with pytest.raises(KitError, match="pass header="):
        idempotency.assert_idempotent(client, "POST /pay", header="X-Other", effects=bank.count)


def test_a_request_that_fails_is_reported(idempotency: Kit, client: TestClient) -> None:
    """T-11: the error has its response; an intended failure can be named."""
    with pytest.raises(KitError, match="the first request got 422 instead of a success: no"):
        idempotency.assert_idempotent(client, "POST /refused")
    idempotency.assert_idempotent(client, "POST /refused", status=422, crashes=False)


# Requests


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ("GET /pay", "GET requests change nothing and are never covered"),
        ("HEAD /pay", "never covered"),
        ("pay", "'pay' is neither a path nor a URL"),
        ("POST ", "names no path"),
        ({"method": "POST"}, "names no path"),
        (7, "expected 'POST /payments', a dictionary with method and url, or a function that sends, got int"),
    ],
)
def test_a_wrong_request_is_reported(idempotency: Kit, client: TestClient, request_: Any, said: str) -> None:
    """T-11: nothing is sent before."""
    with pytest.raises(KitError, match=said):
        idempotency.assert_idempotent(client, request_)


def test_a_request_may_be_a_dictionary_or_a_function(idempotency: Kit, client: TestClient, bank: Bank) -> None:
    """T-11: a function sends with any client, known or unknown."""
    request = {"method": "POST", "url": "/pay", "json": {}}
    idempotency.assert_idempotent(client, request, effects=bank.count)
    idempotency.assert_idempotent(client, "/pay", headers={"Authorization": "Bearer a"}, effects=bank.count)
    idempotency.assert_idempotent(None, lambda headers: client.post("/pay", headers=headers), effects=bank.count)
    with pytest.raises(KitError, match="json: options are for a request that is named"):
        idempotency.assert_idempotent(None, lambda headers: client.post("/pay"), json={})
    with pytest.raises(KitError, match="returned dict, which has no status_code"):
        idempotency.assert_idempotent(None, lambda headers: client.post("/pay", headers=headers).json())


def test_a_function_that_sends_no_key_is_reported(idempotency: Kit, client: TestClient) -> None:
    """T-11: a request without a key runs without protection."""
    with pytest.raises(KitError, match="its key is in another header"):
        idempotency.assert_idempotent(None, lambda headers: client.post("/pay"))


# Clients


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (object, "client: object is not known. Known are .*pass a function instead of the request"),
        (RequestFactory, "RequestFactory makes requests but does not send them"),
    ],
)
def test_an_unknown_client_is_reported(idempotency: Kit, make: Any, said: str) -> None:
    """T-11: the error names the known clients, and how to use another one."""
    with pytest.raises(KitError, match=said):
        idempotency.assert_idempotent(make(), "POST /pay")


def test_an_async_client_in_a_sync_call_is_reported(idempotency: Kit) -> None:
    """T-11: the error names the call to await."""
    client = httpx.AsyncClient()
    with pytest.raises(KitError, match=r"the client is async; write await idempotency\.aassert_idempotent"):
        idempotency.assert_idempotent(client, "POST /pay")
    with pytest.raises(KitError, match=r"the client is async; write await idempotency\.aduplicate_in_flight"):
        idempotency.duplicate_in_flight(client, "POST /pay")


# Arguments


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"effects": "text"}, "effects=: str cannot be compared"),
        ({"effects": lambda: True}, "effects=: True cannot distinguish one effect from two"),
        ({"effects": lambda: None}, "effects=: None cannot distinguish one effect from two"),
        ({"effects": object()}, "effects=: object cannot be compared"),
        ({"key": "a-key"}, "key: a function is expected, got str"),
        ({"reset": 1}, "reset: a function is expected, got int"),
        ({"ignore": "created"}, r"ignore: a tuple of names is expected, as in \('created',\)"),
        ({"compare_headers": "ETag"}, "compare_headers: a tuple of names is expected"),
        ({"key": lambda: ""}, "key: the function returned ''"),
    ],
)
def test_a_wrong_argument_is_reported(idempotency: Kit, client: TestClient, asked: Any, said: str) -> None:
    """T-11: a ``KitError``, and never a failed assertion."""
    with pytest.raises(KitError, match=said):
        idempotency.assert_idempotent(client, "POST /pay", **asked)


def test_an_async_count_in_a_sync_call_is_reported(idempotency: Kit, client: TestClient) -> None:
    """T-11: the error names the call to await."""

    async def count() -> int:
        return 1

    with pytest.raises(KitError, match=r"effects=: the function is async; await aassert_idempotent"):
        idempotency.assert_idempotent(client, "POST /pay", effects=count)


def test_a_sync_client_in_an_async_call_is_reported(idempotency: Kit, client: TestClient) -> None:
    """T-11: it would block the event loop on which its own application runs."""

    async def call(send: Any) -> None:
        await idempotency.aassert_idempotent(client, send)

    with pytest.raises(KitError, match=r"the client is sync; write idempotency\.assert_idempotent"):
        asyncio.run(call("POST /pay"))
    with pytest.raises(KitError, match=r"the client is sync; write idempotency\.assert_idempotent"):
        asyncio.run(call(lambda headers: client.post("/pay", headers=headers)))


def test_a_function_that_returns_a_coroutine_to_a_sync_call_is_reported(idempotency: Kit) -> None:
    """T-11: the coroutine is closed, so Python does not warn about it."""

    async def post() -> None: ...

    with pytest.raises(KitError, match=r"the client is async; write await idempotency\.aassert_idempotent"):
        idempotency.assert_idempotent(None, lambda headers: post())


def test_effects_that_see_nothing_are_reported(idempotency: Kit, client: TestClient) -> None:
    """T-11: a count of something else would make every request idempotent."""
    with pytest.raises(KitError, match="POST /pay got 200, and effects= saw no change"):
        idempotency.assert_idempotent(client, "POST /pay", effects=list)


def test_an_endpoint_without_stages_needs_a_measure(idempotency: Kit, client: TestClient) -> None:
    """T-11: after a crash all of it runs again, and no response shows whether that matters."""
    with pytest.raises(KitError, match="no stages, so a retry after a crash runs all of it again"):
        idempotency.assert_idempotent(client, "POST /plain")
    idempotency.assert_idempotent(client, "POST /plain", crashes=False)


# The kit


def test_a_kit_is_used_in_its_block_alone(client: TestClient) -> None:
    """T-11: and one kit at a time."""
    kit = Kit()
    with pytest.raises(KitError, match="the kit is not in use"):
        kit.assert_idempotent(client, "POST /pay")
    with kit, pytest.raises(KitError, match="another kit is in use"), Kit():
        pytest.fail("two kits are in use")
    with pytest.raises(KitError, match="the kit is not in use"), kit.crash_at("charge"):
        pytest.fail("begun")
    with pytest.raises(KitError, match="this kit was used before"), kit:
        pytest.fail("its records are those of another test")


def test_a_whole_test_within_an_accident_is_reported(idempotency: Kit, client: TestClient) -> None:
    """T-11: it plans its own accidents."""
    with pytest.raises(KitError, match="end it before this call"), idempotency.backend_down():
        idempotency.assert_idempotent(client, "POST /pay")


def test_an_application_has_its_own_backend_again_behind_the_block(client: TestClient, bank: Bank) -> None:
    """T-01: no object of a test is left in the application."""
    headers = {"Idempotency-Key": "a-key-of-the-test-0001"}
    with Kit():
        client.post("/pay", headers=headers)
    assert "Idempotent-Replayed" not in client.post("/pay", headers=headers).headers
    assert "Idempotent-Replayed" in client.post("/pay", headers=headers).headers
    with Kit():
        assert "Idempotent-Replayed" not in client.post("/pay", headers=headers).headers
    assert "Idempotent-Replayed" in client.post("/pay", headers=headers).headers


def test_the_functions_work_without_a_fixture(client: TestClient, bank: Bank) -> None:
    """T-01: they use a kit of their own, or that of the surrounding block."""
    assert_idempotent(client, "POST /pay", effects=bank.count)
    with Kit() as kit:
        assert_idempotent(client, "POST /pay", effects=bank.count)
        assert kit.records

    async def main() -> None:
        transport = httpx.ASGITransport(app=client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as aclient:
            await aassert_idempotent(aclient, "POST /pay", effects=bank.count)

    asyncio.run(main())
