"""Flask: a caller who lost a permission gets the refusal of the view's decorators, and no stored response (O-23)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask, abort, copy_current_request_context, request
from flask.views import MethodView

from open_idempotency.flask import Idempotency, idempotent

KEY = {"Idempotency-Key": "8e03978e-40d5-43e8-bc93-6894a57f9324", "Authorization": "Bearer ann"}
REPLAYED = "Idempotent-Replayed"

runs: list[str] = []
roles: set[str] = set()


def roles_required(role: str) -> Callable[[Any], Any]:
    """A decorator as extensions for roles have it."""

    def decorate(view: Any) -> Any:
        @functools.wraps(view)
        def check(*args: Any, **kwargs: Any) -> Any:
            if role not in roles:
                abort(403)
            return view(*args, **kwargs)

        return check

    return decorate


def login_page(view: Any) -> Any:
    """A decorator that returns its refusal, and does not raise it."""

    @functools.wraps(view)
    def check(*args: Any, **kwargs: Any) -> Any:
        return view(*args, **kwargs) if roles else ("please log in", 401)

    return check


def _charge() -> tuple[dict[str, int], int]:
    runs.append(request.method)
    return {"run": len(runs)}, 201


@roles_required("clerk")
@idempotent
def by_role() -> Any:
    """A function view."""
    return _charge()


@login_page
@idempotent(ttl=3600)
def by_page() -> Any:
    """A view whose refusal is a response."""
    return _charge()


@roles_required("clerk")
@idempotent
def with_arguments(shop: str = "a") -> Any:
    """A view with a variable in its path."""
    return _charge()


class OnMethod(MethodView):
    """A view with the decorator on the method."""

    @roles_required("clerk")
    @idempotent
    def post(self) -> Any:
        """Charge."""
        return _charge()


class OnClass(MethodView):
    """A view with the decorator on the class, and the mark on the method."""

    decorators = [roles_required("clerk")]

    @idempotent
    def post(self) -> Any:
        """Charge."""
        return _charge()


VIEWS: dict[str, tuple[Any, int]] = {
    "a function": (by_role, 403),
    "a response": (by_page, 401),
    "arguments": (with_arguments, 403),
    "a method": (OnMethod.as_view("charge"), 403),
    "a class": (OnClass.as_view("charge"), 403),
}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """The caller is a clerk, and nothing has run."""
    runs.clear()
    roles.add("clerk")
    yield
    roles.clear()


def _client(view: Any) -> Any:
    app = Flask("shop")
    Idempotency(app, backend="memory://")
    app.add_url_rule("/charges", "charge", view, methods=["POST"])
    return app.test_client()


@pytest.mark.parametrize(("view", "refused"), VIEWS.values(), ids=VIEWS)
def test_who_may_no_longer_do_it_gets_the_views_refusal(view: Any, refused: int) -> None:
    """O-23: neither a replay nor a 422, though the caller and the key are the same."""
    client = _client(view)
    first, again = (client.post("/charges", headers=KEY) for _ in range(2))
    assert (first.status_code, again.status_code, again.headers[REPLAYED]) == (201, 201, "true")
    assert client.post("/charges", json={"amount": 6}, headers=KEY).status_code == 422
    roles.clear()
    for body in ({}, {"json": {"amount": 6}}):
        denied = client.post("/charges", headers=KEY, **body)
        assert (denied.status_code, REPLAYED in denied.headers) == (refused, False)
        assert b"run" not in denied.data
    roles.add("clerk")
    assert client.post("/charges", headers=KEY).headers[REPLAYED] == "true"
    assert runs == ["POST"]


def test_a_coroutine_is_asked_as_well() -> None:
    """O-23: Flask runs coroutines with asgiref."""

    def in_flask(view: Any) -> Any:
        @functools.wraps(view)
        async def check() -> Any:
            if not roles:
                abort(403)
            return await view()

        return check

    @in_flask
    @idempotent
    async def charge() -> Any:
        return _charge()

    client = _client(charge)
    assert [client.post("/charges", headers=KEY).status_code for _ in range(2)] == [201, 201]
    roles.clear()
    assert client.post("/charges", headers=KEY).status_code == 403
    assert runs == ["POST"]


def test_a_mark_above_all_decorators_asks_nothing() -> None:
    """O-02: decorators below the mark are part of the view, which does not run for a replay."""

    @idempotent
    @roles_required("clerk")
    def charge() -> Any:
        return _charge()

    client = _client(charge)
    assert client.post("/charges", headers=KEY).status_code == 201
    roles.clear()
    assert client.post("/charges", headers=KEY).headers[REPLAYED] == "true"


def in_own_thread(view: Any) -> Any:
    """A decorator that calls its view in a thread of its own, as decorators for time limits do."""

    @functools.wraps(view)
    def check(*args: Any, **kwargs: Any) -> Any:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(copy_current_request_context(view), *args, **kwargs).result(20)

    return check


def test_a_view_that_is_asked_in_another_thread_does_not_run() -> None:
    """O-23, O-02: the thread has Flask's context, and not the library's."""

    @in_own_thread
    @idempotent
    def charge() -> Any:
        return _charge()

    client = _client(charge)
    first, again = (client.post("/charges", headers=KEY) for _ in range(2))
    assert (first.status_code, again.status_code, again.headers[REPLAYED]) == (201, 201, "true")
    assert client.post("/charges", json={"amount": 6}, headers=KEY).status_code == 422
    assert runs == ["POST"]


def test_a_copy_of_the_context_does_not_end_the_request() -> None:
    """L-04, R-01: Flask calls its teardown functions for each copy, while the view still runs."""

    def charge() -> Any:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(copy_current_request_context(_charge)).result(20)
        return {"run": len(runs)}, 201

    client = _client(charge)
    first, again = (client.post("/charges", headers=KEY) for _ in range(2))
    assert (again.data, again.headers[REPLAYED]) == (first.data, "true")
    assert runs == ["POST"]
