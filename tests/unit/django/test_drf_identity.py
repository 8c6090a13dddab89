"""Who the caller is, in Django REST framework: the user whom the view's own authenticators verify."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.test import AsyncClient, Client, override_settings
from django.utils.asyncio import async_unsafe

from tests.django_project.calls import KEY, OURS, REPLAYED, post, project

# REST framework reads its settings when its views are imported.
with override_settings(REST_FRAMEWORK={"UNAUTHENTICATED_USER": None}):
    from rest_framework.authentication import BaseAuthentication, SessionAuthentication, TokenAuthentication
    from rest_framework.exceptions import APIException, AuthenticationFailed
    from rest_framework.permissions import BasePermission
    from rest_framework.renderers import JSONRenderer
    from rest_framework.request import Request
    from rest_framework.response import Response
    from rest_framework.views import APIView
    from rest_framework.viewsets import ViewSet

from open_idempotency.exceptions import ScopeUnknown

SESSIONS = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
MULTIPART = "multipart/form-data; boundary=own"

runs: list[Any] = []
asked: list[Any] = []


@pytest.fixture(autouse=True)
def fresh() -> None:
    """Forget what an earlier test has noted."""
    runs.clear()
    asked.clear()


def user_of(pk: str) -> Any:
    """A user without a session."""
    return SimpleNamespace(is_authenticated=True, is_active=True, pk=pk)


class Token(TokenAuthentication):
    """REST framework's token authentication, with tokens in memory. Like a database, it refuses to run on an event
    loop.
    """

    owners = {"old": "ann", "new": "ann", "other": "bob"}

    @async_unsafe("a token was looked up on the event loop")
    def authenticate_credentials(self, key: str) -> Any:
        asked.append(key)
        if key not in self.owners:
            raise AuthenticationFailed("no such token")
        return user_of(self.owners[key]), key


class Known(BasePermission):
    """A permission for every authenticated user."""

    def has_permission(self, request: Request, view: Any) -> bool:
        return bool(getattr(request.user, "is_authenticated", False))


class Charges(APIView):
    """Notes the caller, the authentication, and the data."""

    authentication_classes: list[Any] = [Token]
    permission_classes = [Known]
    renderer_classes = [JSONRenderer]

    def post(self, request: Request) -> Response:
        """Charge."""
        by = type(request.successful_authenticator).__name__
        files = {name: file.read().decode() for name, file in request.FILES.items()}
        posted = {name: request.data[name] for name in request.data if name not in files}
        runs.append((request.user.pk, request.auth, by, {**posted, **files}))
        return Response({"charged": request.user.pk, "run": len(runs)}, status=201)


def _blocking(token: str | None = None, client: Any = None, **extra: Any) -> Any:
    return post(client or Client(), **_with(token, extra))


def _awaited(token: str | None = None, client: Any = None, **extra: Any) -> Any:
    async def send() -> Any:
        return await post(client or AsyncClient(), **_with(token, extra))

    return asyncio.run(send())


def _with(token: str | None, extra: dict[str, Any]) -> dict[str, Any]:
    headers = {} if token is None else {"Authorization": f"Token {token}"}
    return {"data": {"amount": 5}, **extra, "headers": {**headers, **extra.get("headers", {})}}


both_chains = pytest.mark.parametrize("send", [_blocking, _awaited], ids=["wsgi", "asgi"])
Send = Callable[..., Any]


# Which requests have the same caller


@both_chains
def test_a_retry_with_the_new_token_of_the_same_user_is_replayed(send: Send) -> None:
    """The verified user takes precedence over the digest of Authorization."""
    with project(Charges.as_view()):
        first, again = send("old"), send("new")
    assert (again.content, again[REPLAYED]) == (first.content, "true")
    assert [run[0] for run in runs] == ["ann"]


@both_chains
def test_two_users_with_one_key_are_two_requests(send: Send) -> None:
    """Neither user sees the other's response."""
    with project(Charges.as_view()):
        assert send("old").json() == {"charged": "ann", "run": 1}
        assert send("other").json() == {"charged": "bob", "run": 2}


@both_chains
def test_behind_djangos_authentication_the_token_counts_where_no_session_does(send: Send) -> None:
    """``request.user`` is anonymous there, and the session is not touched."""
    with project(Charges.as_view(), MIDDLEWARE=[*SESSIONS, OURS]):
        first, again = send("old"), send("new")
    assert again[REPLAYED] == "true"
    assert "Vary" not in again or "Cookie" not in again["Vary"]
    assert "Cookie" not in first.get("Vary", "")


class BySession:
    """Middleware that sets the same user on every request, as a session in a shared browser would."""

    sync_capable = async_capable = True

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request: Any) -> Any:
        request.user = user_of("cid")
        return self.get_response(request)


@both_chains
def test_two_tokens_within_one_session_are_two_callers(send: Send) -> None:
    """The user who acts in the view counts, not the user of the session."""
    middleware = [f"{__name__}.BySession", OURS]
    with project(Charges.as_view(), MIDDLEWARE=middleware):
        assert send("old").json()["charged"] == "ann"
        assert send("other").json()["charged"] == "bob"


def test_with_a_scope_of_its_own_nobody_asks_the_authenticators() -> None:
    """``scope=`` takes precedence."""
    with project(Charges.as_view(), IDEMPOTENCY_SCOPE=lambda request: "everybody"):
        _blocking("old")
    assert asked == ["old"]


def test_without_a_key_only_the_view_authenticates() -> None:
    """A request without a key costs nothing."""
    with project(Charges.as_view()):
        _blocking("old", key=None)
    assert asked == ["old"]


