"""The Django middleware, sync and async: contexts, replays, exceptions, rules. Common behaviour is in tests/http."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import iscoroutinefunction
from django.db import connection, transaction
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.template import engines
from django.template.response import SimpleTemplateResponse
from django.test import AsyncClient, Client
from django.utils.decorators import async_only_middleware, sync_only_middleware

from open_idempotency import idem
from open_idempotency.django import IdempotencyMiddleware
from tests.django_project.calls import KEY, OURS, REPLAYED, post, project

Send = Callable[..., Any]


def _blocking(place: str = "/0", **extra: Any) -> Any:
    return post(Client(raise_request_exception=False), place, **extra)


def _awaited(place: str = "/0", **extra: Any) -> Any:
    return asyncio.run(post(AsyncClient(raise_request_exception=False), place, **extra))


both_chains = pytest.mark.parametrize("send", [_blocking, _awaited], ids=["wsgi", "asgi"])


def _counting(calls: list[int]) -> Callable[[HttpRequest], HttpResponse]:
    def view(request: HttpRequest) -> HttpResponse:
        calls.append(1)
        return JsonResponse({"calls": len(calls)}, status=201)

    return view


def _resuming(calls: list[str], *, awaited: bool) -> Any:
    """A sync or async view that fails between two stages, the first time."""

    def blocking(request: HttpRequest) -> HttpResponse:
        idem.run("charge", calls.append, "charge")
        if idem.attempt == 1:
            raise ValueError
        return JsonResponse({"attempt": idem.attempt})

    async def charge() -> None:
        calls.append("charge")

    async def coroutine(request: HttpRequest) -> HttpResponse:
        await idem.arun("charge", charge)
        if idem.attempt == 1:
            raise ValueError
        return JsonResponse({"attempt": idem.attempt})

    return coroutine if awaited else blocking


@both_chains
@pytest.mark.parametrize("awaited", [False, True], ids=["blocking view", "awaited view"])
def test_stages_reach_a_view_sync_or_async_in_either_chain(send: Send, awaited: bool) -> None:
    """R-08, O-08, S-08: the retry resumes after the stage."""
    calls: list[str] = []
    with project(_resuming(calls, awaited=awaited)):
        assert send().status_code == 500
        assert send().json() == {"attempt": 2}
    assert calls == ["charge"]


@sync_only_middleware
def sync_only(get_response: Any) -> Any:
    """A sync-only middleware, so that Django adapts the chain around it."""
    return lambda request: get_response(request)


@async_only_middleware
def async_only(get_response: Any) -> Any:
    """An async-only middleware, so that Django adapts the chain around it."""

    async def middleware(request: HttpRequest) -> Any:
        return await get_response(request)

    return middleware


@both_chains
@pytest.mark.parametrize("other", ["sync_only", "async_only"])
@pytest.mark.parametrize("inside", [True, False], ids=["inside", "outside"])
@pytest.mark.parametrize("awaited", [False, True], ids=["blocking view", "awaited view"])
def test_middleware_of_one_kind_beside_it_changes_nothing(send: Send, other: str, inside: bool, awaited: bool) -> None:
    """R-08: the context reaches the view through Django's own adapters."""
    calls: list[str] = []
    listed = [OURS, f"{__name__}.{other}"]
    with project(_resuming(calls, awaited=awaited), MIDDLEWARE=listed if inside else listed[::-1]):
        assert send().status_code == 500
        assert send().json() == {"attempt": 2}
        assert send()[REPLAYED] == "true"
    assert calls == ["charge"]


