"""The rules of Flask views: which of several rules applies, and when a wrong rule is reported."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from flask import Blueprint, Flask
from flask.views import MethodView

from open_idempotency.exceptions import ConfigurationError
from open_idempotency.flask import Idempotency, exempt, idempotent

KEY = {"Idempotency-Key": "8e03978e-40d5-43e8-bc93-6894a57f9324"}


def protected(**fields: Any) -> Flask:
    """An application without views."""
    app = Flask("shop")
    app.config["PROPAGATE_EXCEPTIONS"] = False
    Idempotency(app, backend="memory://", **fields)
    return app


def hasty(**fields: Any) -> Any:
    """A view whose records would expire before their lease, unless other fields are given."""

    @idempotent(**(fields or {"ttl": 1}))
    def charge() -> str:
        return "done"

    return charge


@idempotent(required=True, wait=3)
class Charges(MethodView):
    """A class with a rule for all methods, and two methods that add to it."""

    def post(self) -> str:
        """Response."""
        return "posted"

    @idempotent(required=False)
    def patch(self) -> str:
        """Response."""
        return "patched"

    @exempt
    def put(self) -> str:
        """Response."""
        return "put"


def test_a_method_adds_to_what_its_class_says() -> None:
    """The nearest rule sets its fields; other fields keep the values of the wider rule."""
    app = protected(methods=["POST", "PATCH", "PUT"])
    app.add_url_rule("/charges", view_func=Charges.as_view("charges"))
    client = app.test_client()
    assert [client.open("/charges", method=m).status_code for m in ("POST", "PATCH", "PUT")] == [400, 200, 200]


class Contradicting(MethodView):
    """A class whose rule and whose method's rule are valid alone, and contradict each other."""

    @idempotent(ttl=99)
    def post(self) -> str:
        """Response."""
        return "posted"


@idempotent(lease=100)
class Slow(Contradicting):
    """A class whose two rules contradict each other."""


WRONG: dict[str, Any] = {"function": hasty, "class and method": lambda: Slow.as_view("slow")}


@pytest.mark.parametrize("form", WRONG)
def test_a_view_whose_rule_contradicts_is_refused_where_it_is_added(form: str) -> None:
    """The error is raised when the module is imported, with the view's name."""
    app = protected()
    with pytest.raises(ConfigurationError, match=r"@idempotent on the view 'wrong': ttl: "):
        app.add_url_rule("/x", "wrong", WRONG[form](), methods=["POST"])


def test_a_view_of_a_blueprint_is_refused_where_the_blueprint_is_registered() -> None:
    part = Blueprint("part", "part")
    part.post("/x")(hasty())
    with pytest.raises(ConfigurationError, match=r"@idempotent on the view 'part\.charge': ttl: "):
        protected().register_blueprint(part)


def test_views_that_are_there_already_are_looked_at_when_the_application_is_initialised() -> None:
    app = Flask("shop")
    app.post("/x")(hasty())
    with pytest.raises(ConfigurationError, match="@idempotent on the view 'charge'"):
        Idempotency(app, backend="memory://")


def test_a_rule_that_came_after_its_route_is_reported_at_the_first_request(caplog: pytest.LogCaptureFixture) -> None:
    """The error is logged once, and the other views are served."""
    app = protected()

    @idempotent(ttl=1)
    @app.post("/wrong")
    def wrong() -> str:
        return "done"

    @app.post("/sound")
    def sound() -> str:
        return "done"

    client = app.test_client()
    statuses = [client.post(path, headers=KEY).status_code for path in ("/sound", "/wrong")]
    assert statuses == [200, 500]
    (said,) = [r for r in caplog.records if r.name == "open_idempotency" and r.levelno == logging.ERROR]
    assert "@idempotent on the view 'wrong': ttl" in said.getMessage()


def test_a_contradiction_for_methods_that_are_never_covered_is_none() -> None:
    """A rule with valid fields, and a view without any rule."""
    app = protected()
    app.get("/x")(lambda: "done")
    app.post("/y")(hasty(ttl=60))
    assert app.test_client().post("/y").status_code == 200
