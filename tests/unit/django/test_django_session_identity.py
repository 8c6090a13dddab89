"""Callers whom a Django session names, without a user of django.contrib.auth (O-19; O-14 for them)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client, override_settings

from open_idempotency import events, idem
from open_idempotency.exceptions import ScopeUnknown
from tests.django_project.calls import OURS, REPLAYED, post, project
from tests.unit.builders import Listener
from tests.unit.django.test_django_callers import AUTHENTICATION, IN_COOKIES, IN_DATABASE, Browser

SESSIONS = AUTHENTICATION[:1]
listed_anyhow = pytest.mark.parametrize(
    "listed",
    [[*SESSIONS, OURS], [OURS, *SESSIONS], [*AUTHENTICATION, OURS], [OURS, *AUTHENTICATION]],
    ids=["no users, inside", "no users, outside", "users, inside", "users, outside"],
)


@pytest.fixture(scope="module", autouse=True)
def _tables() -> Iterator[None]:
    """The table of sessions."""
    from django.core.management import call_command
    from django.db import connections

    call_command("migrate", verbosity=0, interactive=False)
    yield
    connections.close_all()


@pytest.fixture(params=[IN_DATABASE, IN_COOKIES], ids=["database", "cookies"])
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each kind of session storage."""
    with override_settings(SESSION_ENGINE=request.param):
        yield request.param


@pytest.fixture(params=[False, True], ids=["wsgi", "asgi"])
def browse(request: pytest.FixtureRequest, engine: str) -> Callable[..., Browser]:
    """Makes clients of one kind, whose session has these entries."""

    def make(**entries: Any) -> Browser:
        browser = Browser(request.param)
        if entries:
            give(browser, **entries)
        return browser

    return make


def give(browser: Browser, **entries: Any) -> None:
    """Put entries into a client's session, as a project's own login does."""
    session = browser.client.session
    session.update(entries)
    session.save()
    browser.session = session.session_key


class Effects:
    """A view that changes its session, and counts its runs."""

    def __init__(self, act: Callable[[HttpRequest], object] = lambda request: None) -> None:
        self.act = act
        self.count = 0

    def __call__(self, request: HttpRequest) -> HttpResponse:
        self.count += 1
        idem.run("charge", lambda: "ch_1")
        self.act(request)
        return HttpResponse(f"run {self.count}", status=201)


def view_of(effects: Effects, browser: Browser) -> Callable[[HttpRequest], Any]:
    """The view, sync or async as the client is."""
    if not isinstance(browser.client, AsyncClient):
        return effects

    async def awaited(request: HttpRequest) -> HttpResponse:
        return await sync_to_async(effects)(request)

    return awaited


@listed_anyhow
def test_two_users_of_a_session_with_one_key_are_two_callers(browse: Callable[..., Browser], listed: list[str]) -> None:
    """O-19: a visitor is a third caller; the middleware may be listed anywhere."""
    effects, callers = Effects(), [browse(user_id=1), browse(user_id=2), browse()]
    with project(view_of(effects, callers[0]), MIDDLEWARE=listed):
        assert [who.send().content for who in callers] == [b"run 1", b"run 2", b"run 3"]
        again = [who.send() for who in callers]
    assert [response.content for response in again] == [b"run 1", b"run 2", b"run 3"]
    assert {response[REPLAYED] for response in again} == {"true"}


def test_another_session_of_the_same_user_is_the_same_caller(browse: Callable[..., Browser]) -> None:
    """O-19: the session key is never the identity: it changes with each login."""
    effects, one, two = Effects(), browse(user_id=1), browse(user_id=1, basket=[1])
    assert one.session != two.session
    with project(view_of(effects, one), MIDDLEWARE=[*SESSIONS, OURS]):
        assert one.send().content == two.send().content
    assert effects.count == 1


def test_after_a_logout_a_caller_is_a_visitor(browse: Callable[..., Browser]) -> None:
    """O-19: the visitor does not see the user's responses."""
    effects, browser = Effects(), browse(user_id=1)
    with project(view_of(effects, browser), MIDDLEWARE=[*SESSIONS, OURS]):
        browser.send()
        give(browser, user_id=None)
        assert REPLAYED not in browser.send()


