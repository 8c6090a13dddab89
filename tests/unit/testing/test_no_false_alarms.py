"""Meaningless differences between responses, and endpoints that are idempotent in other ways: the kit accepts both."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import sqlite3
import uuid
from collections import deque
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, Mock

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse
from fastapi.testclient import TestClient
from flask import Flask, make_response

from open_idempotency import NOT_DONE, Found, flask, idem
from open_idempotency.fastapi import IdempotencyMiddleware
from open_idempotency.ledger import schema
from open_idempotency.testing import Kit, NotIdempotent
from tests.unit.testing.bank import Bank


@pytest.fixture
def bank() -> Bank:
    return Bank()


@pytest.fixture
def app() -> FastAPI:
    made = FastAPI()
    made.add_middleware(IdempotencyMiddleware, backend="memory://")
    return made


# Responses


def test_headers_that_differ_each_time_are_no_difference(idempotency: Kit, bank: Bank, app: FastAPI) -> None:
    """T-07: Date, request ids, timings and cookies, of the view or of layers around it."""
    numbers = itertools.count()

    @app.middleware("http")
    async def number(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers["X-Request-ID"] = str(next(numbers))
        response.headers["Server-Timing"] = f"total;dur={next(numbers)}"
        return response

    @app.post("/pay")
    async def pay(response: Response) -> Any:
        response.headers["Date"] = f"Mon, 01 Jan 2026 00:00:{next(numbers) % 60:02} GMT"
        response.set_cookie("visit", str(next(numbers)))
        return await idem.arun("charge", bank.acharge, 1, idem.key_for("charge"))

    idempotency.assert_idempotent(TestClient(app), "POST /pay", effects=bank.count)


def test_a_stream_is_compared_as_a_whole(idempotency: Kit, bank: Bank, app: FastAPI) -> None:
    """T-07: a replay comes in one piece."""

    @app.post("/pay")
    async def pay() -> StreamingResponse:
        charge = await idem.arun("charge", bank.acharge, 1, idem.key_for("charge"))

        async def parts() -> Any:
            for part in ("charged", " ", charge["id"]):
                yield part.encode()
                await asyncio.sleep(0)

        return StreamingResponse(parts(), media_type="text/plain")

    idempotency.assert_idempotent(TestClient(app), "POST /pay", effects=bank.count)


def test_a_redirect_that_the_client_follows_is_compared_itself(idempotency: Kit, bank: Bank, app: FastAPI) -> None:
    """T-07: its target page may differ each time."""

    @app.post("/pay")
    async def pay() -> RedirectResponse:
        await idem.arun("charge", bank.acharge, 1, idem.key_for("charge"))
        return RedirectResponse("/page", status_code=303)

    @app.get("/page")
    async def page() -> Any:
        return {"drawn": str(uuid.uuid4())}

    idempotency.assert_idempotent(TestClient(app), "POST /pay", effects=bank.count)


def test_json_is_compared_by_its_members(idempotency: Kit, app: FastAPI) -> None:
    """T-07: order and spaces do not matter."""
    orders = itertools.cycle(['{"a": 1, "b": 2}', '{"b":2,"a":1}'])

    @app.middleware("http")
    async def reorder(request: Request, call_next: Any) -> Response:
        await call_next(request)
        return Response(next(orders), media_type="application/json")

    app.post("/pay")(lambda: "paid")
    idempotency.assert_idempotent(TestClient(app), "POST /pay", crashes=False)


def test_compression_around_the_middleware_is_no_difference(idempotency: Kit, bank: Bank) -> None:
    """T-07: clients decode what they compare."""
    app = Flask("shop")
    flask.Idempotency(app, "memory://")

    @app.post("/pay")
    def pay() -> Any:
        charge = idem.run("charge", bank.charge, 1, idem.key_for("charge"))
        response = make_response(gzip.compress(str(charge).encode(), mtime=0))
        response.headers["Content-Encoding"] = "gzip"
        return response

    idempotency.assert_idempotent(app.test_client(), "POST /pay", effects=bank.count)


# Endpoints


def test_a_stage_that_asks_the_other_side_is_idempotent(idempotency: Kit, app: FastAPI) -> None:
    """T-06: the effect is found, although it was not recorded."""
    done: dict[str, str] = {}

    def charge(key: str) -> str:
        done[f"{key}-{len(done)}"] = key
        return key

    def look(key: str) -> Any:
        return Found(key) if key in done.values() else NOT_DONE

    @app.post("/pay")
    async def pay() -> Any:
        key = idem.key_for("charge")
        return {"charge": len(await idem.arun("charge", charge, key, external=True, reconcile=look))}

    idempotency.assert_idempotent(TestClient(app), "POST /pay", effects=done)


def test_rows_and_their_stage_in_one_transaction_are_idempotent(idempotency: Kit, app: FastAPI, tmp_path: Path) -> None:
    """T-04: the uncommitted rows of a killed worker are rolled back."""
    path = tmp_path / "shop.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE orders (name TEXT)")
        connection.executescript(schema("sqlite"))
    connection.close()

    def insert(connection: sqlite3.Connection) -> int:
        return connection.execute("INSERT INTO orders VALUES ('one')").lastrowid or 0

    @app.post("/order")
    def order() -> Any:
        connection = sqlite3.connect(path)
        try:
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                return {"order": idem.run("order", insert, connection, tx=connection)}
        finally:
            connection.close()

    def rows() -> list[Any]:
        connection = sqlite3.connect(path)
        try:
            return connection.execute("SELECT rowid, name FROM orders").fetchall()
        finally:
            connection.close()

    idempotency.assert_idempotent(TestClient(app), "POST /order", effects=rows)


def test_an_endpoint_that_is_idempotent_by_itself_needs_no_stage(idempotency: Kit, app: FastAPI) -> None:
    """T-05: each attempt writes the same row."""
    rows: set[str] = set()

    @app.post("/pay")
    async def pay(request: Request) -> Any:
        rows.add(request.headers["idempotency-key"])
        return {"paid": True}

    idempotency.assert_idempotent(TestClient(app), "POST /pay", effects=rows)


def test_many_uses_of_one_stage_are_tried_at_the_first_and_the_last(idempotency: Kit, app: FastAPI) -> None:
    """T-06: a loop over many items does not take hours."""
    items: set[str] = set()

    @app.post("/pay")
    async def pay(request: Request) -> Any:
        name = request.headers["idempotency-key"]
        for number in range(60):
            await idem.arun("item", items.add, f"{name}-{number}", key=number)
        return {}

    idempotency.assert_idempotent(TestClient(app), "POST /pay", effects=items)


# Effects


@pytest.fixture(params=["list", "deque", "dict", "number", "decimal", "mock", "balances", "rows", "objects"])
def counted(request: pytest.FixtureRequest) -> tuple[Any, Any, Any]:
    """An effect, an object that shows the effects, and the message about two of them."""
    made: list[int] = []
    many: deque[int] = deque()
    keyed: dict[int, int] = {}
    mock = Mock(return_value=None)

    class Row:
        def __init__(self, number: int) -> None:
            self.number = number

    ways = {
        "list": (lambda: made.append(1), made, "2 rows added; one request alone: 1 row added"),
        "deque": (lambda: many.append(1), many, "2 rows added"),
        "dict": (
            lambda: keyed.setdefault(len(keyed), 1),
            keyed,
            r"new entries: \+2; one request alone: new entries",
        ),
        "number": (lambda: made.append(1), lambda: len(made), r"\+2; one request alone: \+1"),
        "decimal": (lambda: made.append(1), lambda: Decimal(10) - len(made), "-2; one request alone: -1"),
        "mock": (mock, mock, r"\+2; one request alone: \+1"),
        "balances": (lambda: made.append(1), lambda: {"mails": 0, "sent": len(made)}, r"sent: \+2"),
        "rows": (lambda: made.append(1), lambda: ((i, {"id": i}) for i in range(len(made))), "2 rows added"),
        "objects": (lambda: made.append(1), lambda: [Row(i) for i in range(len(made))], "effects: 2 rows added; one"),
    }
    return ways[request.param]


def test_effects_are_counted_in_whatever_shows_them(idempotency: Kit, app: FastAPI, counted: Any) -> None:
    """T-04: numbers, rows, entries, balances and calls of mocks."""
    effect, effects, said = counted

    @app.post("/twice")
    async def twice() -> Any:
        effect()
        return {}

    with pytest.raises(NotIdempotent, match=said):
        idempotency.assert_idempotent(TestClient(app), "POST /twice", effects=effects)


def test_an_async_count_is_awaited(idempotency: Kit, bank: Bank, app: FastAPI) -> None:
    """T-03: so are an async reset and an async mock."""
    reset = AsyncMock()

    @app.post("/pay")
    async def pay() -> Any:
        return await idem.arun("charge", bank.acharge, 1, idem.key_for("charge"))

    async def count() -> int:
        return bank.count()

    async def main() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://testserver") as client:
            await idempotency.aassert_idempotent(client, "POST /pay", effects=count, reset=reset)

    asyncio.run(main())
    assert reset.await_count == 7  # one after the other, lost, at once, three at the stage, and at the end
