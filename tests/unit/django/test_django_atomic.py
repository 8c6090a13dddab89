"""``@idempotent(atomic=True)``: the response of a Django view commits with its rows, or neither does (S-06)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import IntegrityError, connections, transaction
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.template import engines
from django.template.response import TemplateResponse
from django.test import Client, override_settings
from django.views import View

from open_idempotency import ledger
from open_idempotency.django import exempt, idempotent
from open_idempotency.encryption import EncryptionKeys
from open_idempotency.exceptions import ConfigurationError, LedgerMissing
from tests.django_project.calls import REPLAYED, WatchedBackend, post, project
from tests.unit.django.atomic_views import VIEWS, function, place

with override_settings(REST_FRAMEWORK={"UNAUTHENTICATED_USER": None}):
    from rest_framework.exceptions import APIException, ValidationError
    from rest_framework.request import Request
    from rest_framework.response import Response
    from rest_framework.views import APIView

ORDERS = "CREATE TABLE orders (number integer PRIMARY KEY);"

hooks: list[str] = []


def orders() -> int:
    """The number of committed rows."""
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM orders")
        return int(cursor.fetchone()[0])


@pytest.fixture(params=[False, True], ids=["", "ATOMIC_REQUESTS"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The default database in a new file; its path."""
    path = str(tmp_path / "application.db")
    options = {"ENGINE": "django.db.backends.sqlite3", "NAME": path, "ATOMIC_REQUESTS": request.param}
    made = connections.configure_settings({"default": options})["default"]
    before, connections.databases["default"] = connections.databases["default"], made
    _forget_connection()
    with connections["default"].cursor() as cursor:
        for statement in (ledger.schema("sqlite") + ORDERS).split(";"):
            cursor.execute(statement)
    hooks.clear()
    try:
        yield path
    finally:
        _forget_connection()
        connections.databases["default"] = before


def _forget_connection() -> None:
    connections["default"].close()
    del connections["default"]


pytestmark = pytest.mark.usefixtures("database")


def client() -> Client:
    """A client that turns errors into responses, as in production."""
    return Client(raise_request_exception=False)


def lose(backend: WatchedBackend) -> None:
    """Delete the records, as a flushed cache does."""
    for record in list(backend.scan()):
        backend.delete(record.record_id)


def records(backend: WatchedBackend) -> int:
    """The number of records."""
    return len(list(backend.scan()))


# Every form of a view


@pytest.mark.parametrize("name", VIEWS)
def test_a_retry_replays_although_the_record_was_lost(name: str) -> None:
    """S-06, O-29: the same status, body, fields and REST framework's data, and no second row."""
    with project(VIEWS[name]()) as backend:
        first = post(client(), headers={"Accept": "application/json"})
        lose(backend)
        again = post(client(), headers={"Accept": "application/json"})
    assert (first.status_code, again.status_code) == (201, 201)
    assert (first.content, first["Content-Type"], first["X-Order"]) == (
        again.content, again["Content-Type"], again["X-Order"],
    )  # fmt: skip
    assert (REPLAYED in first, again[REPLAYED]) == (False, "true")
    assert getattr(again, "data", None) == getattr(first, "data", None)
    assert orders() == 1


def test_the_record_that_was_lost_is_complete_again() -> None:
    """S-06: a further retry calls only the backend."""
    with project(function) as backend:
        post(client())
        lose(backend)
        second = post(client())
        with connections["default"].cursor() as cursor:
            cursor.execute("DELETE FROM open_idempotency_ledger")
        third = post(client())
    assert second.content == third.content == b"order 1"
    assert orders() == 1


def test_an_ordinary_retry_does_not_come_to_the_view() -> None:
    """O-02: the middleware replays it."""
    with project(function) as backend:
        responses = [post(client()) for _ in range(3)]
    assert {response.content for response in responses} == {b"order 1"}
    assert backend.verbs.count("complete") == 1


def test_another_body_is_refused_although_the_record_was_lost() -> None:
    """S-06, O-05: the fingerprint is stored beside the response."""
    with project(function) as backend:
        post(client(), data=1)
        lose(backend)
        other = post(client(), data=2)
        assert (other.status_code, other.json()["type"]) == (422, "urn:problem-type:open-idempotency:key-reused")
        assert records(backend) == 0
        assert post(client(), data=1).content == b"order 1"
    assert orders() == 1


# Failures