def test_djangos_own_user_comes_first(browse: Callable[..., Browser]) -> None:
    """O-19: the entries of the session do not matter then."""
    from uuid import uuid4

    from django.contrib.auth.models import User

    user = User.objects.create_user(uuid4().hex)
    effects, one, two = Effects(), browse(), browse()
    for browser, account in ((one, 1), (two, 2)):
        browser.client.force_login(user)
        give(browser, user_id=account)
    with project(view_of(effects, one), MIDDLEWARE=[*AUTHENTICATION, OURS]):
        assert one.send().content == two.send().content
    assert effects.count == 1


@listed_anyhow
def test_the_session_does_not_count_as_accessed(browse: Callable[..., Browser], listed: list[str]) -> None:
    """O-01, O-19: the response has ``Vary: Cookie`` only if it has it without the middleware."""
    browser = browse(user_id=1)
    with project(view_of(Effects(), browser), MIDDLEWARE=listed):
        for _ in range(2):
            response = browser.send()
            # AuthenticationMiddleware's lazy user is asked for, and that reads the session.
            assert ("Vary" in response) is (len(listed) == 3)
            assert "sessionid" not in response.cookies


@pytest.mark.parametrize("awaited", [False, True])
def test_no_session_is_looked_up_for_a_client_without_one(awaited: bool) -> None:
    """O-19: the database is not queried."""
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    browser = Browser(awaited)
    with (
        project(view_of(Effects(), browser), MIDDLEWARE=[*SESSIONS, OURS]),
        CaptureQueriesContext(connection) as queries,
    ):
        assert browser.send().status_code == 201
    assert len(queries) == 0


def test_an_entry_that_another_middleware_has_just_made_counts(browse: Callable[..., Browser]) -> None:
    """O-19: also before the client has a cookie."""
    effects, one = Effects(), browse()
    with project(view_of(effects, one), MIDDLEWARE=[*SESSIONS, f"{__name__}.by_header", OURS]):
        bodies = [browse().client for _ in range(2)]
        responses = [_post(client, name) for client, name in zip(bodies, ("ann", "bob"), strict=True)]
    assert [response.content for response in responses] == [b"run 1", b"run 2"]


def _post(client: Any, name: str) -> Any:
    headers = {"X-Name": name}
    if isinstance(client, Client):
        return post(client, headers=headers)

    async def sent() -> Any:
        return await post(client, headers=headers)

    return asyncio.run(sent())


def by_header(get_response: Any) -> Any:
    """A middleware that puts its user into the session, and sets no ``request.user``."""
    from django.contrib.auth.models import AnonymousUser

    def middleware(request: Any) -> Any:
        request.user = AnonymousUser()
        request.session["user"] = request.headers["X-Name"]
        return get_response(request)

    return middleware


def test_an_account_without_an_id_is_an_error_that_names_the_cure(browse: Callable[..., Browser]) -> None:
    """O-19: callers never share a scope."""
    effects, browser = Effects(), browse(user={"name": "Ann"})
    with project(view_of(effects, browser), MIDDLEWARE=[*SESSIONS, OURS]), pytest.raises(ScopeUnknown, match="'user'"):
        browser.send()
    assert effects.count == 0


def test_other_entries_by_setting(browse: Callable[..., Browser]) -> None:
    """O-19: ``IDEMPOTENCY_SESSION_IDENTITY`` names the entries."""
    effects, callers = Effects(), [browse(member_id=1), browse(member_id=2), browse(member_id=1)]
    options = {"MIDDLEWARE": [*SESSIONS, OURS], "IDEMPOTENCY_SESSION_IDENTITY": "member_id"}
    with project(view_of(effects, callers[0]), **options):
        assert [who.send().content for who in callers] == [b"run 1", b"run 2", b"run 1"]


def test_a_session_that_names_nobody_is_warned_about_once(browse: Callable[..., Browser]) -> None:
    """O-19a: with the names of the cookie and of the entries."""
    effects, browser, listener = Effects(), browse(member_id=1), Listener()
    browser.client.cookies["csrftoken"] = "1"
    with project(view_of(effects, browser), MIDDLEWARE=[*AUTHENTICATION, OURS], IDEMPOTENCY_ON_EVENT=listener):
        browser.send()
        browser.session = browse(member_id=2).session
        assert browser.send()[REPLAYED] == "true"
    (event,) = [each for each in listener.seen if isinstance(each, events.CallerUnidentified)]
    assert (event.cookies, event.entries) == (("sessionid",), ("member_id",))


