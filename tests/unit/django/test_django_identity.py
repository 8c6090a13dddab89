"""Who the caller is, in Django: the authenticated user, loaded only if the request can have one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client, override_settings
from django.utils.functional import SimpleLazyObject

from open_idempotency.django.identity import identify
from open_idempotency.exceptions import ScopeUnknown
from tests.django_project.calls import OURS, REPLAYED, post, project

AUTHENTICATION = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]


def _blocking(user: Any = None, **extra: Any) -> Any:
    client = Client()
    if user is not None:
        client.force_login(user)
    return post(client, **extra)


def _awaited(user: Any = None, **extra: Any) -> Any:
    client = AsyncClient()
    if user is not None:
        client.force_login(user)

    async def send() -> Any:
        return await post(client, **extra)

    return asyncio.run(send())


both_chains = pytest.mark.parametrize("send", [_blocking, _awaited], ids=["wsgi", "asgi"])
either_order = pytest.mark.parametrize(
    "listed", [[*AUTHENTICATION, OURS], [OURS, *AUTHENTICATION]], ids=["before", "behind"]
)
Send = Callable[..., Any]


@pytest.fixture(scope="module", autouse=True)
def _tables() -> Iterator[None]:
    """The tables of django.contrib.auth."""
    from django.core.management import call_command
    from django.db import connections

    call_command("migrate", verbosity=0, interactive=False)
    yield
    connections.close_all()


@pytest.fixture
def new_user() -> Callable[[], Any]:
    """Makes users with unique names."""
    from django.contrib.auth.models import User

    return lambda: User.objects.create_user(uuid4().hex)


@both_chains
@either_order
def test_two_users_with_one_key_are_two_requests(send: Send, listed: list[str], new_user: Callable[[], Any]) -> None:
    """AuthenticationMiddleware may be listed before or after."""
    calls: list[Any] = []

    def view(request: HttpRequest) -> HttpResponse:
        calls.append(request.user.pk)
        return HttpResponse(str(request.user.pk))

    one, two = new_user(), new_user()
    with project(view, MIDDLEWARE=listed):
        assert send(one).content == str(one.pk).encode()
        assert send(two).content == str(two.pk).encode()
        assert send(one)[REPLAYED] == "true"
    assert calls == [one.pk, two.pk]


@both_chains
def test_no_session_is_touched_for_a_client_without_one(send: Send) -> None:
    """O-01: the response does not get ``Vary: Cookie``."""
    with project(lambda request: HttpResponse("done"), MIDDLEWARE=[*AUTHENTICATION, OURS]):
        response = send()
        assert "Vary" not in response
        assert send(key="short").status_code == 400


@both_chains
def test_the_user_is_not_loaded_where_the_scope_is_configured(send: Send, new_user: Callable[[], Any]) -> None:
    """``scope=`` takes precedence."""
    options = {"MIDDLEWARE": [*AUTHENTICATION, OURS], "IDEMPOTENCY_SCOPE": lambda request: "everybody"}
    with project(lambda request: HttpResponse("done"), **options):
        assert "Vary" not in send(new_user())
        assert send(new_user())[REPLAYED] == "true"


class _Token:
    """A user of a custom token authentication, without a session."""

    is_authenticated = True

    def __init__(self, pk: str | None) -> None:
        self.pk = pk


def by_token(get_response: Any) -> Any:
    """A middleware that replaces the session's user by its own lazy user, as such middleware does."""

    def middleware(request: Any) -> Any:
        request.user = SimpleLazyObject(lambda: _Token(request.headers.get("X-Token")))
        return get_response(request)

    return middleware


@both_chains
def test_another_middlewares_lazy_user_is_who_counts(send: Send) -> None:
    """``request.user`` counts, not the session's user behind it."""
    listed = [*AUTHENTICATION, f"{__name__}.by_token", OURS]
    with project(lambda request: HttpResponse(request.headers["X-Token"]), MIDDLEWARE=listed):
        assert send(headers={"X-Token": "ann"}).content == b"ann"
        assert send(headers={"X-Token": "bob"}).content == b"bob"
        assert send(headers={"X-Token": "ann"})[REPLAYED] == "true"


@both_chains
def test_an_authenticated_user_without_a_primary_key_is_an_error(send: Send) -> None:
    """Such users never share a scope."""
    listed = [*AUTHENTICATION, f"{__name__}.by_token", OURS]
    with (
        project(lambda request: HttpResponse(), MIDDLEWARE=listed),
        pytest.raises(ScopeUnknown, match="IDEMPOTENCY_SCOPE"),
    ):
        send()


