"""Views that change who their caller is, in Starlette with ``SessionMiddleware``: what a retry gets (O-14)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from open_idempotency import events, idem
from open_idempotency.starlette import IdempotencyMiddleware
from tests.unit.builders import Listener

KEY = {"Idempotency-Key": "8e03978e-40d5-43e8-bc93-6894a57f9324"}
Act = Callable[[Request], object]


class OfSession(AuthenticationBackend):
    """Authenticates the user in the session, or else the user of the token."""

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
        name = conn.session.get("user") or conn.headers.get("x-token")
        return (AuthCredentials(["authenticated"]), SimpleUser(name)) if name else None


class Shop:
    """An application with a view that changes its caller, and counts its runs."""

    def __init__(self, act: Act, fails: bool = False, **fields: Any) -> None:
        self.act = act
        self.fails = fails
        self.runs = 0
        self.charges = 0
        self.listener = Listener()
        self.app = Starlette(routes=[Route("/login/{name}", log_in), Route("/0", self.view, methods=["POST"])])
        self.app.add_middleware(IdempotencyMiddleware, backend="memory://", on_event=self.listener, **fields)
        self.app.add_middleware(AuthenticationMiddleware, backend=OfSession())
        self.app.add_middleware(SessionMiddleware, secret_key="for tests only")

    async def view(self, request: Request) -> Response:
        """The view."""
        self.runs += 1
        await idem.arun("charge", self.charge)
        self.act(request)
        return PlainTextResponse(f"run {self.runs}", 500 if self.fails and self.runs == 1 else 201)

    def charge(self) -> str:
        """A stage that counts its runs."""
        self.charges += 1
        return "ch_1"

    def changes(self) -> list[bool]:
        """The reported changes of callers."""
        return [event.followed for event in self.listener.seen if isinstance(event, events.CallerChanged)]

    def browse(self, name: str | None = None) -> Browser:
        """A browser in which this user is logged in."""
        browser = Browser(self.app)
        if name:
            browser.get(f"/login/{name}")
        return browser


class Browser:
    """A client whose cookie can be reset to the one before a response that was lost."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.session: str | None = None

    def get(self, path: str) -> httpx.Response:
        """A request that is not covered."""
        return asyncio.run(self._sent("GET", path, {}))

    def post(self, **headers: str) -> httpx.Response:
        """The request."""
        return asyncio.run(self._sent("POST", "/0", {**KEY, **headers}))

    async def _sent(self, method: str, path: str, headers: dict[str, str]) -> httpx.Response:
        if self.session is not None:
            headers = {**headers, "cookie": f"session={self.session}"}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self._app), base_url="http://shop") as client:
            response = await client.request(method, path, headers=headers)
            self.session = response.cookies.get("session", self.session)
            return response


async def log_in(request: Request) -> Response:
    """Log in as the user in the path."""
    request.session["user"] = request.path_params["name"]
    return PlainTextResponse("in")


def register(request: Request) -> None:
    """Log a new user in."""
    request.session["user"] = "bob"


@pytest.mark.parametrize("session", ["old", "new"])
@pytest.mark.parametrize("before", ["ada", None])
def test_a_retry_finds_the_record_although_the_view_has_changed_the_caller(session: str, before: str | None) -> None:
    """O-14: with the session that the view has started, and with the one that the client still has."""
    shop = Shop(register)
    browser = shop.browse(before)
    old = browser.session
    first = browser.post()
    for _ in range(2):
        if session == "old":
            browser.session = old
        again = browser.post()
        assert (again.content, again.headers.get("idempotent-replayed")) == (first.content, "true")
    assert (shop.runs, shop.changes()) == (1, [True])


def test_an_attempt_that_fails_behind_the_change_is_resumed() -> None:
    """O-14, O-08: its stages are not lost."""
    shop = Shop(register, fails=True)
    browser = shop.browse("ada")
    assert [browser.post().status_code for _ in range(2)] == [500, 201]
    assert (shop.runs, shop.charges) == (2, 1)


def test_nobody_else_finds_it() -> None:
    """O-14: neither the same user in another session, nor another user in this session, nor a user whom the session
    does not name.
    """
    shop = Shop(register)
    browser = shop.browse("ada")
    browser.post()
    assert "idempotent-replayed" not in shop.browse("bob").post().headers
    browser.get("/login/eve")
    assert "idempotent-replayed" not in browser.post().headers


def test_a_session_that_names_nobody_vouches_for_nobody() -> None:
    """O-14: two users by token, one after the other in one browser, are two callers."""
    shop = Shop(lambda request: request.session.update(basket=1))
    browser = shop.browse()
    assert browser.post(**{"x-token": "ada"}).text == "run 1"
    assert browser.post(**{"x-token": "bob"}).text == "run 2"
    assert browser.post(**{"x-token": "ada"}).text == "run 1"


def test_a_logout_is_reported_as_one_that_no_session_knows(caplog: pytest.LogCaptureFixture) -> None:
    """O-14: the new session names nobody; with the old session a retry gets the response."""
    shop = Shop(lambda request: request.session.clear())
    browser = shop.browse("ada")
    old = browser.session
    first = browser.post()
    assert shop.changes() == [False]
    assert "runs again" in caplog.text
    browser.session = old
    assert browser.post().content == first.content


def test_a_session_that_is_not_changed_is_left_alone() -> None:
    """O-14, O-01: the response has no cookie and no Vary."""
    shop = Shop(lambda request: None)
    response = shop.browse().post(**{"x-token": "ada"})
    assert "set-cookie" not in response.headers
    assert shop.changes() == []


@pytest.mark.parametrize("session", ["old", "new"])
def test_a_scope_that_reads_the_session_is_followed_too(session: str) -> None:
    """O-14: other entries of the session do not matter."""
    shop = Shop(register, scope=lambda request: request.native["session"]["user"])
    browser = shop.browse("ada")
    old = browser.session
    first = browser.post()
    if session == "old":
        browser.session = old
    assert browser.post().content == first.content
    browser.get("/login/eve")
    assert browser.post().text == "run 2"
    assert shop.changes() == [True, True]


@pytest.mark.parametrize("session", ["old", "new"])
def test_a_session_with_keys_of_several_types_is_followed(session: str) -> None:
    """O-14: the cookie has them as text; the view has run, and its outcome is not lost."""

    def act(request: Request) -> None:
        request.session[1] = "first"
        register(request)

    shop = Shop(act)
    browser = shop.browse("ada")
    before = browser.session
    first = browser.post()
    if session == "old":
        browser.session = before
    again = browser.post()
    assert (first.status_code, first.text) == (again.status_code, again.text) == (201, "run 1")
    assert (shop.runs, shop.changes()) == (1, [True])
