"""Callers whom an outer ``SessionMiddleware`` has decoded, without an authentication middleware (O-19, O-14)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from itsdangerous import TimestampSigner
from starlette.applications import Starlette
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from open_idempotency import events, idem
from open_idempotency.asgi import IdempotencyMiddleware as PlainMiddleware
from open_idempotency.starlette import IdempotencyMiddleware
from tests.unit.builders import Listener
from tests.unit.starlette.test_starlette_callers import Browser, OfSession

REPLAYED = "idempotent-replayed"


class Shop:
    """An application whose users log in by ``session["user_id"]``, and whose view may change the session."""

    def __init__(
        self,
        act: Callable[[Request], object] = lambda request: None,
        middleware: type[PlainMiddleware] = IdempotencyMiddleware,
        session_inside: bool = False,
        **fields: Any,
    ) -> None:
        self.act = act
        self.runs = 0
        self.charges = 0
        self.fails = 0
        self.listener = Listener()
        self.app = Starlette(routes=[Route("/login/{name}", log_in), Route("/0", self.view, methods=["POST"])])
        if session_inside:
            self.app.add_middleware(SessionMiddleware, secret_key="for tests only")
        self.app.add_middleware(middleware, backend="memory://", on_event=self.listener, **fields)
        if not session_inside:
            self.app.add_middleware(SessionMiddleware, secret_key="for tests only")

    async def view(self, request: Request) -> Response:
        """The view."""
        self.runs += 1
        await idem.arun("charge", self.charge)
        self.act(request)
        return PlainTextResponse(f"run {self.runs}", 500 if self.runs <= self.fails else 201)

    def charge(self) -> str:
        """A stage that counts its runs."""
        self.charges += 1
        return "ch_1"

    def browse(self, name: str | None = None) -> Browser:
        """A browser in which this user is logged in."""
        browser = Browser(self.app)
        if name:
            browser.get(f"/login/{name}")
        return browser

    def of_kind(self, kind: type[events.Event]) -> list[Any]:
        """The events of this class."""
        return [event for event in self.listener.seen if isinstance(event, kind)]


async def log_in(request: Request) -> Response:
    """Log in as the user in the path; an account of an OpenID client has a name and a number."""
    request.session.clear()
    name = request.path_params["name"]
    if name.startswith("account-"):
        request.session["user"] = {"sub": name, "name": "Ann"}
    elif name.startswith("nameless-"):
        request.session["user"] = {"name": name}
    elif name.startswith("member-"):
        request.session["member"] = name
    else:
        request.session["user_id"] = name
    return PlainTextResponse("in")


async def done(request: Request) -> Response:
    """A view that does nothing."""
    return PlainTextResponse("done", 201)


def register(request: Request) -> None:
    """Log a new user in."""
    request.session["user_id"] = "bob"


either = pytest.mark.parametrize("middleware", [IdempotencyMiddleware, PlainMiddleware], ids=["starlette", "plain"])


@either
def test_two_users_of_a_session_with_one_key_are_two_callers(middleware: type[PlainMiddleware]) -> None:
    """O-19: a visitor is a third caller; the same holds for the middleware for any ASGI application."""
    shop = Shop(middleware=middleware)
    callers = [
        shop.browse("ann"),
        shop.browse("bob"),
        shop.browse(),
        shop.browse("account-1"),
        shop.browse("account-2"),
    ]
    expected = [f"run {n}" for n in range(1, 6)]
    assert [who.post().text for who in callers] == expected
    again = [who.post() for who in callers]
    assert [response.text for response in again] == expected
    assert {response.headers[REPLAYED] for response in again} == {"true"}


def test_a_session_that_is_signed_anew_is_the_same_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """O-19: each change signs a session anew, for its maximal age; and so does a new login."""
    shop = Shop()
    browser = shop.browse("ann")
    first, before = browser.post(), browser.session
    now = TimestampSigner.get_timestamp
    monkeypatch.setattr(TimestampSigner, "get_timestamp", lambda signer: now(signer) + 60)
    browser.get("/login/ann")
    assert browser.session != before
    assert browser.post().content == first.content
    assert shop.browse("ann").post().content == first.content
    assert shop.runs == 1


def test_the_applications_authentication_comes_first() -> None:
    """O-19: a verified user is the caller, whatever else the session has."""
    from starlette.middleware.authentication import AuthenticationMiddleware

    shop = Shop()
    # Between the two other middlewares: the session middleware is outermost.
    shop.app.user_middleware.insert(1, type(shop.app.user_middleware[0])(AuthenticationMiddleware, backend=OfSession()))
    ann, eve = shop.browse("ann"), shop.browse("ann")
    assert ann.post(**{"x-token": "verified-1"}).text == "run 1"
    assert eve.post(**{"x-token": "verified-2"}).text == "run 2"
    assert shop.browse("bob").post(**{"x-token": "verified-1"}).text == "run 1"


@either
def test_the_session_does_not_count_as_accessed(middleware: type[PlainMiddleware]) -> None:
    """O-01, O-19: the response is the same as without the middleware."""
    shop = Shop(middleware=middleware)
    browser = shop.browse("ann")
    without = SessionMiddleware(Route("/0", done, methods=["POST"]), secret_key="for tests only")
    bare = Browser(without)
    bare.session = browser.session
    expected = bare.post().headers
    for _ in range(2):
        response = browser.post()
        assert response.headers.get("vary") == expected.get("vary")
        assert ("set-cookie" in response.headers) == ("set-cookie" in expected)


def test_an_account_without_an_id_is_an_error_that_names_the_cure() -> None:
    """O-19: callers never share a scope."""
    from open_idempotency.exceptions import ScopeUnknown

    shop = Shop()
    with pytest.raises(ScopeUnknown, match="session_identity="):
        shop.browse("nameless-ann").post()
    assert shop.runs == 0


def test_other_entries_by_name() -> None:
    """O-19: ``session_identity=``."""
    shop = Shop(session_identity="member")
    assert [shop.browse(name).post().text for name in ("member-1", "member-2", "member-1")] == [
        "run 1",
        "run 2",
        "run 1",
    ]


@either
def test_a_session_that_names_nobody_is_warned_about_once(middleware: type[PlainMiddleware]) -> None:
    """O-19a: with the names of the cookie and of the entries."""
    shop = Shop(middleware=middleware)
    for name in ("member-1", "member-2"):
        shop.browse(name).post()
    (event,) = shop.of_kind(events.CallerUnidentified)
    assert (event.cookies, event.entries) == (("session",), ("member",))
    assert shop.runs == 1


def test_a_session_that_is_decoded_inside_is_warned_about() -> None:
    """O-19a: the middleware for any ASGI application claims before the session is decoded, and sees only the cookie."""
    listener = Listener()
    app = Starlette(routes=[Route("/login/{name}", log_in), Route("/0", done, methods=["POST"])])
    app.add_middleware(SessionMiddleware, secret_key="for tests only")
    app.add_middleware(PlainMiddleware, backend="memory://", on_event=listener)
    browser = Browser(app)
    browser.get("/login/ann")
    browser.post()
    (event,) = [each for each in listener.seen if isinstance(each, events.CallerUnidentified)]
    assert (event.cookies, event.entries) == (("session",), ())


def test_callers_who_are_meant_to_be_one_are_not_warned_about() -> None:
    """O-19b: they are not distinguished either."""
    shop = Shop(scope="anonymous")
    assert [shop.browse(name).post().text for name in ("ann", "bob", None)] == ["run 1"] * 3
    assert shop.of_kind(events.CallerUnidentified) == []


@pytest.mark.parametrize("session", [None, 7, ["user_id"], {}])
def test_what_is_no_session_names_nobody(session: object) -> None:
    """O-19: whatever another framework stores under ``session``."""
    scope = {"type": "http", "session": session}
    identity = PlainMiddleware(Starlette(), "memory://").identify(scope)
    assert identity is None or (not isinstance(identity, str) and not identity.session)


# Views that change the caller (O-14)


@pytest.mark.parametrize("session", ["old", "new"])
@pytest.mark.parametrize("before", ["ann", None])
def test_a_retry_finds_the_record_although_the_view_has_changed_the_caller(session: str, before: str | None) -> None:
    """O-14, O-19: the login is not made twice."""
    shop = Shop(register)
    browser = shop.browse(before)
    old = browser.session
    first = browser.post()
    for _ in range(2):
        if session == "old":
            browser.session = old
        again = browser.post()
        assert (again.content, again.headers.get(REPLAYED)) == (first.content, "true")
    assert (shop.runs, [event.followed for event in shop.of_kind(events.CallerChanged)]) == (1, [True])


def test_an_attempt_that_fails_behind_the_change_is_resumed() -> None:
    """O-14, O-08, O-19: its stages are not lost."""
    shop = Shop(register)
    shop.fails = 1
    browser = shop.browse("ann")
    assert [browser.post().status_code for _ in range(2)] == [500, 201]
    assert (shop.runs, shop.charges) == (2, 1)


def test_nobody_else_finds_it() -> None:
    """O-14, O-19: neither the same user in another session, nor another user in this session."""
    shop = Shop(register)
    browser = shop.browse("ann")
    browser.post()
    assert REPLAYED not in shop.browse("bob").post().headers
    browser.get("/login/eve")
    assert REPLAYED not in browser.post().headers


@pytest.mark.parametrize("leave", ["clear", "one entry"])
def test_a_logout_is_reported_as_one_that_no_session_knows(leave: str) -> None:
    """O-14, O-19: the remaining session names nobody. With the old session a retry gets the response."""

    def log_out(request: Request) -> None:
        request.session.pop("user_id")
        if leave == "one entry":
            request.session["basket"] = 1

    shop = Shop(log_out)
    browser = shop.browse("ann")
    old = browser.session
    first = browser.post()
    assert [event.followed for event in shop.of_kind(events.CallerChanged)] == [False]
    browser.session = old
    assert browser.post().content == first.content


@pytest.mark.parametrize("before", ["ann", None])
def test_a_change_of_something_else_is_none_of_the_caller(before: str | None) -> None:
    """O-14, O-19: such as a basket."""
    shop = Shop(lambda request: request.session.update(basket=1))
    browser = shop.browse(before)
    first = browser.post()
    assert browser.post().content == first.content
    assert shop.of_kind(events.CallerChanged) == []


@pytest.mark.parametrize("before", ["ann", None])
def test_a_change_in_a_session_that_was_opened_inside_is_reported(before: str | None) -> None:
    """O-14, O-19: its cookie is set before the response arrives. A retry with the earlier session finds the record."""
    shop = Shop(register, session_inside=True)
    browser = shop.browse(before)
    old = browser.session
    first = browser.post()
    assert [event.followed for event in shop.of_kind(events.CallerChanged)] == [False]
    browser.session = old
    assert browser.post().content == first.content
    assert shop.runs == 1


def test_a_basket_in_a_session_that_was_opened_inside_is_no_change() -> None:
    """O-14, O-19: the user is the same."""
    shop = Shop(lambda request: request.session.update(basket=1), session_inside=True)
    browser = shop.browse("ann")
    first = browser.post()
    assert browser.post().content == first.content
    assert (shop.runs, shop.of_kind(events.CallerChanged)) == (1, [])