def two_kinds(get_response: Any) -> Any:
    """A middleware whose users are of two models."""

    def middleware(request: Any) -> Any:
        label = request.headers["X-Kind"]
        request.user = SimpleNamespace(is_authenticated=True, pk=1, _meta=SimpleNamespace(label=label))
        return get_response(request)

    return middleware


@both_chains
def test_users_of_two_models_with_one_primary_key_are_two_callers(send: Send) -> None:
    """I10."""
    calls: list[int] = []

    def view(request: HttpRequest) -> HttpResponse:
        calls.append(1)
        return HttpResponse("done")

    with project(view, MIDDLEWARE=[f"{__name__}.two_kinds", OURS]):
        send(headers={"X-Kind": "auth.User"})
        send(headers={"X-Kind": "shop.Customer"})
    assert calls == [1, 1]


# Tenants


def by_tenant(get_response: Any) -> Any:
    """A middleware that sets ``request.tenant``, as packages for tenants do."""

    def middleware(request: Any) -> Any:
        found = request.headers.get("X-Tenant")
        request.tenant = {"text": found, "object": SimpleNamespace(pk=found), "lazy": SimpleLazyObject(lambda: found)}[
            request.headers.get("X-Form", "text")
        ]
        return get_response(request)

    return middleware


@both_chains
@pytest.mark.parametrize("form", ["text", "object", "lazy"])
@pytest.mark.parametrize("who", [{}, {"Authorization": "Bearer one"}, "user"])
def test_one_caller_in_two_tenants_is_two(send: Send, form: str, who: Any, new_user: Callable[[], Any]) -> None:
    """O-16: primary keys begin at 1 in each tenant, so the user's alone is no identity."""
    user = new_user() if who == "user" else None
    headers = {"X-Form": form, **(who if isinstance(who, dict) else {})}

    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(request.headers["X-Tenant"])

    with project(view, MIDDLEWARE=[*AUTHENTICATION, f"{__name__}.by_tenant", OURS]):
        for name in ("one", "two", "one"):
            response = send(user, headers={**headers, "X-Tenant": name})
            assert response.content == name.encode()
        assert response[REPLAYED] == "true"


def by_nameless_tenant(get_response: Any) -> Any:
    """A middleware whose tenants have no attribute that distinguishes them."""

    def middleware(request: Any) -> Any:
        request.tenant = object()
        return get_response(request)

    return middleware


@both_chains
def test_a_tenant_without_an_identity_is_nobodys_bucket(send: Send) -> None:
    """O-16: a 500 says what to set; tenants never share a scope."""
    options = {"MIDDLEWARE": [f"{__name__}.by_nameless_tenant", OURS]}
    with project(lambda request: HttpResponse("done"), **options), pytest.raises(ScopeUnknown, match="IDEMPOTENCY_"):
        send()


class ReadsAnywhere:
    """A router with replicas: reads use any of them, and all writes use the primary."""

    reads = 0

    def db_for_read(self, model: Any, **hints: Any) -> str:
        ReadsAnywhere.reads += 1
        return ("default", "replica")[ReadsAnywhere.reads % 2]

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return "default"


class OneForEach:
    """A router with a database for each tenant."""

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return "tenant"


def test_a_user_of_another_database_is_another_caller() -> None:
    """O-16: also if the user was loaded from there without a router."""
    from django.contrib.auth.models import User

    here, there = User(pk=1), User(pk=1)
    here._state.db, there._state.db = "default", "other"
    request: Any = SimpleNamespace(user=here, resolver_match=None)
    names = []
    for user in (here, there):
        request.user = user
        names.append(identify(request, None).user)
    with override_settings(DATABASE_ROUTERS=[f"{__name__}.OneForEach"]):
        names.append(identify(request, None).user)
    assert names == ["1", "other:1", "tenant:1"]


def test_a_replica_that_a_user_was_read_from_is_no_part_of_the_caller() -> None:
    """O-16: each request may use another replica, so a retry would run as another caller's."""
    from django.contrib.auth.models import User

    with override_settings(DATABASE_ROUTERS=[f"{__name__}.ReadsAnywhere"]):
        for alias in ("default", "replica"):
            user = User(pk=1)
            user._state.db = alias
            request: Any = SimpleNamespace(user=user, resolver_match=None)
            assert identify(request, None).user == "1"
