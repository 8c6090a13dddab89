"""Callers whom Flask's session names, without Flask-Login (O-19; O-14 for them)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flask
import pytest
from flask.sessions import SessionInterface, SessionMixin
from flask.testing import FlaskClient
from flask_login import LoginManager, UserMixin, login_user
from itsdangerous import TimestampSigner

from open_idempotency import events, idem
from open_idempotency.flask import Idempotency, idempotent
from tests.unit.builders import Listener

KEY = {"Idempotency-Key": "8e03978e-40d5-43e8-bc93-6894a57f9324"}
REPLAYED = "Idempotent-Replayed"


def nothing() -> None:
    """A view that does not touch the session."""


class Shop:
    """An application whose users log in by ``session["user_id"]``, and whose view may change the session."""

    def __init__(self, act: Callable[[], object] = nothing, **fields: Any) -> None:
        self.act = act
        self.runs = 0
        self.charges = 0
        self.fails = 0
        self.listener = Listener()
        self.app = flask.Flask("tests.unit.flask.test_flask_session_identity")
        self.app.secret_key = "for tests only"
        self.app.add_url_rule("/login/<name>", "login", self.log_in)
        self.app.add_url_rule("/0", "view", self.view, methods=["POST"])
        Idempotency(self.app, backend="memory://", on_event=self.listener, **fields)

    def log_in(self, name: str) -> str:
        """Log in by the documented pattern: clear the session, and name the user."""
        flask.session.clear()
        flask.session["user_id"] = name
        return name

    def view(self) -> tuple[str, int]:
        """The view."""
        self.runs += 1
        idem.run("charge", self.charge)
        self.act()
        return f"run {self.runs}", 500 if self.runs <= self.fails else 201

    def charge(self) -> str:
        """A stage that counts its runs."""
        self.charges += 1
        return "ch_1"

    def client(self, name: str | None = None, **entries: Any) -> FlaskClient:
        """A browser in which this user is logged in."""
        client = self.app.test_client()
        if name:
            client.get(f"/login/{name}")
        if entries:
            with client.session_transaction() as session:
                session.update(entries)
        return client

    def of_kind(self, kind: type[events.Event]) -> list[Any]:
        """The events of this class."""
        return [event for event in self.listener.seen if isinstance(event, kind)]


def cookie_of(client: FlaskClient) -> str:
    """The text of the session cookie."""
    cookie = client.get_cookie("session")
    assert cookie is not None
    return cookie.value


def test_two_users_of_a_session_with_one_key_are_two_callers() -> None:
    """O-19: a visitor is a third caller."""
    shop = Shop()
    ann, bob, visitor = shop.client("ann"), shop.client("bob"), shop.client()
    assert [who.post("/0", headers=KEY).data for who in (ann, bob, visitor)] == [b"run 1", b"run 2", b"run 3"]
    again = [who.post("/0", headers=KEY) for who in (ann, bob, visitor)]
    assert [response.data for response in again] == [b"run 1", b"run 2", b"run 3"]
    assert {response.headers[REPLAYED] for response in again} == {"true"}


def test_a_user_may_send_short_keys() -> None:
    """O-19: the user is not anonymous."""
    assert Shop().client("ann").post("/0", headers={"Idempotency-Key": "1"}).status_code == 201


def test_a_session_that_is_signed_anew_is_the_same_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """O-19: Flask sends a permanent session with each response, with a new signature each second."""
    shop = Shop()
    client = shop.client("ann", _permanent=True)
    first, before = client.post("/0", headers=KEY), cookie_of(client)
    now = TimestampSigner.get_timestamp
    monkeypatch.setattr(TimestampSigner, "get_timestamp", lambda signer: now(signer) + 60)
    client.get("/login")  # a plain GET
    assert cookie_of(client) != before
    assert client.post("/0", headers=KEY).data == first.data
    assert shop.runs == 1


def test_a_user_who_logs_in_anew_is_the_same_caller() -> None:
    """O-19: also in another browser."""
    shop = Shop()
    first = shop.client("ann").post("/0", headers=KEY)
    assert shop.client("ann", basket=[1]).post("/0", headers=KEY).data == first.data


def test_after_a_logout_a_caller_is_a_visitor() -> None:
    """O-19: the visitor does not see the user's responses."""
    shop = Shop()
    client = shop.client("ann")
    client.post("/0", headers=KEY)
    with client.session_transaction() as session:
        session["user_id"] = None
    assert REPLAYED not in client.post("/0", headers=KEY).headers


