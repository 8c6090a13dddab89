"""Views that change who their caller is, in Flask with Flask-Login: what a retry gets (O-14)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flask
import pytest
from flask.testing import FlaskClient
from flask_login import LoginManager, UserMixin, login_user, logout_user

from open_idempotency import events, idem
from open_idempotency.flask import Idempotency
from tests.unit.builders import Listener

KEY = {"Idempotency-Key": "8e03978e-40d5-43e8-bc93-6894a57f9324"}


class User(UserMixin):
    """A user of Flask-Login with this name."""

    def __init__(self, name: str) -> None:
        self.id = name


class Shop:
    """An application with a view that changes its caller, and counts its runs."""

    def __init__(self, act: Callable[[], object], fails: bool = False, **fields: Any) -> None:
        self.act = act
        self.fails = fails
        self.runs = 0
        self.charges = 0
        self.listener = Listener()
        self.app = flask.Flask("tests.unit.flask.test_flask_callers")
        self.app.secret_key = "for tests only"
        LoginManager(self.app).user_loader(User)
        self.app.add_url_rule("/login/<name>", "login", lambda name: str(login_user(User(name))), methods=["GET"])
        self.app.add_url_rule("/0", "view", self.view, methods=["POST"])
        Idempotency(self.app, backend="memory://", on_event=self.listener, **fields)

    def view(self) -> tuple[str, int]:
        """The view."""
        self.runs += 1
        idem.run("charge", self.charge)
        self.act()
        return f"run {self.runs}", 500 if self.fails and self.runs == 1 else 201

    def charge(self) -> str:
        """A stage that counts its runs."""
        self.charges += 1
        return "ch_1"

    def client(self, name: str | None = None) -> FlaskClient:
        """A browser in which this user is logged in."""
        client = self.app.test_client()
        if name:
            client.get(f"/login/{name}")
        return client

    def changes(self) -> list[bool]:
        """The reported changes of callers."""
        return [event.followed for event in self.listener.seen if isinstance(event, events.CallerChanged)]


def session_of(client: FlaskClient) -> str:
    """The session cookie."""
    cookie = client.get_cookie("session")
    assert cookie is not None
    return cookie.value


def register() -> None:
    """Log a new user in."""
    login_user(User("bob"))


@pytest.mark.parametrize("session", ["old", "new"])
@pytest.mark.parametrize("before", ["ada", None])
def test_a_retry_finds_the_record_although_the_view_has_changed_the_caller(session: str, before: str | None) -> None:
    """O-14: with the session that the view has started, and with the one that the client still has."""
    shop = Shop(register)
    client = shop.client(before)
    old = session_of(client) if before else ""
    first = client.post("/0", headers=KEY)
    for _ in range(2):
        if session == "old":
            client.set_cookie("session", old)
        again = client.post("/0", headers=KEY)
        assert (again.data, again.headers.get("Idempotent-Replayed")) == (first.data, "true")
    assert (shop.runs, shop.changes()) == (1, [True])


def test_an_attempt_that_fails_behind_the_change_is_resumed() -> None:
    """O-14, O-08: its stages are not lost."""
    shop = Shop(register, fails=True)
    client = shop.client("ada")
    assert [client.post("/0", headers=KEY).status_code for _ in range(2)] == [500, 201]
    assert (shop.runs, shop.charges) == (2, 1)


def test_nobody_else_finds_it() -> None:
    """O-14: neither the same user in another session, nor another user in this session."""
    shop = Shop(register)
    client = shop.client("ada")
    client.post("/0", headers=KEY)
    assert "Idempotent-Replayed" not in shop.client("bob").post("/0", headers=KEY).headers
    client.get("/login/eve")
    assert "Idempotent-Replayed" not in client.post("/0", headers=KEY).headers


def test_a_logout_is_reported_as_one_that_no_session_knows(caplog: pytest.LogCaptureFixture) -> None:
    """O-14: the remaining session names nobody, so a retry with it has another caller. A retry with the old session
    finds the record.
    """
    shop = Shop(logout_user)
    client = shop.client("ada")
    old = session_of(client)
    first = client.post("/0", headers=KEY)
    assert shop.changes() == [False]
    assert "runs again" in caplog.text
    client.set_cookie("session", old)
    assert client.post("/0", headers=KEY).data == first.data


def test_a_view_that_changes_nothing_is_not_reported() -> None:
    """O-14."""
    shop = Shop(lambda: flask.session.update(basket=1))
    client = shop.client("ada")
    client.post("/0", headers=KEY)
    assert shop.changes() == []
    with client.session_transaction() as session:
        assert "_open_idempotency" not in session


def named_by_session(_: object) -> str:
    """A ``scope=`` that reads the session."""
    return str(flask.session["user"])


@pytest.mark.parametrize("session", ["old", "new"])
def test_a_scope_that_reads_the_session_is_followed_too(session: str) -> None:
    """O-14: the application has no Flask-Login."""
    shop = Shop(lambda: flask.session.update(user="bob"), scope=named_by_session)
    client = shop.client()
    with client.session_transaction() as before:
        before["user"] = "ada"
    old = session_of(client)
    first = client.post("/0", headers=KEY)
    if session == "old":
        client.set_cookie("session", old)
    assert client.post("/0", headers=KEY).data == first.data
    with client.session_transaction() as changed:
        changed["user"] = "eve"
    assert client.post("/0", headers=KEY).data == b"run 2"


def test_a_scope_that_has_nobody_to_name_any_more_is_reported() -> None:
    """O-14: the view has logged its caller out, and is settled under its caller's scope all the same."""
    shop = Shop(lambda: flask.session.pop("user"), scope=named_by_session)
    client = shop.client()
    with client.session_transaction() as before:
        before["user"] = "ada"
    assert client.post("/0", headers=KEY).status_code == 201
    assert shop.changes() == [False]


def test_a_caller_who_cannot_be_identified_costs_no_outcome() -> None:
    """O-14: the view has run; its response is recorded, whatever the new user's name. The log reports it."""
    shop = Shop(lambda: login_user(User("\ud800")))
    client = shop.client("ada")
    before = session_of(client)
    first = client.post("/0", headers=KEY)
    client.set_cookie("session", before)
    again = client.post("/0", headers=KEY)
    assert (first.status_code, again.status_code, shop.runs) == (201, 201, 1)
    assert shop.changes() == [False]
