"""Views that change who their caller is, in Django: what a retry gets (O-14)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from asgiref.sync import iscoroutinefunction, sync_to_async
from django.conf import settings
from django.contrib.auth import login, logout, update_session_auth_hash
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client, override_settings
from django.utils.decorators import sync_and_async_middleware

from open_idempotency import events, idem
from tests.django_project.calls import OURS, REPLAYED, post, project
from tests.unit.builders import Listener

AUTHENTICATION = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
IN_DATABASE = "django.contrib.sessions.backends.db"
IN_COOKIES = "django.contrib.sessions.backends.signed_cookies"
either_order = pytest.mark.parametrize(
    "listed", [[*AUTHENTICATION, OURS], [OURS, *AUTHENTICATION]], ids=["inside", "outside"]
)
KEY = "8e03978e-40d5-43e8-bc93-6894a57f9324"


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

    return lambda: User.objects.create_user(uuid4().hex, password="before")


class Browser:
    """A sync or async client whose cookies can be reset to those before a response that was lost."""

    def __init__(self, awaited: bool, user: Any = None) -> None:
        self._awaited = awaited
        self.client: Any = AsyncClient() if awaited else Client()
        if user is not None:
            self.client.force_login(user)

    def send(self) -> Any:
        """Send the request with the current cookies."""
        if not self._awaited:
            return post(self.client, key=KEY)

        async def sent() -> Any:
            return await post(self.client, key=KEY)

        return asyncio.run(sent())

    @property
    def session(self) -> str:
        """The session key in the cookie."""
        cookie = self.client.cookies.get(settings.SESSION_COOKIE_NAME)
        return "" if cookie is None else str(cookie.value)

    @session.setter
    def session(self, secret: str) -> None:
        self.client.cookies[settings.SESSION_COOKIE_NAME] = secret


@pytest.fixture(params=[IN_DATABASE, IN_COOKIES], ids=["database", "cookies"])
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each kind of session storage."""
    with override_settings(SESSION_ENGINE=request.param):
        yield request.param


@pytest.fixture(params=[False, True], ids=["wsgi", "asgi"])
def browse(request: pytest.FixtureRequest, engine: str) -> Callable[..., Browser]:
    """Makes clients of one kind, sync or async."""
    return lambda user=None: Browser(request.param, user)


class Effects:
    """A view that changes its caller, and counts its runs."""

    def __init__(self, act: Callable[[HttpRequest], object], status: int = 201) -> None:
        self.act = act
        self.status = status
        self.count = 0
        self.charges = 0

    def charge(self) -> str:
        """A stage that counts its runs."""
        self.charges += 1
        return "ch_1"

    def __call__(self, request: HttpRequest) -> HttpResponse:
        self.count += 1
        idem.run("charge", self.charge)
        self.act(request)
        return HttpResponse(f"run {self.count}", status=self.status if self.count == 1 else 201)


def view_of(effects: Effects, browser: Browser) -> Callable[[HttpRequest], Any]:
    """The view, sync or async as the browser is."""
    if not isinstance(browser.client, AsyncClient):
        return effects

    async def awaited(request: HttpRequest) -> HttpResponse:
        return await sync_to_async(effects)(request)

    assert iscoroutinefunction(awaited)
    return awaited


def change_password(request: HttpRequest) -> None:
    """Change the caller's own password, as Django's view does."""
    user: Any = request.user
    user.set_password("behind")
    user.save()
    update_session_auth_hash(request, user)


def forget_session(request: HttpRequest) -> None:
    """Change the password without ``update_session_auth_hash()``, which ends the session."""
    user: Any = request.user
    user.set_password("behind")
    user.save()


def log_in(user: Any) -> Callable[[HttpRequest], object]:
    """Log in as this user."""
    return lambda request: login(request, user, "django.contrib.auth.backends.ModelBackend")


@either_order
@pytest.mark.parametrize("session", ["old", "new"])
@pytest.mark.parametrize("act", ["registration", "password", "logout"])
def test_a_retry_finds_the_record_although_the_view_has_changed_the_caller(
    browse: Callable[..., Browser], engine: str, new_user: Callable[[], Any], listed: list[str], act: str, session: str
) -> None:
    """O-14: with the session that the view has started, and with the one that it has ended."""
    if (act, session) == ("logout", "new"):
        return  # neither session names the caller
    if (act, session, engine, listed[0]) == ("registration", "new", IN_COOKIES, OURS):
        return  # the cookie is written before the middleware sees the new session
    user, other = new_user(), new_user()
    effects = Effects({"registration": log_in(other), "password": change_password, "logout": logout}[act])
    browser = browse(user)
    with project(view_of(effects, browser), MIDDLEWARE=listed):
        before = browser.session
        first = browser.send()
        assert before != browser.session
        for _ in range(2):
            if session == "old":  # the response with the new one was lost
                browser.session = before
            again = browser.send()
            assert (again.content, again.get(REPLAYED)) == (first.content, "true")
    assert (first.status_code, effects.count) == (201, 1)