def test_the_session_does_not_count_as_accessed() -> None:
    """O-01, O-19: the response gets no ``Vary: Cookie``, and no cookie is set."""
    shop = Shop()
    client = shop.client("ann")
    for _ in range(2):
        response = client.post("/0", headers=KEY)
        assert "Vary" not in response.headers
        assert "Set-Cookie" not in response.headers


def test_flask_logins_user_comes_first() -> None:
    """O-19: Flask-Login verifies ``_user_id`` in the session; another entry does not make another caller."""

    class User(UserMixin):
        """A user of Flask-Login with this name."""

        def __init__(self, name: str) -> None:
            self.id = name

    shop = Shop()
    LoginManager(shop.app).user_loader(User)
    shop.app.add_url_rule("/in/<name>", "in", lambda name: str(login_user(User(name))))
    client = shop.app.test_client()
    client.get("/in/ann")
    first = client.post("/0", headers=KEY)
    with client.session_transaction() as session:
        session["sub"] = "other"
    assert client.post("/0", headers=KEY).data == first.data
    client.get("/in/bob")
    assert REPLAYED not in client.post("/0", headers=KEY).headers


class Kept(dict[str, Any], SessionMixin):
    """A session on the server, with the key that is in its cookie."""

    key = ""


class OnServer(SessionInterface):
    """Sessions on the server, like Flask-Session: the cookie holds a random key, and no user."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, Any]] = {}

    def open_session(self, app: flask.Flask, request: flask.Request) -> Kept:
        """Load the session by the key in the cookie."""
        session = Kept(self.kept.get(request.cookies.get("session", ""), {}))
        session.key = request.cookies.get("session") or f"key-{len(self.kept)}"
        return session

    def save_session(self, app: flask.Flask, session: Any, response: flask.Response) -> None:
        """Store the session, under a new key each time."""
        key = f"key-{len(self.kept)}"
        self.kept[key] = dict(session)
        response.set_cookie("session", key)


def test_sessions_on_a_server_name_callers_as_well() -> None:
    """O-19: whatever stores them, and whatever key they have."""
    shop = Shop()
    shop.app.session_interface = OnServer()
    ann, bob = shop.client("ann"), shop.client("bob")
    keys = set()
    for _ in range(2):
        assert ann.post("/0", headers=KEY).data == b"run 1"
        assert bob.post("/0", headers=KEY).data == b"run 2"
        keys |= {cookie_of(ann), cookie_of(bob)}
    assert len(keys) == 4


def test_an_account_without_an_id_is_an_error_that_names_the_cure() -> None:
    """O-19: 500, and nothing runs."""
    shop = Shop()
    client = shop.client(user={"name": "Ann", "email": "ann@example.com"})
    assert client.post("/0", headers=KEY).status_code == 500
    assert shop.runs == 0
    assert client.post("/0").status_code == 201


def test_other_entries_by_configuration_and_by_rule() -> None:
    """O-19: ``IDEMPOTENCY_SESSION_IDENTITY``, and ``@idempotent(session_identity=...)`` for one view."""
    app = flask.Flask("tests.unit.flask.test_flask_session_identity")
    app.secret_key = "for tests only"
    app.config.update(IDEMPOTENCY_BACKEND="memory://", IDEMPOTENCY_SESSION_IDENTITY="member")
    runs: list[str] = []

    @app.post("/by-member")
    def by_member() -> str:
        runs.append("member")
        return str(len(runs))

    @app.post("/by-shop")
    @idempotent(session_identity=("shop",))
    def by_shop() -> str:
        runs.append("shop")
        return str(len(runs))

    Idempotency(app)
    for member, shop in (("ann", "one"), ("bob", "one"), ("ann", "two")):
        client = app.test_client()
        with client.session_transaction() as session:
            session.update(member=member, shop=shop)
        client.post("/by-member", headers={"Idempotency-Key": "m"})
        client.post("/by-shop", headers={"Idempotency-Key": "s"})
    assert (runs.count("member"), runs.count("shop")) == (2, 2)


def test_a_session_that_names_nobody_is_warned_about_once(caplog: pytest.LogCaptureFixture) -> None:
    """O-19a: with the cookie, the entries of the session and the cure, and never with a value."""
    shop = Shop()
    for name in ("ann", "bob"):
        shop.client(username=name).post("/0", headers=KEY)
    (event,) = shop.of_kind(events.CallerUnidentified)
    assert (event.cookies, event.entries) == (("session",), ("username",))
    (message,) = [r.getMessage() for r in caplog.records if "session_identity=" in r.getMessage()]
    assert "ann" not in message
    assert shop.runs == 1


def test_callers_who_are_meant_to_be_one_are_not_warned_about() -> None:
    """O-19b: they are not distinguished either."""
    shop = Shop(scope="anonymous")
    for name in ("ann", "bob"):
        assert shop.client(name).post("/0", headers=KEY).data == b"run 1"
    assert shop.of_kind(events.CallerUnidentified) == []
    assert shop.client("ann").post("/0", headers={"Idempotency-Key": "k" * 15}).status_code == 400


# Views that change the caller (O-14)


def register() -> None:
    """Log a new user in."""
    flask.session.clear()
    flask.session["user_id"] = "bob"


@pytest.mark.parametrize("session", ["old", "new"])
@pytest.mark.parametrize("before", ["ann", None])
def test_a_retry_finds_the_record_although_the_view_has_changed_the_caller(session: str, before: str | None) -> None:
    """O-14, O-19: the login is not made twice."""
    shop = Shop(register)
    client = shop.client(before)
    old = cookie_of(client) if before else ""
    first = client.post("/0", headers=KEY)
    for _ in range(2):
        if session == "old":
            client.set_cookie("session", old)
        again = client.post("/0", headers=KEY)
        assert (again.data, again.headers.get(REPLAYED)) == (first.data, "true")
    assert (shop.runs, [event.followed for event in shop.of_kind(events.CallerChanged)]) == (1, [True])


def test_an_attempt_that_fails_behind_the_change_is_resumed() -> None:
    """O-14, O-08, O-19: its stages are not lost."""
    shop = Shop(register)
    shop.fails = 1
    client = shop.client("ann")
    assert [client.post("/0", headers=KEY).status_code for _ in range(2)] == [500, 201]
    assert (shop.runs, shop.charges) == (2, 1)


def test_nobody_else_finds_it() -> None:
    """O-14, O-19: neither the same user in another session, nor another user in this session."""
    shop = Shop(register)
    client = shop.client("ann")
    client.post("/0", headers=KEY)
    assert REPLAYED not in shop.client("bob").post("/0", headers=KEY).headers
    client.get("/login/eve")
    assert REPLAYED not in client.post("/0", headers=KEY).headers


@pytest.mark.parametrize("leave", [lambda: flask.session.clear(), lambda: flask.session.update(user_id=None)])
def test_a_logout_is_reported_as_one_that_no_session_knows(leave: Callable[[], object]) -> None:
    """O-14, O-19: a retry with the remaining session is a visitor's. A retry with the old session finds the record."""
    shop = Shop(leave)
    client = shop.client("ann")
    old = cookie_of(client)
    first = client.post("/0", headers=KEY)
    assert [event.followed for event in shop.of_kind(events.CallerChanged)] == [False]
    client.set_cookie("session", old)
    assert client.post("/0", headers=KEY).data == first.data


@pytest.mark.parametrize("before", ["ann", None])
def test_a_change_of_something_else_is_none_of_the_caller(before: str | None) -> None:
    """O-14, O-19: such as a basket, or a login of the same user."""
    shop = Shop(lambda: flask.session.update(basket=1, **({"user_id": before} if before else {})))
    client = shop.client(before)
    first = client.post("/0", headers=KEY)
    assert client.post("/0", headers=KEY).data == first.data
    assert shop.of_kind(events.CallerChanged) == []
    with client.session_transaction() as session:
        assert "_open_idempotency" not in session


def test_a_new_caller_of_whom_nothing_can_be_said_costs_no_outcome() -> None:
    """O-14, O-19: the view has run, and its response is recorded, whatever it has put into the session."""
    shop = Shop(lambda: flask.session.update(user_id=None, user={"name": "Ann"}))
    client = shop.client("ann")
    old = cookie_of(client)
    first = client.post("/0", headers=KEY)
    assert [event.followed for event in shop.of_kind(events.CallerChanged)] == [False]
    client.set_cookie("session", old)
    assert client.post("/0", headers=KEY).data == first.data