def test_the_awaited_chain_needs_no_adapter() -> None:
    """R-08: Django sees coroutine functions, so neither the middleware nor its hook costs a thread."""

    async def get_response(request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    with project():
        middleware = IdempotencyMiddleware(get_response)
    assert iscoroutinefunction(middleware)
    assert iscoroutinefunction(middleware.process_view)


@both_chains
def test_nothing_of_a_request_is_left_in_the_thread(send: Send) -> None:
    """S-03: the context ends with the request."""
    with project(_counting([])):
        send()
        send(key=None)
    assert not idem.active
    with pytest.raises(Exception, match="no idempotent request"):
        _ = idem.attempt


@both_chains
def test_without_a_key_stages_run_plainly_and_the_backend_is_not_asked(send: Send) -> None:
    """S-03: the route is covered and the request has no key."""

    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(idem.run("charge", str, 1))

    with project(view) as backend:
        assert send(key=None).content == b"1"
    assert backend.verbs == []


class _Atomic(dict[str, Any]):
    """A backend that notes each command, and whether it ran inside the view's transaction."""


@pytest.fixture
def atomic_requests(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A project with ATOMIC_REQUESTS."""
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    yield
    connection.close()


def test_the_claim_and_the_response_are_outside_the_views_transaction(
    atomic_requests: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R-08: with ATOMIC_REQUESTS; a claim inside would be rolled back with the view, and a response would be recorded
    too early.
    """
    seen: list[tuple[str, bool]] = []

    def view(request: HttpRequest) -> HttpResponse:
        seen.append(("view", connection.in_atomic_block))
        return HttpResponse("done")

    with project(view) as backend:
        monkeypatch.setattr(backend, "noted", lambda verb: seen.append((verb, connection.in_atomic_block)))
        assert _blocking().content == b"done"
        assert _blocking()[REPLAYED] == "true"
    assert seen == [("claim", False), ("view", True), ("complete", False), ("claim", False)]


def test_a_view_that_is_rolled_back_runs_again(atomic_requests: None) -> None:
    """O-08, R-08: its effects are rolled back, and its attempt has failed."""
    calls: list[str] = []
    committed: list[int] = []

    def view(request: HttpRequest) -> HttpResponse:
        transaction.on_commit(lambda: committed.append(idem.attempt))
        return _resuming(calls, awaited=False)(request)

    with project(view):
        assert _blocking().status_code == 500
        assert _blocking().json() == {"attempt": 2}
    assert committed == [2]


@both_chains
def test_a_template_response_is_stored_rendered(send: Send) -> None:
    """R-08: Django renders it after the view."""
    template = engines["django"].from_string("<p>{{ name }}</p>")
    with project(lambda request: SimpleTemplateResponse(template, {"name": "a & b"})):
        first, again = send(), send()
    assert first.content == again.content == b"<p>a &amp; b</p>"
    assert again[REPLAYED] == "true"


@both_chains
def test_a_view_that_raises_is_not_stored_though_it_said_keep(send: Send) -> None:
    """O-08: ``keep()`` concerns only a response of the view."""
    attempts: list[int] = []

    def view(request: HttpRequest) -> HttpResponse:
        attempts.append(idem.attempt)
        idem.keep()
        raise ValueError

    with project(view):
        assert [send().status_code, send().status_code] == [500, 500]
    assert attempts == [1, 2]


@both_chains
def test_a_404_that_the_view_raised_is_stored(send: Send) -> None:
    """Django turns Http404 into a 4xx response, which is an outcome."""
    calls: list[int] = []

    def view(request: HttpRequest) -> HttpResponse:
        calls.append(1)
        raise Http404

    with project(view):
        assert send().status_code == 404
        assert send()[REPLAYED] == "true"
    assert calls == [1]


def test_a_worker_that_exits_leaves_a_failed_attempt() -> None:
    """L-04: SystemExit is raised on; the retry runs at once and has the stage."""
    calls: list[str] = []

    def view(request: HttpRequest) -> HttpResponse:
        idem.run("charge", calls.append, "charge")
        if idem.attempt == 1:
            raise SystemExit
        return JsonResponse({"attempt": idem.attempt})

    with project(view):
        with pytest.raises(SystemExit):
            _blocking()
        assert _blocking().json() == {"attempt": 2}
    assert calls == ["charge"]


@both_chains
def test_cookies_go_to_the_first_client_alone(send: Send) -> None:
    """R-02."""

    def view(request: HttpRequest) -> HttpResponse:
        response = HttpResponse("done")
        response.set_cookie("session", "secret")
        return response

    with project(view):
        assert send().cookies["session"].value == "secret"
        again = send()
    assert again.content == b"done"
    assert not again.cookies


def stamping(get_response: Any) -> Any:
    """An inner middleware that sets headers on every response."""

    def middleware(request: HttpRequest) -> Any:
        response = get_response(request)
        response["X-Request-ID"] = request.headers["X-Request-ID"]
        response["X-Count"] = response.get("X-Count", "") + "1"
        response.content += b"!"
        return response

    return middleware


@both_chains
def test_a_replay_is_what_was_stored_whatever_inner_middleware_does_to_it(send: Send) -> None:
    """R-01, R-02: only headers that are never stored may differ."""
    with project(lambda request: HttpResponse("done"), MIDDLEWARE=[OURS, f"{__name__}.stamping"]):
        send(headers={"X-Request-ID": "first"})
        again = send(headers={"X-Request-ID": "second"})
    assert again.content == b"done!"
    assert again["X-Count"] == "1"
    assert again["X-Request-ID"] == "second"


def _other_status(response: HttpResponse) -> None:
    response.status_code = 299


def _other_field(response: HttpResponse) -> None:
    response["Content-Type"] = "text/other"


def _one_more_field(response: HttpResponse) -> None:
    response["X-More"] = "1"


def _other_body(response: HttpResponse) -> None:
    response.content = b"enod"


ALTERATIONS = [_other_status, _other_field, _one_more_field, _other_body]


def altering(get_response: Any) -> Any:
    """An inner middleware that changes one property of a replay, by the number in the request."""

    def middleware(request: HttpRequest) -> Any:
        response = get_response(request)
        if REPLAYED in response:
            ALTERATIONS[int(request.headers["X-Alteration"])](response)
        return response

    return middleware


@both_chains
@pytest.mark.parametrize("number", range(len(ALTERATIONS)))
def test_a_replay_that_is_changed_in_one_thing_is_sent_as_it_was_stored(send: Send, number: int) -> None:
    """R-01: an unchanged replay is sent without being rebuilt, so each property has to be compared."""
    with project(lambda request: HttpResponse("done"), MIDDLEWARE=[OURS, f"{__name__}.altering"]):
        first = send()
        again = send(headers={"X-Alteration": str(number)})
    assert (again.status_code, again.content, again["Content-Type"]) == (200, b"done", first["Content-Type"])
    assert "X-More" not in again


def refusing(get_response: Any) -> Any:
    """An inner middleware that refuses every request."""
    return lambda request: HttpResponse(status=403)


@both_chains
def test_a_request_that_other_middleware_refuses_claims_nothing(send: Send) -> None:
    """The claim follows the request phase of all other middleware, on either side in the list."""
    with project(_counting([]), MIDDLEWARE=[OURS, f"{__name__}.refusing"]) as backend:
        assert send().status_code == 403
    assert backend.verbs == []


@both_chains
def test_listed_twice_it_does_not_wait_for_itself(send: Send) -> None:
    """I6: the second one leaves the request to the first; the system check reports it."""
    with project(_counting([]), MIDDLEWARE=[OURS, OURS]):
        assert send().json() == {"calls": 1}
        assert send()[REPLAYED] == "true"


def test_two_key_headers_are_distinguished_from_one_with_a_comma_under_asgi() -> None:
    """H-07: Django joins them in META; the scope has both."""
    line = (b"idempotency-key", f'"{KEY}"'.encode())

    async def send() -> Any:
        client = AsyncClient()
        scope = client._base_scope(path="/0", method="POST")
        scope["headers"] = [line, line]
        return await client.request(**scope)

    with project(_counting([])) as backend:
        response = asyncio.run(send())
    assert response.status_code == 400
    assert "one Idempotency-Key header" in response.json()["detail"]
    assert backend.verbs == []
