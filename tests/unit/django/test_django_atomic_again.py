"""``@idempotent(atomic=True)`` with a view that runs twice, a rollback from outside, or a strict policy."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import OperationalError, connections, transaction
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client, TestCase

from open_idempotency import idem
from open_idempotency._core.commands import Complete
from open_idempotency._engine.engine import here
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.django import idempotent
from open_idempotency.exceptions import BackendUnavailable
from tests.django_project.calls import REPLAYED, post, project
from tests.unit.builders import Clock
from tests.unit.django.atomic_views import place
from tests.unit.django.test_django_atomic import _forget_connection, lose, orders
from tests.unit.django.test_django_atomic import database as database

pytestmark = pytest.mark.usefixtures("database")

runs: list[int] = []


@pytest.fixture(autouse=True)
def _no_runs() -> None:
    runs.clear()


def client() -> Client:
    """A client that turns errors into responses, as in production."""
    return Client(raise_request_exception=False)


def statuses(count: int = 3) -> list[int]:
    """The statuses of this many equal requests."""
    return [post(client()).status_code for _ in range(count)]


def is_atomic_by_itself() -> bool:
    """Whether the project uses ATOMIC_REQUESTS."""
    return bool(connections["default"].settings_dict["ATOMIC_REQUESTS"])


@idempotent(atomic=True)
def order(request: HttpRequest) -> HttpResponse:
    """Insert an order; each run has another body."""
    runs.append(1)
    return HttpResponse(f"order {place()} of run {len(runs)}", status=201)


# A view that runs twice in one request


def tried_again(view: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that retries database errors, as larger projects have it."""

    @functools.wraps(view)
    def inner(*args: Any, **kwargs: Any) -> Any:
        for attempt in range(3):
            try:
                return view(*args, **kwargs)
            except OperationalError:
                if attempt == 2:
                    raise
        raise AssertionError("not reached")

    return inner


def raising_once(view: Callable[..., Any]) -> Callable[..., Any]:
    """A layer between the view and the retry decorator that raises once."""
    raised: list[int] = []

    @functools.wraps(view)
    def inner(*args: Any, **kwargs: Any) -> Any:
        response = view(*args, **kwargs)
        if not raised:
            raised.append(1)
            raise OperationalError
        return response

    return inner


def test_a_view_that_is_tried_again_behind_its_commit_does_not_run_again() -> None:
    """S-06a: a hook raises after the commit, and the retry decorator takes that for a failed transaction."""

    @tried_again
    @idempotent(atomic=True)
    def view(request: HttpRequest) -> HttpResponse:
        def hook() -> None:
            if len(runs) == 1:
                raise OperationalError

        transaction.on_commit(hook)
        response: HttpResponse = order(request)
        return response

    with project(view):
        # With ATOMIC_REQUESTS hooks run after the decorator, so only the client tries again.
        assert statuses() == [500 if is_atomic_by_itself() else 201, 201, 201]
    assert (orders(), len(runs)) == (1, 1)


def test_a_view_that_is_tried_again_within_a_transaction_does_not_run_again() -> None:
    """S-06a: the first run is committed by then, or commits with the outer transaction."""
    with project(tried_again(raising_once(order))):
        first = post(client())
        again = post(client())
    assert (first.status_code, first.content, again.content) == (201, b"order 1 of run 1", b"order 1 of run 1")
    assert orders() == 1


def test_a_view_that_was_rolled_back_and_is_tried_again_runs_again() -> None:
    """S-06a: its second response counts."""

    @tried_again
    @idempotent(atomic=True)
    def view(request: HttpRequest) -> HttpResponse:
        response: HttpResponse = order(request)
        if len(runs) == 1:
            raise OperationalError
        return response

    with project(view) as backend:
        first = post(client())
        lose(backend)
        again = post(client())
    assert (first.status_code, again.status_code, first.content) == (201, 201, again.content)
    assert first.content.endswith(b"of run 2")
    assert (orders(), len(runs)) == (1, 2)


def test_a_second_run_of_a_transaction_that_is_rolled_back_leaves_no_record() -> None:
    """S-06a: the ledger entry that it found was not committed."""

    def view(request: HttpRequest) -> HttpResponse:
        with transaction.atomic():
            response = tried_again(raising_once(order))(request)
            transaction.set_rollback(len(runs) == 1)
        assert isinstance(response, HttpResponse)
        return response

    with project(view):
        assert statuses() == [500, 201, 201]
    assert orders() == 1


# A transaction that is rolled back around the view


def rolled_back_by_flag(request: HttpRequest) -> HttpResponse:
    """Runs the view in a transaction and sets its rollback flag, as an outer decorator may do."""
    with transaction.atomic():
        response: HttpResponse = order(request)
        transaction.set_rollback(len(runs) == 1)
    return response


def rolled_back_to_a_savepoint(request: HttpRequest) -> HttpResponse:
    """Runs the view and rolls back to a savepoint, in a transaction that commits."""
    with transaction.atomic():
        # Django 6.1 renames it.
        savepoint = getattr(transaction, "savepoint_create", transaction.savepoint)()
        response: HttpResponse = order(request)
        if len(runs) == 1:
            transaction.savepoint_rollback(savepoint)
    return response