def test_a_view_that_raises_keeps_nothing() -> None:
    """S-06: a retry runs again, with an order of its own."""

    @idempotent(atomic=True)
    def view(request: HttpRequest) -> HttpResponse:
        hooks.append("ran")
        number = place()
        if len(hooks) == 1:
            raise ZeroDivisionError
        return HttpResponse(f"order {number}")

    with project(view):
        assert [post(client()).status_code for _ in range(3)] == [500, 200, 200]
    assert (orders(), len(hooks)) == (1, 2)


def test_a_view_that_asks_for_a_rollback_is_run_again() -> None:
    """S-06: its response is neither in the ledger nor in the record."""

    @idempotent(atomic=True)
    def view(request: HttpRequest) -> HttpResponse:
        hooks.append("ran")
        place()
        transaction.set_rollback(len(hooks) == 1)
        return HttpResponse(f"run {len(hooks)}")

    with project(view):
        assert [post(client()).content for _ in range(3)] == [b"run 1", b"run 2", b"run 2"]
    assert orders() == 1


@pytest.mark.parametrize("status", [503, 500, 429, 401])
def test_a_response_that_is_not_kept_takes_the_rows_with_it(status: int) -> None:
    """S-06: the rows are rolled back, as a retry runs again and would insert them twice."""

    @idempotent(atomic=True)
    def view(request: HttpRequest) -> HttpResponse:
        hooks.append("ran")
        place()
        return HttpResponse(status=status if len(hooks) == 1 else 201)

    with project(view):
        assert [post(client()).status_code for _ in range(3)] == [status, 201, 201]
    assert orders() == 1


def test_a_response_that_the_view_discards_takes_the_rows_with_it() -> None:
    """S-06: the rows are rolled back, as ``idem.discard()`` makes a retry run again."""
    from open_idempotency import idem

    @idempotent(atomic=True)
    def view(request: HttpRequest) -> HttpResponse:
        hooks.append("ran")
        place()
        if len(hooks) == 1:
            idem.discard()
        return HttpResponse(f"run {len(hooks)}")

    with project(view):
        assert [post(client()).content for _ in range(3)] == [b"run 1", b"run 2", b"run 2"]
    assert orders() == 1


class Unavailable(APIException):
    """An exception that REST framework turns into a response."""

    status_code = 503


@pytest.mark.parametrize(("error", "statuses"), [(Unavailable, [503, 201, 201]), (ValidationError, [400, 400, 400])])
def test_what_rest_framework_makes_of_an_exception_is_all_or_nothing(error: Any, statuses: list[int]) -> None:
    """S-06: an exception that gets a response within the transaction leaves no row that a retry inserts again."""

    @idempotent(atomic=True)
    class Failing(APIView):
        authentication_classes = []

        def post(self, request: Request) -> Response:
            hooks.append("ran")
            place()
            if len(hooks) == 1:
                raise error
            return Response({}, status=201)

    with project(Failing.as_view()):
        assert [post(client()).status_code for _ in range(3)] == statuses
    assert orders() == statuses.count(201) // 2


def test_a_stream_is_refused_before_anything_is_kept() -> None:
    """Bad input: a stream is no whole response that could be committed."""

    @idempotent(atomic=True)
    def view(request: HttpRequest) -> StreamingHttpResponse:
        place()
        return StreamingHttpResponse(iter([b"part"]))

    with project(view), pytest.raises(TypeError, match=r"whole response.*StreamingHttpResponse"):
        post(Client())
    assert orders() == 0


def test_missing_tables_are_reported_before_any_effect() -> None:
    """Bad input: the message says how to create them."""
    with connections["default"].cursor() as cursor:
        cursor.execute("DROP TABLE open_idempotency_ledger")
    with project(function), pytest.raises(LedgerMissing, match=r"manage\.py migrate"):
        post(Client())
    assert orders() == 0


def test_an_unknown_database_is_reported() -> None:
    """Bad input: the message names the alias."""

    @idempotent(atomic="elsewhere")
    def view(request: HttpRequest) -> HttpResponse:
        raise AssertionError("not reached")

    with project(view), pytest.raises(ConfigurationError, match=r"no 'elsewhere'; it has default"):
        post(Client())


def test_an_awaited_view_is_refused_where_it_is_decorated() -> None:
    """S-08: an async function, method or class."""

    class Awaited(View):
        async def post(self, request: HttpRequest) -> HttpResponse:
            raise AssertionError("not reached")

    for view in (Awaited, Awaited.post, Awaited.as_view()):
        with pytest.raises(ConfigurationError, match="ordinary function"):
            idempotent(atomic=True)(view)


# Hooks and templates within the transaction