class Nameless(BaseAuthentication):
    """An authenticator whose user has no identity."""

    def authenticate(self, request: Request) -> tuple[Any, None]:
        return SimpleNamespace(is_authenticated=True), None


@both_chains
def test_a_verified_user_without_a_primary_key_is_an_error(send: Send) -> None:
    """Such users never share a scope."""
    view = Charges.as_view(authentication_classes=[Nameless])
    with project(view), pytest.raises(ScopeUnknown, match="IDEMPOTENCY_SCOPE"):
        send()
    assert runs == []


# Refusals and errors


@both_chains
def test_a_wrong_token_gets_the_views_own_response_and_takes_no_key(send: Send) -> None:
    """A 401 with the view's challenge; nothing is stored."""
    with project(Charges.as_view()):
        refused = [send("wrong") for _ in range(2)]
        assert send("old").status_code == 201
    assert [(response.status_code, response["WWW-Authenticate"]) for response in refused] == [(401, "Token")] * 2
    assert all(response.json() == {"detail": "no such token"} and REPLAYED not in response for response in refused)


@both_chains
def test_a_revoked_token_gets_no_stored_response(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its user is no longer verified."""
    monkeypatch.setattr(Token, "owners", dict(Token.owners))
    with project(Charges.as_view()):
        send("old")
        del Token.owners["old"]
        assert send("old").status_code == 401


class Failing(BaseAuthentication):
    """An authenticator that fails once, and then accepts every request."""

    error: Exception = RuntimeError("no reply from the directory")

    def authenticate(self, request: Request) -> tuple[Any, None]:
        asked.append("failing")
        if len(asked) == 1:
            raise self.error
        return user_of("ann"), None


class Unavailable(APIException):
    """An APIException with status 503."""

    status_code = 503


@both_chains
@pytest.mark.parametrize("error", [RuntimeError("down"), Unavailable()], ids=["any error", "503"])
def test_an_authenticator_that_fails_runs_no_view(
    send: Send, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could succeed in the view, which would then run for a caller whose retry has another identity."""
    monkeypatch.setattr(Failing, "error", error)
    with project(Charges.as_view(authentication_classes=[Failing])) as backend, pytest.raises(type(error)):
        send()
    assert (runs, backend.verbs) == ([], [])


class Coroutine(BaseAuthentication):
    """An async authenticator of an extension."""

    async def authenticate(self, request: Request) -> Any:
        raise AssertionError("nobody may await it here")


def test_an_authenticator_that_is_a_coroutine_is_left_to_its_view() -> None:
    """The Authorization header identifies the caller, as without a known user."""

    class Awaiting(Charges):
        permission_classes: list[Any] = []

        def perform_authentication(self, request: Request) -> None:
            request.user, request.auth = user_of("ann"), None
            request._authenticator = None

    with project(Awaiting.as_view(authentication_classes=[Coroutine])):
        assert [_blocking(token).json()["run"] for token in ("old", "other", "old")] == [1, 2, 1]


# Sessions


@pytest.fixture(scope="module")
def tables() -> Iterator[None]:
    """The tables of django.contrib.auth."""
    from django.core.management import call_command
    from django.db import connections

    call_command("migrate", verbosity=0, interactive=False)
    yield
    connections.close_all()


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize(("send", "kind"), [(_blocking, Client), (_awaited, AsyncClient)], ids=["wsgi", "asgi"])
def test_a_session_is_protected_against_forgery_as_ever(send: Send, kind: Any) -> None:
    """Without the CSRF token the view's own 403 is sent and nothing is stored; with it the view runs once and is
    replayed.
    """
    from django.contrib.auth.models import User

    client = kind(enforce_csrf_checks=True)
    client.force_login(User.objects.create_user(uuid4().hex))
    secret = "a" * 32
    client.cookies["csrftoken"] = secret
    view = Charges.as_view(authentication_classes=[SessionAuthentication, Token])
    with project(view, MIDDLEWARE=[*SESSIONS, OURS]):
        assert [send(client=client).status_code for _ in range(2)] == [403, 403]
        responses = [send(client=client, headers={"X-CSRFToken": secret}) for _ in range(2)]
    assert [(response.status_code, response.get(REPLAYED)) for response in responses] == [(201, None), (201, "true")]
    assert len(runs) == 1


# Viewsets


class Signed(BaseAuthentication):
    """An authenticator that reads the body, in one of three ways, to verify its signature."""

    def authenticate(self, request: Request) -> tuple[Any, None]:
        way = request.headers["X-Way"]
        asked.append(request._request.body if way == "body" else dict(getattr(request, way)))
        return user_of("ann"), None


class ByAction(ViewSet):
    """A viewset whose authenticators depend on the action."""

    permission_classes = [Known]
    renderer_classes = [JSONRenderer]

    def get_authenticators(self) -> Any:
        """By token to pay, by signature otherwise; called before ``action`` is set."""
        action = self.action_map[str(self.request.method).lower()]
        return [Token()] if action == "pay" and self.kwargs == {} else [Signed()]

    def pay(self, request: Request) -> Response:
        """Pay."""
        return Response(request.user.pk)

    def sign(self, request: Request) -> Response:
        """Sign."""
        return Response(request.user.pk)


@both_chains
def test_the_actions_of_a_viewset_have_authenticators_of_their_own(send: Send) -> None:
    """The authenticators of the action that will run are called."""
    with project(ByAction.as_view({"post": "pay"}), ByAction.as_view({"post": "sign"})):
        assert send("old").json() == "ann"
        assert send("new")[REPLAYED] == "true"
        assert send("other").json() == "bob"
        signed = [send(place="/1", key=KEY + "2", headers={"X-Way": "data", "X-Try": str(n)}) for n in range(2)]
    assert signed[1][REPLAYED] == "true"