@either_order
def test_a_login_that_is_replayed_without_its_cookie_is_reported(
    browse: Callable[..., Browser], new_user: Callable[[], Any], listed: list[str]
) -> None:
    """O-21a: the session middleware sets the cookie, possibly outside of this middleware."""
    effects, browser, listener = Effects(log_in(new_user())), browse(), Listener()
    with project(view_of(effects, browser), MIDDLEWARE=listed, IDEMPOTENCY_ON_EVENT=listener):
        first = browser.send()
        assert settings.SESSION_COOKIE_NAME in first.cookies
        browser.client.cookies.clear()
        assert settings.SESSION_COOKIE_NAME not in browser.send().cookies
    found = [event for event in listener.seen if isinstance(event, events.ReplayedWithoutCredentials)]
    assert [(event.status, event.headers) for event in found] == [(201, "set-cookie")]


@either_order
@pytest.mark.parametrize("session", ["old", "new"])
def test_a_retry_of_a_login_finds_the_record(
    browse: Callable[..., Browser], engine: str, new_user: Callable[[], Any], listed: list[str], session: str
) -> None:
    """O-14: the caller was anonymous before."""
    if (session, engine, listed[0]) == ("new", IN_COOKIES, OURS):
        return  # the cookie is written before the middleware sees the new session
    effects, browser = Effects(log_in(new_user())), browse()
    with project(view_of(effects, browser), MIDDLEWARE=listed):
        first = browser.send()
        if session == "old":
            browser.client.cookies.clear()
        assert browser.send().content == first.content
    assert effects.count == 1


def test_nobody_else_finds_it(browse: Callable[..., Browser], new_user: Callable[[], Any]) -> None:
    """O-14: neither a caller without this session, nor the same user in another session."""
    user, other = new_user(), new_user()
    effects = Effects(log_in(other))
    browser = browse(user)
    with project(view_of(effects, browser), MIDDLEWARE=[*AUTHENTICATION, OURS]):
        browser.send()
        assert REPLAYED not in browse(other).send()
        stranger = browse()
        stranger.session = "a" * 32
        assert REPLAYED not in stranger.send()


def test_an_attempt_that_fails_behind_the_change_is_resumed(
    browse: Callable[..., Browser], new_user: Callable[[], Any]
) -> None:
    """O-14, O-08: the client has the old session, and the stages are not lost."""
    effects = Effects(log_in(new_user()), status=500)
    browser = browse(new_user())
    with project(view_of(effects, browser), MIDDLEWARE=[*AUTHENTICATION, OURS]):
        before = browser.session
        assert browser.send().status_code == 500
        browser.session = before
        assert browser.send().content == b"run 2"
    assert (effects.count, effects.charges) == (2, 1)


@pytest.mark.parametrize(("act", "followed"), [("registration", [True]), ("logout", [True]), ("nothing", [])])
def test_a_change_of_the_caller_is_reported(
    browse: Callable[..., Browser], engine: str, new_user: Callable[[], Any], act: str, followed: list[bool]
) -> None:
    """O-14: the event says whether a retry finds the record."""
    listener = Listener()
    if (act, engine) == ("logout", IN_COOKIES):
        followed = [False]  # by the old session, which has no end, it is; by none it is not
    user, other = new_user(), new_user()

    def nothing(request: HttpRequest) -> None:
        request.session["basket"] = 1

    effects = Effects({"registration": log_in(other), "logout": logout, "nothing": nothing}[act])
    browser = browse(user)
    with project(view_of(effects, browser), MIDDLEWARE=[*AUTHENTICATION, OURS], IDEMPOTENCY_ON_EVENT=listener):
        browser.send()
    assert [event.followed for event in listener.seen if isinstance(event, events.CallerChanged)] == followed


