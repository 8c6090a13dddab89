"""Tests for the oldest releases of Flask and FastAPI, older than the extras allow, with the base install.

``tox -e oldest`` runs this with Flask 2.1 and FastAPI 0.79; elsewhere it runs with the installed releases. It uses
nothing that the oldest releases lack, and no fixture of the other tests.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import flask
import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Form, HTTPException
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from open_idempotency import fastapi as for_fastapi
from open_idempotency import flask as for_flask
from open_idempotency import idem

KEY = "8e03978e-40d5-43e8-bc93-6894a57f9324"
REPLAYED = "idempotent-replayed"


class Order(BaseModel):
    """The body of a request."""

    amount: int


class FastapiShop:
    """A FastAPI application that counts the runs of its endpoints."""

    def __init__(self) -> None:
        self.runs = 0
        self.ended = 0
        app = self.app = FastAPI()
        app.add_middleware(for_fastapi.IdempotencyMiddleware, backend="memory://")
        for_fastapi.document_idempotency(app)
        app.post("/sync", status_code=201)(self.charge)
        app.post("/async", status_code=201)(self.acharge)
        app.post("/stream")(self.stream)
        app.post("/form")(self.form)
        app.post("/failing")(self.failing)
        app.post("/required")(for_fastapi.idempotent(required=True)(self.plain))
        app.post("/exempt")(for_fastapi.exempt(self.plain))
        rule = Depends(for_fastapi.IdempotencyRule(required=True))
        app.post("/dependency", dependencies=[rule])(self.plain)
        router = APIRouter(prefix="/router", dependencies=[rule])
        router.post("/charges")(self.plain)
        app.include_router(router)

    def dependency(self) -> Iterator[str]:
        """A dependency that ends after the response."""
        yield "here"
        self.ended += 1

    def _run(self) -> int:
        self.runs += 1
        return self.runs

    @property
    def charge(self) -> Any:
        def charge(order: Order, here: str = Depends(self.dependency)) -> Any:
            return {"run": self._run(), "amount": idem.run("charge", lambda: order.amount)}

        return charge

    @property
    def acharge(self) -> Any:
        async def acharge(order: Order, here: str = Depends(self.dependency)) -> Any:
            return {"run": self._run(), "amount": await idem.arun("charge", lambda: order.amount)}

        return acharge

    @property
    def stream(self) -> Any:
        async def stream() -> Any:
            return StreamingResponse(iter([b"run ", str(self._run()).encode()]))

        return stream

    @property
    def form(self) -> Any:
        async def form(amount: int = Form(...)) -> Any:
            return {"run": self._run(), "amount": amount}

        return form

    @property
    def failing(self) -> Any:
        async def failing() -> Any:
            if self._run() == 1:
                raise HTTPException(503, "not now")
            return {"run": self.runs, "attempt": idem.attempt}

        return failing

    @property
    def plain(self) -> Any:
        async def plain() -> Any:
            return {"run": self._run()}

        return plain


def ask(shop: FastapiShop, *requests: tuple[str, dict[str, Any]], method: str = "POST") -> list[httpx.Response]:
    """The responses to these requests, each given as a path and keywords for httpx."""

    async def send() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=shop.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            return [await client.request(method, path, **keywords) for path, keywords in requests]

    return asyncio.run(send())


def keyed(key: str = KEY, **keywords: Any) -> dict[str, Any]:
    """The keywords of a request with a key."""
    return {"headers": {"Idempotency-Key": key}, **keywords}


@pytest.mark.parametrize("path", ["/sync", "/async"])
def test_an_endpoint_of_fastapi_runs_once(path: str) -> None:
    """O-01, O-02, O-05: its dependencies run and end each time, and another body is refused."""
    shop = FastapiShop()
    order = keyed(json={"amount": 5})
    first, again, other = ask(shop, (path, order), (path, order), (path, keyed(json={"amount": 6})))
    assert (first.status_code, first.json()) == (201, {"run": 1, "amount": 5})
    assert (again.status_code, again.json(), again.headers[REPLAYED]) == (201, first.json(), "true")
    assert other.status_code == 422
    assert other.json()["type"].endswith(":key-reused")
    assert (shop.runs, shop.ended) == (1, 3)


def test_an_invalid_body_makes_no_claim_under_fastapi() -> None:
    """O-18: the key is free for the corrected request."""
    wrong, right = ask(FastapiShop(), ("/sync", keyed(json={"amount": "x"})), ("/sync", keyed(json={"amount": 5})))
    assert (wrong.status_code, right.status_code) == (422, 201)


@pytest.mark.parametrize(("path", "body"), [("/stream", {}), ("/form", {"data": {"amount": "5"}})])
def test_streams_and_forms_of_fastapi_are_replayed(path: str, body: dict[str, Any]) -> None:
    """R-04, O-18."""
    shop = FastapiShop()
    first, again = ask(shop, (path, keyed(**body)), (path, keyed(**body)))
    assert (first.status_code, again.content, again.headers[REPLAYED]) == (200, first.content, "true")
    assert shop.runs == 1


def test_a_failure_of_fastapi_is_run_again() -> None:
    """O-08: the retry runs."""
    failed, again = ask(FastapiShop(), ("/failing", keyed()), ("/failing", keyed()))
    assert (failed.status_code, again.json()) == (503, {"run": 2, "attempt": 2})


@pytest.mark.parametrize("path", ["/required", "/dependency", "/router/charges"])
def test_rules_of_fastapi_reach_their_routes(path: str) -> None:
    """O-06: by decorator, by dependency, and by a router."""
    missing, first = ask(FastapiShop(), (path, {}), (path, keyed()))
    assert (missing.status_code, first.status_code) == (400, 200)


def test_an_exempt_endpoint_of_fastapi_runs_each_time() -> None:
    """Its rule is found."""
    assert [each.json()["run"] for each in ask(FastapiShop(), *[("/exempt", keyed())] * 2)] == [1, 2]


def test_fastapis_description_names_the_header() -> None:
    """The release may store the arguments of a middleware under another name."""
    (described,) = ask(FastapiShop(), ("/openapi.json", {}), method="GET")
    operation = described.json()["paths"]["/sync"]["post"]
    assert "Idempotency-Key" in [each["name"] for each in operation["parameters"]]
    assert {"400", "409", "422"} <= set(operation["responses"])


class FlaskShop:
    """A Flask application that counts the runs of its views."""

    def __init__(self) -> None:
        self.runs = 0
        app = self.app = flask.Flask("shop")
        app.secret_key = "for tests"
        for_flask.Idempotency(app, backend="memory://")
        app.post("/charges")(self.charge)
        app.post("/stream", endpoint="stream")(lambda: flask.Response(iter(["run ", str(self._run())])))
        app.post("/failing")(self.failing)
        app.post("/login")(self.login)
        app.post("/required", endpoint="required")(for_flask.idempotent(required=True)(lambda: str(self._run())))
        app.post("/exempt", endpoint="exempt")(for_flask.exempt(lambda: str(self._run())))

    def _run(self) -> int:
        self.runs += 1
        return self.runs

    def charge(self) -> Any:
        """Charge a card."""
        amount = idem.run("charge", lambda: flask.request.get_json()["amount"])
        return {"run": self._run(), "amount": amount}, 201

    def failing(self) -> Any:
        """Raise the first time."""
        if self._run() == 1:
            flask.abort(503)
        return {"run": self.runs, "attempt": idem.attempt}

    def login(self) -> Any:
        """Begin a session."""
        flask.session["user_id"] = flask.request.get_json()["user"]
        return {"run": self._run()}

    def post(self, path: str, **keywords: Any) -> Any:
        """The response to one request, with a key."""
        return self.app.test_client().post(path, **keyed(**keywords))


def test_a_view_of_flask_runs_once() -> None:
    """O-01, O-02, O-05."""
    shop = FlaskShop()
    first, again = (shop.post("/charges", json={"amount": 5}) for _ in range(2))
    other = shop.post("/charges", json={"amount": 6})
    assert (first.status_code, first.get_json()) == (201, {"run": 1, "amount": 5})
    assert (again.status_code, again.get_json(), again.headers[REPLAYED]) == (201, first.get_json(), "true")
    assert other.status_code == 422
    assert shop.runs == 1


def test_streams_of_flask_are_replayed_and_failures_run_again() -> None:
    """R-04, O-08."""
    shop = FlaskShop()
    assert shop.post("/stream").data == b"run 1"
    again = shop.post("/stream")
    assert (again.data, again.headers[REPLAYED]) == (b"run 1", "true")
    shop = FlaskShop()
    failed, resumed = shop.post("/failing"), shop.post("/failing")
    assert (failed.status_code, resumed.get_json()) == (503, {"run": 2, "attempt": 2})


def test_rules_of_flask_reach_their_views() -> None:
    """O-06: by decorator."""
    shop = FlaskShop()
    assert shop.app.test_client().post("/required").status_code == 400
    assert [shop.post("/exempt").data for _ in range(2)] == [b"1", b"2"]


def test_the_session_names_flasks_callers() -> None:
    """O-19: two users with one key are two callers."""
    shop = FlaskShop()
    runs: list[int] = []
    for user in ("ada", "bob", "ada"):
        client = shop.app.test_client()
        with client.session_transaction() as session:
            session["user_id"] = user
        runs.append(client.post("/charges", **keyed(json={"amount": 5})).get_json()["run"])
    assert runs == [1, 2, 1]


def test_a_login_in_flask_is_found_by_its_retry() -> None:
    """O-14: with the session that the view has started."""
    shop = FlaskShop()
    client = shop.app.test_client()
    runs = [client.post("/login", **keyed(json={"user": "ada"})).get_json()["run"] for _ in range(2)]
    assert runs == [1, 1]


@pytest.mark.parametrize("kind", ["teardown_request", "teardown_appcontext"])
def test_an_error_of_flasks_teardown_is_reported(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """R-05a: in whichever context it runs."""
    shop = FlaskShop()

    def teardown(error: BaseException | None) -> None:
        raise OSError("the commit failed")

    getattr(shop.app, kind)(teardown)
    with caplog.at_level(logging.ERROR, "open_idempotency"), pytest.raises(OSError, match="the commit failed"):
        shop.post("/charges", json={"amount": 5})
    assert "RaisedAfterResponse" in caplog.text