def test_callers_who_are_meant_to_be_one_are_not_warned_about(browse: Callable[..., Browser]) -> None:
    """O-19b: they are not distinguished, and no session is read."""
    effects, callers, listener = Effects(), [browse(user_id=1), browse(user_id=2)], Listener()
    options = {
        "MIDDLEWARE": [*AUTHENTICATION, OURS],
        "IDEMPOTENCY_ON_EVENT": listener,
        "IDEMPOTENCY_SCOPE": "anonymous",
    }
    with project(view_of(effects, callers[0]), **options):
        responses = [browser.send() for browser in callers]
    assert [response.content for response in responses] == [b"run 1", b"run 1"]
    assert not any("Vary" in response for response in responses)
    assert not any(isinstance(each, events.CallerUnidentified) for each in listener.seen)


# Views that change the caller (O-14)


def register(request: HttpRequest) -> None:
    """Log a new user in, with a new session key."""
    request.session.cycle_key()
    request.session["user_id"] = 2


@pytest.mark.parametrize("session", ["old", "new"])
@pytest.mark.parametrize("before", [1, None])
@listed_anyhow
def test_a_retry_finds_the_record_although_the_view_has_changed_the_caller(
    browse: Callable[..., Browser], engine: str, listed: list[str], before: int | None, session: str
) -> None:
    """O-14, O-19: the login is not made twice."""
    if (session, engine, listed[0]) == ("new", IN_COOKIES, OURS):
        return  # the cookie is written before the middleware sees the new session
    effects = Effects(register)
    browser = browse(user_id=before) if before else browse()
    with project(view_of(effects, browser), MIDDLEWARE=listed):
        old = browser.session
        first = browser.send()
        for _ in range(2):
            if session == "old":
                browser.session = old
            again = browser.send()
            assert (again.content, again.get(REPLAYED)) == (first.content, "true")
    assert effects.count == 1


def test_nobody_else_finds_it(browse: Callable[..., Browser]) -> None:
    """O-14, O-19: neither the same user in another session, nor another user in this session."""
    effects, browser = Effects(register), browse(user_id=1)
    with project(view_of(effects, browser), MIDDLEWARE=[*SESSIONS, OURS]):
        browser.send()
        assert REPLAYED not in browse(user_id=2).send()
        give(browser, user_id=3)
        assert REPLAYED not in browser.send()


@pytest.mark.parametrize(
    ("act", "followed"),
    [
        (register, [True]),
        (lambda request: request.session.update({"basket": 1}), []),
        (lambda request: request.session.update({"user_id": None}), [False]),
    ],
    ids=["registration", "basket", "logout"],
)
def test_a_change_of_the_caller_is_reported(
    browse: Callable[..., Browser], act: Callable[[HttpRequest], object], followed: list[bool]
) -> None:
    """O-14, O-19: the event says whether a retry finds the record."""
    listener, effects, browser = Listener(), Effects(act), browse(user_id=1)
    with project(view_of(effects, browser), MIDDLEWARE=[*SESSIONS, OURS], IDEMPOTENCY_ON_EVENT=listener):
        browser.send()
    assert [event.followed for event in listener.seen if isinstance(event, events.CallerChanged)] == followed


@pytest.mark.parametrize("awaited", [False, True])
def test_a_session_that_a_logout_has_ended_leads_to_the_record(awaited: bool) -> None:
    """O-14, O-19: for sessions on the server, whose old key names nobody any more."""
    effects, browser = Effects(lambda request: request.session.flush()), Browser(awaited)
    with override_settings(SESSION_ENGINE=IN_DATABASE):
        give(browser, user_id=1)
        with project(view_of(effects, browser), MIDDLEWARE=[*SESSIONS, OURS]):
            old = browser.session
            first = browser.send()
            browser.session = old
            assert browser.send().content == first.content
    assert effects.count == 1