def rolled_back_by_an_inner_block(request: HttpRequest) -> HttpResponse:
    """Runs the view in a nested ``atomic()`` block that is rolled back, and so in a savepoint."""
    with transaction.atomic():
        try:
            with transaction.atomic():
                response: HttpResponse = order(request)
                if len(runs) == 1:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            pass
    return response


def rolled_back_behind_a_block(request: HttpRequest) -> HttpResponse:
    """Uses ``idem.atomic()`` alone, without the decorator, and rolls back around it."""
    with transaction.atomic():
        with idem.atomic("default") as block:
            runs.append(1)
            response = block.respond(HttpResponse(f"order {place()}", status=201))
        transaction.set_rollback(len(runs) == 1)
    return response


@pytest.mark.parametrize(
    "view",
    [rolled_back_by_flag, rolled_back_to_a_savepoint, rolled_back_by_an_inner_block, rolled_back_behind_a_block],
)
def test_a_response_whose_rows_are_rolled_back_around_it_is_not_recorded(view: Any) -> None:
    """S-05: 500 ``not-committed``; a retry runs, and commits."""
    with project(view):
        first = post(client())
        assert (first.status_code, b"not-committed" in first.content) == (500, True)
        assert statuses() == [201, 201, 201]
    assert (orders(), len(runs)) == (1, 2)


def test_what_a_test_case_holds_open_counts_as_committed() -> None:
    """S-05: otherwise no application could test its views in a ``TestCase``."""

    class Case(TestCase):
        def test_it(self) -> None:
            """Send a request, and repeat it."""
            responses = [post(client()) for _ in range(2)]
            assert [response.status_code for response in responses] == [201, 201]
            assert REPLAYED in responses[1]

    with project(order):
        found = Case("test_it").run()
    assert found is not None
    assert found.wasSuccessful(), (found.errors, found.failures)


def test_the_hook_comes_before_those_of_the_view() -> None:
    """A canary: Django calls hooks in the order of this list."""
    with transaction.atomic():
        transaction.on_commit(lambda: None)
        hooks = connections["default"].run_on_commit
        assert isinstance(hooks, list)
        assert callable(hooks[0][1])


def test_a_stale_worker_sends_what_it_has_committed() -> None:
    """S-06c: its heartbeat noticed after the COMMIT that another worker has taken over."""

    def view(request: HttpRequest) -> HttpResponse:
        response: HttpResponse = order(request)
        here()[0].lost = True
        return response

    with project(view):
        first = post(client())
    assert (first.status_code, first.content) == (201, b"order 1 of run 1")


# Strict policies

POLICIES = [{"on_failed": "reject"}, {"on_failed": "replay"}, {"max_attempts": 1}]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_strict_policy_keeps_a_response_whose_hook_raised(policy: Any) -> None:
    """S-06b: it was committed, however the attempt ended."""

    @idempotent(atomic=True, **policy)
    def view(request: HttpRequest) -> HttpResponse:
        def hook() -> None:
            raise ZeroDivisionError

        transaction.on_commit(hook)
        number = place()
        return HttpResponse(f"order {number}", status=201)

    with project(view):
        assert statuses() == [500, 201, 201]
        assert post(client()).content == b"order 1"
    assert orders() == 1


class DyingBackend(MemoryBackend):
    """A backend whose first completion never arrives, as when a worker is killed after its COMMIT."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock=clock)
        self.died = False

    def complete(self, c: Complete, /) -> Any:
        """Drop the first completion; record the others."""
        if not self.died:
            self.died = True
            raise BackendUnavailable("the worker was killed")
        return super().complete(c)


@pytest.mark.parametrize("awaits", [False, True], ids=["", "async"])
@pytest.mark.parametrize("policy", [{"on_abandoned": "reject"}, {"max_attempts": 1}], ids=str)
def test_a_strict_policy_keeps_a_response_whose_worker_was_killed(policy: Any, awaits: bool) -> None:
    """S-06b: each retry gets the response from the ledger; the view does not run."""
    clock = Clock()
    view = idempotent(atomic=True, record_within=0, **policy)(lambda request: order.__wrapped__(request))

    def sent() -> Any:
        if not awaits:
            return post(client())
        return asyncio.run(asent())

    async def asent() -> Any:
        await sync_to_async(_forget_connection)()  # of the thread that the views of a loop share
        try:
            return await post(AsyncClient(raise_request_exception=False))
        finally:
            await sync_to_async(_forget_connection)()

    with project(view, IDEMPOTENCY_BACKEND=DyingBackend(clock)):
        first = sent()
        clock.now += 31
        again = [sent() for _ in range(2)]
    assert first["Idempotency-Status"] == "unrecorded"
    assert [(response.status_code, response.content) for response in again] == [(201, first.content)] * 2
    assert (again[0][REPLAYED], len(runs)) == ("true", 1)


def test_a_strict_policy_refuses_what_was_not_committed() -> None:
    """O-08: the ledger has no response of the request."""

    @idempotent(atomic=True, on_failed="reject")
    def view(request: HttpRequest) -> HttpResponse:
        place()
        raise ZeroDivisionError

    with project(view):
        assert statuses() == [500, 409, 409]
    assert orders() == 0


def test_another_ledger_may_be_named() -> None:
    """S-06b: the ledger that the view names is used."""
    view = idempotent(atomic=True, ledger="default")(lambda request: HttpResponse(status=201))
    with project(view):
        assert statuses(2) == [201, 201]
