"""The Flask extension: its configuration, which requests it covers, and who their callers are."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from flask import (
    Blueprint,
    Flask,
    abort,
    jsonify,
    request,
)
from flask.views import MethodView
from flask_login import LoginManager, UserMixin, login_user
from werkzeug.test import Client

from open_idempotency import idem
from open_idempotency._engine.engine import Engine, running
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.exceptions import ConfigurationError
from open_idempotency.flask import Idempotency, exempt, idempotent
from open_idempotency.policy import IdempotencyPolicy
from tests.unit.flask.flask_shop import HEADERS, KEY, post, replayed, view

# Configuration


def test_the_backend_and_the_fields_come_from_the_configuration(app: Flask) -> None:
    """``app.config["IDEMPOTENCY_BACKEND"]``, and one key for each policy field."""
    app.config.update(IDEMPOTENCY_BACKEND="memory://", IDEMPOTENCY_LEASE=45, IDEMPOTENCY_METHODS=["PUT"])
    Idempotency().init_app(app)
    engine = app.extensions["open_idempotency"]
    assert isinstance(engine, Engine)
    assert (engine.policy.lease, engine.policy.methods) == (45.0, frozenset({"PUT"}))


@pytest.mark.parametrize("late", [{"IDEMPOTENCY_REQUIRED": True}, {"IDEMPOTENCY_TTL": 90}])
def test_a_setting_that_changes_after_it_was_read_is_an_error(late: dict[str, Any]) -> None:
    """O-24: the change would silently have no effect. The first request raises the error, and each later one does."""
    app = Flask("shop")
    app.config["IDEMPOTENCY_TTL"] = 3600
    app.testing = True
    app.post("/charges")(view)
    Idempotency(app, "memory://")
    app.config.update(late)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=rf"{next(iter(late))} changed after Idempotency\(app\) had read"):
            app.test_client().post("/charges", headers=HEADERS)


def test_arguments_take_the_place_of_the_configuration(app: Flask, backend: MemoryBackend) -> None:
    """Explicit arguments override the configuration."""
    app.config.update(IDEMPOTENCY_BACKEND="unknown://", IDEMPOTENCY_LEASE=45, IDEMPOTENCY_TTL=90)
    Idempotency(app, backend, lease=50)
    engine = app.extensions["open_idempotency"]
    assert (engine.backend, engine.policy.lease, engine.policy.ttl) == (backend, 50.0, 90.0)


def test_a_whole_policy_takes_the_place_of_all_configured_fields(app: Flask, backend: MemoryBackend) -> None:
    """``policy=IdempotencyPolicy(...)``, with further fields applied to it."""
    app.config["IDEMPOTENCY_TTL"] = 90
    Idempotency(app, backend, policy=IdempotencyPolicy(lease=50), required=True)
    policy = app.extensions["open_idempotency"].policy
    assert policy == IdempotencyPolicy(lease=50, required=True)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"IDEMPOTENCY_LAESE": 3}, "IDEMPOTENCY_LAESE"),
        ({"IDEMPOTENCY_LEASE": -1}, "lease"),
        ({"IDEMPOTENCY_BACKEND": None}, "IDEMPOTENCY_BACKEND"),
    ],
)
def test_a_wrong_configuration_is_refused_at_start(app: Flask, config: dict[str, Any], named: str) -> None:
    """A ConfigurationError names the field."""
    app.config.update({"IDEMPOTENCY_BACKEND": "memory://", **config})
    with pytest.raises(ConfigurationError, match=named):
        Idempotency(app)


def test_an_unknown_argument_is_refused_before_there_is_an_application() -> None:
    """The error names the unknown policy field."""
    with pytest.raises(ConfigurationError, match="laese"):
        Idempotency(laese=3)


def test_one_application_is_initialised_once(app: Flask, backend: MemoryBackend) -> None:
    """O-01: a second extension would claim each request twice."""
    extension = Idempotency(app, backend)
    with pytest.raises(ConfigurationError, match="already"):
        extension.init_app(app)


def test_one_extension_serves_several_applications(runs: list[Any]) -> None:
    """With ``init_app`` each application has an engine of its own, and its own memory backend."""
    extension = Idempotency(backend="memory://")
    for name in ("one", "two"):
        app = Flask(name)
        view(app, lambda name=name: runs.append(name) or name)
        extension.init_app(app)
        assert [replayed(post(app)) for _ in range(2)] == [False, True]
    assert runs == ["one", "two"]


def test_without_flask_the_import_names_the_command() -> None:
    """The error for a missing extra names the install command."""
    code = "import sys; sys.modules['flask'] = None\nimport open_idempotency.flask"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "pip install 'open-idempotency[flask]'" in done.stderr
    assert "MissingExtra" in done.stderr


# Coverage


def test_a_repeat_is_replayed(app: Flask, backend: MemoryBackend, runs: list[Any]) -> None:
    """O-01, O-02: the view runs once."""

    def charge() -> Any:
        runs.append(request.get_json())
        return jsonify(run=len(runs)), 201, {"X-Kept": "yes"}

    view(app, charge)
    Idempotency(app, backend)
    first, second = post(app, json={"a": 1}), post(app, json={"a": 1})
    assert (first.status_code, first.json, replayed(first)) == (201, {"run": 1}, False)
    assert (second.status_code, second.json, replayed(second)) == (201, {"run": 1}, True)
    assert second.headers["X-Kept"] == "yes"
    assert runs == [{"a": 1}]


def test_a_request_without_a_key_runs_each_time(app: Flask, backend: MemoryBackend, runs: list[Any]) -> None:
    """S-03: stages run plainly, also in a streamed body, and the backend is not called."""

    def charge() -> Any:
        assert not idem.active

        def body() -> Iterator[str]:
            yield str(idem.run("count", lambda: runs.append(1) or len(runs)))

        return body()

    view(app, charge)
    Idempotency(app, backend)
    assert [post(app, headers={}).text for _ in range(2)] == ["1", "2"]
    assert list(backend.scan()) == []
    assert running.get() is None


@pytest.mark.parametrize(("path", "method", "status"), [("/nowhere", "POST", 404), ("/charges", "DELETE", 405)])
def test_a_request_without_a_view_is_not_covered(
    app: Flask, backend: MemoryBackend, path: str, method: str, status: int
) -> None:
    """No view runs, so nothing is claimed and no key is required."""
    view(app, lambda: "x")
    Idempotency(app, backend, required=True, methods=["POST", "DELETE"])
    assert app.test_client().open(path, method=method, headers=HEADERS).status_code == status
    assert list(backend.scan()) == []


def test_an_exempt_view_is_not_covered(app: Flask, backend: MemoryBackend, runs: list[Any]) -> None:
    """A single route may be exempt."""
    view(app, exempt(lambda: runs.append(1) or "x"))
    Idempotency(app, backend)
    assert not any(replayed(post(app)) for _ in range(2))
    assert len(runs) == 2


def test_a_view_has_its_own_policy_fields(app: Flask, backend: MemoryBackend) -> None:
    """The decorator sets ``required`` and other policy fields; other views keep theirs."""
    view(app, idempotent(required=True, header="X-Key")(lambda: "x"))
    app.add_url_rule("/other", view_func=lambda: "y", methods=["POST"], endpoint="other")
    Idempotency(app, backend)
    assert post(app).status_code == 400
    assert post(app, headers={"X-Key": KEY}).text == "x"
    assert replayed(post(app, headers={"X-Key": KEY}))
    assert post(app, "/other", headers={}).text == "y"


def test_a_class_based_view_in_a_blueprint_has_its_own_rule(app: Flask, backend: MemoryBackend) -> None:
    """The class is marked."""

    @idempotent(methods=["PUT"])
    class Charges(MethodView):
        def put(self, name: str) -> str:
            return name

        def post(self, name: str) -> str:
            return name

    blueprint = Blueprint("shop", "shop", url_prefix="/<name>")

    @blueprint.url_value_preprocessor
    def shout(endpoint: str | None, values: dict[str, Any] | None) -> None:
        assert values is not None
        values["name"] = values["name"].upper()

    blueprint.add_url_rule("/charges", view_func=Charges.as_view("charges"))
    app.register_blueprint(blueprint)
    Idempotency(app, backend)
    client = app.test_client()
    assert [replayed(client.put("/ann/charges", headers=HEADERS)) for _ in range(2)] == [False, True]
    assert [replayed(client.post("/ann/charges", headers=HEADERS)) for _ in range(2)] == [False, False]
    assert client.put("/ann/charges", headers=HEADERS).text == "ANN"


def test_nothing_is_claimed_before_authentication(app: Flask, backend: MemoryBackend, runs: list[Any]) -> None:
    """Every ``before_request`` function runs first, whenever it was registered, also for a replay."""
    view(app, lambda: runs.append(1) or "x")
    Idempotency(app, backend)

    @app.before_request
    def authenticate() -> None:
        if request.headers.get("X-Token") != "t":
            abort(401)

    assert post(app).status_code == 401
    assert list(backend.scan()) == []
    assert post(app, headers={**HEADERS, "X-Token": "t"}).status_code == 200
    assert post(app).status_code == 401
    assert len(runs) == 1


# Callers


def test_users_of_flask_login_do_not_share_responses(app: Flask, backend: MemoryBackend, runs: list[Any]) -> None:
    """The user that Flask-Login verified is the caller."""

    class User(UserMixin):
        def __init__(self, name: str) -> None:
            self.id = name

    manager = LoginManager(app)
    manager.user_loader(User)
    app.add_url_rule("/login/<name>", view_func=lambda name: str(login_user(User(name))), endpoint="login")
    view(app, lambda: runs.append(1) or str(len(runs)))
    Idempotency(app, backend)
    clients = {name: app.test_client() for name in ("ann", "bob")}
    for name, client in clients.items():
        client.get(f"/login/{name}")
    short = {"Idempotency-Key": "short"}
    assert post(app, client=clients["ann"], headers=short).text == "1"
    assert post(app, client=clients["bob"], headers=short).text == "2"
    assert post(app, client=clients["ann"], headers=short).text == "1"
    assert post(app, headers=short).status_code == 400


def test_the_servers_user_is_the_caller_without_flask_login(app: Flask, backend: MemoryBackend) -> None:
    """The server verified REMOTE_USER; short keys are allowed then."""
    view(app, lambda: "x")
    Idempotency(app, backend)
    for user in ("ann", "bob"):
        options: dict[str, Any] = {"headers": {"Idempotency-Key": "short"}, "environ_base": {"REMOTE_USER": user}}
        assert [replayed(post(app, **options)) for _ in range(2)] == [False, True]


@pytest.mark.parametrize("times", [0, 1, 2], ids=["unused", "after a request", "after a replay"])
def test_an_application_is_freed_when_its_last_reference_goes(times: int) -> None:
    """Flask itself guarantees that, and the extension adds no reference cycle."""
    gc.disable()
    try:
        app = Flask(__name__)
        Idempotency(app, backend="memory://")
        app.add_url_rule("/charges", view_func=lambda: "charged", methods=["POST"])
        for _ in range(times):
            response = app.test_client().post("/charges", headers={"Idempotency-Key": "8e03978e-40d5-43e8"})
            assert response.data == b"charged"
            del response
        weak = weakref.ref(app)
        del app
        assert weak() is None
    finally:
        gc.enable()


def test_the_wsgi_method_alone_keeps_its_application_alive() -> None:
    """As in ``ProxyFix(create_app().wsgi_app)``, where nothing else refers to the application."""

    def create() -> Any:
        app = Flask(__name__)
        Idempotency(app, backend="memory://")
        app.add_url_rule("/charges", view_func=lambda: "charged", methods=["POST"])
        return app.wsgi_app

    client = Client(create())
    assert client.post("/charges", headers={"Idempotency-Key": "8e03978e-40d5-43e8"}).data == b"charged"


def test_wrappers_of_other_extensions_are_called_as_ever() -> None:
    """An earlier wrapper is inside, a later one is outside; each calls the next one."""
    app = Flask(__name__)
    called: list[str] = []

    def wrap(name: str) -> None:
        inner = app.dispatch_request

        def dispatch(*args: Any) -> Any:
            called.append(name)
            return inner(*args)

        app.dispatch_request = dispatch

    wrap("before")
    Idempotency(app, backend="memory://")
    wrap("after")
    app.add_url_rule("/charges", view_func=lambda: "charged", methods=["POST"])
    headers = {"Idempotency-Key": "8e03978e-40d5-43e8"}
    assert app.test_client().post("/charges", headers=headers).data == b"charged"
    assert called == ["after", "before"]
    app.test_client().post("/charges", headers=headers)
    assert called == ["after", "before", "after"]
