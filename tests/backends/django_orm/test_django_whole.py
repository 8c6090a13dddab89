"""Middleware, ``django://`` and the view's own rows in one database, with ATOMIC_REQUESTS on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse

from open_idempotency import idem
from open_idempotency.backends.django_orm import DjangoBackend
from tests.backends.django_orm import on_django
from tests.django_project.calls import PATIENCE, REPLAYED, post, project
from tests.postgres_server import PostgresServer

from django.test import AsyncClient, Client  # isort: skip

Send = Callable[..., Any]


def _blocking(place: str = "/0", **extra: Any) -> Any:
    return post(Client(raise_request_exception=False), place, **extra)


def _awaited(place: str = "/0", **extra: Any) -> Any:
    return asyncio.run(post(AsyncClient(raise_request_exception=False), place, **extra))


both_chains = pytest.mark.parametrize("send", [_blocking, _awaited], ids=["wsgi", "asgi"])


@pytest.fixture
def alias(postgres18: PostgresServer) -> Iterator[str]:
    """PostgreSQL with ATOMIC_REQUESTS and a table of the application."""
    with on_django.aliased(on_django.postgresql(postgres18, "postgres", ATOMIC_REQUESTS=True)) as alias:
        on_django.emptied(alias)
        with connections[alias].cursor() as cursor:
            cursor.execute("DROP TABLE IF EXISTS orders")
            cursor.execute("CREATE TABLE orders (attempt int)")
        yield alias
        with connections[alias].cursor() as cursor:
            cursor.execute("DROP TABLE orders")


def _orders(alias: str) -> list[int]:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT attempt FROM orders ORDER BY attempt")
        return [row[0] for row in cursor.fetchall()]


def _order(alias: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("INSERT INTO orders VALUES (%s)", [idem.attempt])


@both_chains
def test_a_repeat_is_replayed_and_the_rows_are_there_once(alias: str, send: Send) -> None:
    """O-02, R-08."""

    def view(request: HttpRequest) -> HttpResponse:
        assert connections[alias].in_atomic_block
        _order(alias)
        return JsonResponse({"attempt": idem.attempt}, status=201)

    with project(view, IDEMPOTENCY_BACKEND=f"django://{alias}"):
        first, again = send(), send()
    assert (first.status_code, first.content) == (again.status_code, again.content)
    assert again[REPLAYED] == "true"
    assert _orders(alias) == [1]


@both_chains
def test_a_rolled_back_view_keeps_its_attempt_and_its_stages_on_record(alias: str, send: Send) -> None:
    """O-08: the rollback removes the view's rows; claim and stages have their own transactions."""
    charges: list[int] = []

    def view(request: HttpRequest) -> HttpResponse:
        _order(alias)
        idem.run("charge", lambda: charges.append(idem.attempt))
        if idem.attempt == 1:
            raise ValueError
        return JsonResponse({"attempt": idem.attempt})

    with project(view, IDEMPOTENCY_BACKEND=f"django://{alias}"):
        assert send().status_code == 500
        assert send().json() == {"attempt": 2}
    assert (_orders(alias), charges) == ([2], [1])


def test_a_duplicate_gets_its_409_while_the_transaction_is_open(alias: str) -> None:
    """O-03: it does not wait for the COMMIT of the first request."""
    inside, go_on = threading.Event(), threading.Event()
    results: list[Any] = []

    def view(request: HttpRequest) -> HttpResponse:
        _order(alias)
        inside.set()
        assert go_on.wait(PATIENCE)
        return HttpResponse(status=201)

    def first() -> None:
        try:
            results.append(_blocking())
        finally:
            connections.close_all()

    with project(view, IDEMPOTENCY_BACKEND=f"django://{alias}"):
        thread = threading.Thread(target=first)
        thread.start()
        try:
            assert inside.wait(PATIENCE)
            duplicate = _blocking()
        finally:
            go_on.set()
            thread.join(PATIENCE)
        assert (duplicate.status_code, results[0].status_code) == (409, 201)
        assert _blocking()[REPLAYED] == "true"
    assert _orders(alias) == [1]


def test_a_test_in_a_transaction_sees_what_a_deployment_does(alias: str) -> None:
    """Django's TestCase runs all of this in a transaction that it rolls back."""

    def view(request: HttpRequest) -> HttpResponse:
        _order(alias)
        return JsonResponse({"attempt": idem.attempt}, status=201)

    with project(view, IDEMPOTENCY_BACKEND=f"django://{alias}"), transaction.atomic(alias):
        assert _blocking().status_code == 201
        assert _blocking()[REPLAYED] == "true"
        assert _orders(alias) == [1]
        transaction.set_rollback(True, using=alias)
    assert _orders(alias) == []


def test_overridden_settings_count_from_the_next_client_on(alias: str, tmp_path: Path) -> None:
    """``override_settings`` changes the backend and the policy."""

    def view(request: HttpRequest) -> HttpResponse:
        return JsonResponse({"attempt": idem.attempt}, status=201)

    with on_django.aliased(on_django.sqlite(tmp_path)) as other:
        for backend in (f"django://{alias}", f"django://{other}", "memory://"):
            with project(view, IDEMPOTENCY_BACKEND=backend):
                assert not _blocking().has_header(REPLAYED)
        with project(view, IDEMPOTENCY_BACKEND=f"django://{other}"):
            assert _blocking()[REPLAYED] == "true"


@both_chains
def test_a_request_leaves_no_connection_behind(alias: str, send: Send) -> None:
    """With CONN_MAX_AGE 0, so that a test runner can drop the database."""
    backend = DjangoBackend(alias)
    with project(lambda request: HttpResponse(status=201), IDEMPOTENCY_BACKEND=backend):
        assert send().status_code == 201
        assert send()[REPLAYED] == "true"
    pool = backend._connections._pools.get()
    assert len(pool.idle) == 0