def test_an_attempt_ends_in_the_scope_in_which_it_began(
    browse: Callable[..., Browser], new_user: Callable[[], Any]
) -> None:
    """O-14: a view that sets another user on the request is settled under its caller's scope."""
    user, other = new_user(), new_user()

    def impersonate(request: HttpRequest) -> None:
        request.user = other

    effects, browser = Effects(impersonate), browse(user)
    with project(view_of(effects, browser), MIDDLEWARE=[*AUTHENTICATION, OURS]):
        first = browser.send()
        assert browser.send().content == first.content
        assert REPLAYED not in browse(other).send()
    assert effects.count == 2


@pytest.mark.parametrize("session", ["old", "new"])
def test_a_scope_that_reads_the_session_is_followed_too(
    browse: Callable[..., Browser], new_user: Callable[[], Any], session: str
) -> None:
    """O-14: the callable names the user by the session."""

    def named_by_session(request: Any) -> str:
        return str(vars(request.native.session)["_session_cache"].get("_auth_user_id", "nobody"))

    effects, browser = Effects(log_in(new_user())), browse(new_user())
    listed = [*AUTHENTICATION, "tests.unit.django.test_django_callers.load_session", OURS]
    with project(view_of(effects, browser), MIDDLEWARE=listed, IDEMPOTENCY_SCOPE=named_by_session):
        before = browser.session
        first = browser.send()
        if session == "old":
            browser.session = before
        assert browser.send().content == first.content
    assert effects.count == 1


@sync_and_async_middleware
def load_session(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """A middleware that loads the session before the view, on the thread that Django's own code would use."""
    if iscoroutinefunction(get_response):

        async def awaited(request: HttpRequest) -> Any:
            await sync_to_async(request.session.get)("_auth_user_id")
            return await get_response(request)

        return awaited

    def blocking(request: HttpRequest) -> Any:
        request.session.get("_auth_user_id")
        return get_response(request)

    return blocking


def test_the_session_of_a_rest_framework_view_leads_to_the_record_too(engine: str, new_user: Callable[[], Any]) -> None:
    """O-14, R-08: REST framework's session authentication verifies the caller."""
    from rest_framework.authentication import SessionAuthentication
    from rest_framework.request import Request
    from rest_framework.response import Response
    from rest_framework.views import APIView

    other, runs = new_user(), []

    class View(APIView):
        """Logs its caller in as another user."""

        authentication_classes = [SessionAuthentication]

        def post(self, request: Request) -> Response:
            runs.append(request.user.pk)
            log_in(other)(request)
            return Response({"run": len(runs)})

    for session in ("old", "new"):
        runs.clear()
        browser = Browser(False, new_user())
        with project(View.as_view(), MIDDLEWARE=[*AUTHENTICATION, OURS]):
            before = browser.session
            first = browser.send()
            if session == "old":
                browser.session = before
            assert browser.send().content == first.content
        assert len(runs) == 1


def test_a_session_that_ends_by_a_new_password_leads_to_the_record_too(
    browse: Callable[..., Browser], new_user: Callable[[], Any]
) -> None:
    """O-14: the view has not called ``update_session_auth_hash()``."""
    effects, browser = Effects(forget_session), browse(new_user())
    with project(view_of(effects, browser), MIDDLEWARE=[*AUTHENTICATION, OURS]):
        first = browser.send()
        assert browser.send().content == first.content
    assert effects.count == 1


class Strange:
    """A custom user class whose attributes cannot be read any more."""

    @property
    def is_authenticated(self) -> bool:
        """Raises, as an object does that is detached from its database session."""
        raise RuntimeError("detached")


@pytest.mark.parametrize("awaited", [False, True])
def test_a_caller_who_cannot_be_identified_costs_no_outcome(awaited: bool, new_user: Callable[[], Any]) -> None:
    """O-14: the view has run; its response is recorded, and the log reports the failure."""
    runs: list[int] = []

    def act(request: HttpRequest) -> HttpResponse:
        runs.append(1)
        request.session["seen"] = True
        request.user = Strange()
        return HttpResponse("done", status=201)

    async def view(request: HttpRequest) -> HttpResponse:
        return await sync_to_async(act)(request)

    user, listener = new_user(), Listener()
    middleware = [*AUTHENTICATION, OURS]
    with project(view if awaited else act, MIDDLEWARE=middleware, IDEMPOTENCY_ON_EVENT=listener):
        browser = Browser(awaited, user)
        responses = [browser.send() for _ in range(2)]
    assert [response.status_code for response in responses] == [201, 201]
    assert runs == [1]
    assert [event.followed for event in listener.seen if isinstance(event, events.CallerChanged)] == [False]