def test_hooks_run_once_after_the_commit() -> None:
    """S-06: hooks run neither for a replay nor where the view was rolled back."""

    @idempotent(atomic=True)
    def view(request: HttpRequest) -> HttpResponse:
        number = place()
        transaction.on_commit(lambda: hooks.append(f"{number} of {orders()}"))
        return HttpResponse(status=201)

    with project(view) as backend:
        post(client())
        lose(backend)
        post(client())
        post(client())
    assert hooks == ["1 of 1"]


def test_a_hook_that_raises_costs_its_client_the_response_and_nobody_else() -> None:
    """S-06: the response was committed before, so a retry gets it; the hook does not run again."""

    @idempotent(atomic=True)
    def view(request: HttpRequest) -> HttpResponse:
        place()

        def hook() -> None:
            hooks.append("ran")
            raise ZeroDivisionError

        transaction.on_commit(hook)
        return HttpResponse(status=201)

    with project(view):
        assert [post(client()).status_code for _ in range(3)] == [500, 201, 201]
    assert (orders(), hooks) == (1, ["ran"])


def test_a_database_error_that_the_view_swallows_takes_the_response_too() -> None:
    """S-06: Django rolls such a transaction back, so its response would describe rows that do not exist."""

    @idempotent(atomic=True)
    def view(request: HttpRequest) -> HttpResponse:
        hooks.append("ran")
        with contextlib.suppress(IntegrityError), transaction.atomic(savepoint=False):
            place()
            if len(hooks) == 1:
                raise IntegrityError
        return HttpResponse(f"run {len(hooks)}", status=201)

    with project(view):
        responses = [post(client()) for _ in range(3)]
    assert [(response.status_code, response.content) for response in responses[1:]] == [(201, b"run 2")] * 2
    assert orders() == 1


def test_a_template_is_rendered_within_the_transaction() -> None:
    """S-06, R-08: what a lazy context writes commits with the response, and is written once."""

    @idempotent(atomic=True)
    def view(request: HttpRequest) -> TemplateResponse:
        return TemplateResponse(request, engines["django"].from_string("order {{ number }}"), {"number": place})

    with project(view) as backend:
        first = post(client())
        lose(backend)
        assert post(client()).content == first.content == b"order 1"
    assert orders() == 1


def test_a_template_that_fails_takes_the_rows_with_it() -> None:
    """S-06: the rows are rolled back."""

    def fail() -> None:
        raise ZeroDivisionError

    @idempotent(atomic=True)
    def view(request: HttpRequest) -> TemplateResponse:
        place()
        return TemplateResponse(request, engines["django"].from_string("{{ fail }}"), {"fail": fail})

    with project(view):
        assert post(client()).status_code == 500
    assert orders() == 0


# Coverage


def test_without_a_key_every_request_runs_and_commits() -> None:
    """S-03: the ledger stays empty."""
    with project(function) as backend:
        assert [post(client(), key=None).content for _ in range(2)] == [b"order 1", b"order 2"]
        assert records(backend) == 0
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM open_idempotency_ledger")
        assert cursor.fetchone()[0] == 0


def test_without_a_key_a_response_that_is_not_kept_commits_its_rows() -> None:
    """S-03: as without the decorator, whatever the status."""

    @idempotent(atomic=True)
    def view(request: HttpRequest) -> HttpResponse:
        place()
        return HttpResponse(status=503)

    with project(view):
        post(client(), key=None)
    assert orders() == 1


def test_an_exempt_view_runs_in_a_plain_transaction() -> None:
    """With a key too."""

    @exempt
    @idempotent(atomic=True)
    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(f"order {place()}")

    with project(view) as backend:
        assert [post(client()).content for _ in range(2)] == [b"order 1", b"order 2"]
        assert records(backend) == 0


def test_a_method_that_is_not_covered_runs_in_a_plain_transaction() -> None:
    with project(function):
        assert client().get("/0").content == b"order 1"


def test_fields_of_the_policy_go_with_it() -> None:
    """``required`` can be set beside ``atomic``."""

    @idempotent(atomic=True, required=True)
    def view(request: HttpRequest) -> HttpResponse:
        raise AssertionError("not reached")

    with project(view):
        assert post(client(), key=None).status_code == 400


def test_sealed_responses_are_sealed_in_the_ledger_too() -> None:
    """A retry can decrypt them."""
    keys = EncryptionKeys({"2026": b"k" * 32})
    with project(function, IDEMPOTENCY_ENCRYPTION=keys) as backend:
        first = post(client())
        with connections["default"].cursor() as cursor:
            cursor.execute("SELECT response FROM open_idempotency_ledger")
            assert b"order" not in bytes(cursor.fetchone()[0])
        lose(backend)
        assert post(client()).content == first.content
    assert orders() == 1
