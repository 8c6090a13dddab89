"""Django's settings: dotted paths, rules by path, switching off, and the memory backend that several clients share."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import pytest
from django.core.checks import CheckMessage, run_checks
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import include, path, re_path
from django.views import View
from django.views.decorators.http import require_http_methods

from open_idempotency import ConfigurationError, IdempotencyPolicy, idem
from open_idempotency._engine import engine
from open_idempotency.django import IdempotencyMiddleware, exempt, idempotent
from open_idempotency.django import conf as settings_of_django
from tests.django_project.calls import KEY, REPLAYED, post, project

POLICY = IdempotencyPolicy(required=True)
_events: list[Any] = []


with override_settings(REST_FRAMEWORK={"UNAUTHENTICATED_USER": None, "DEFAULT_AUTHENTICATION_CLASSES": []}):
    from rest_framework.decorators import action, api_view
    from rest_framework.response import Response
    from rest_framework.viewsets import ViewSet


def by_user(request: Any) -> str:
    """A ``scope=`` of the project."""
    return str(request.native.META.get("HTTP_X_USER", "nobody"))


def note_event(event: Any) -> None:
    """An ``on_event=`` of the project."""
    _events.append(event)


def _view(request: HttpRequest) -> HttpResponse:
    return HttpResponse("done")


def _counter() -> Callable[..., HttpResponse]:
    numbers = count(1)
    return lambda request, **kwargs: JsonResponse({"n": next(numbers)})


def _found(*patterns: Any, **options: Any) -> Sequence[CheckMessage]:
    urls = type("Urls", (), {"urlpatterns": list(patterns)})
    with project(**options), override_settings(ROOT_URLCONF=urls):
        return [each for each in run_checks() if (each.id or "").startswith("open_idempotency.")]


# Dotted paths

HOOKS = {
    "validate": "uuid.UUID",
    "scope": f"{__name__}.by_user",
    "fingerprint": f"{__name__}.by_user",
    "key": f"{__name__}.by_user",
    "on_replay": f"{__name__}.by_user",
    "ledger": f"{__name__}.by_user",
    "store": f"{__name__}.by_user",
    "redact": f"{__name__}.by_user",
    "render_problem": f"{__name__}.by_user",
    "on_event": f"{__name__}.note_event",
}


@pytest.mark.parametrize(("field", "dotted"), HOOKS.items())
def test_a_setting_that_is_a_callable_takes_a_dotted_path(field: str, dotted: str) -> None:
    """O-30."""
    with project(_view, **{f"IDEMPOTENCY_{field.upper()}": dotted}):
        value = getattr(IdempotencyMiddleware(_view).engine.policy, field)
    assert value == settings_of_django.import_string(dotted)


def test_every_field_that_takes_a_callable_takes_a_dotted_path() -> None:
    """O-30: a field that is added later must be in the list of settings, too."""
    hints = IdempotencyPolicy.__annotations__
    callables = {
        name for name, hint in hints.items() if "Callable" in hint or hint.split(" ")[0] in ("Ledger", "Listener")
    }
    assert callables == set(HOOKS)


@pytest.mark.parametrize("field", [*HOOKS, "policy", "encryption"])
def test_a_dotted_path_that_leads_nowhere_is_an_error_that_names_the_setting(field: str) -> None:
    """O-30: by the check, and when the middleware is constructed."""
    setting = f"IDEMPOTENCY_{field.upper()}"
    wrong = f"{__name__}.no_such_thing"
    (message,) = _found(**{setting: wrong})
    assert message.id == "open_idempotency.E001"
    assert message.msg.startswith(f"{setting}: {wrong!r} cannot be imported")
    with project(_view, **{setting: wrong}), pytest.raises(ConfigurationError, match=setting):
        IdempotencyMiddleware(_view)


def test_the_dictionary_of_django_idempotency_key_is_left_to_its_middleware() -> None:
    """O-30: while a project moves from that library, both read the setting ``IDEMPOTENCY_KEY``."""
    project_of_both = override_settings(MIDDLEWARE=["idempotency_key.middleware.IdempotencyKeyMiddleware"])
    with project(_view, IDEMPOTENCY_KEY={"HEADER": "HTTP_X_KEY"}), project_of_both:
        policy = IdempotencyMiddleware(_view).engine.policy
    assert (policy.key, policy.header) == (None, "Idempotency-Key")


def test_the_dictionary_of_a_library_that_is_gone_is_an_error() -> None:
    """O-30: no code reads it any more, so a header that it names would be silently ignored."""
    with project(_view, IDEMPOTENCY_KEY={"HEADER": "HTTP_X_KEY"}), pytest.raises(ConfigurationError) as refused:
        IdempotencyMiddleware(_view)
    assert "django-idempotency-key" in str(refused.value)
    assert "remove the setting" in str(refused.value)


def test_a_whole_policy_takes_a_dotted_path() -> None:
    """O-30."""
    with project(_view, IDEMPOTENCY_POLICY=f"{__name__}.POLICY"):
        assert IdempotencyMiddleware(_view).engine.policy.required


@pytest.mark.parametrize(
    ("setting", "value"),
    [("IDEMPOTENCY_SCOPE", "anonymous"), ("IDEMPOTENCY_FINGERPRINT", "json"), ("IDEMPOTENCY_LEDGER", "default")],
)
def test_a_word_that_a_field_knows_is_no_path(setting: str, value: str) -> None:
    """O-30."""
    with project(_view, **{setting: value}):
        assert getattr(IdempotencyMiddleware(_view).engine.policy, setting[12:].lower()) == value


def test_an_alias_with_a_dot_is_no_path() -> None:
    """O-30: DATABASES may have aliases with dots."""
    from django.db import connections

    databases = {**connections.settings, "shop.eu": connections.settings["default"]}
    with project(_view, IDEMPOTENCY_LEDGER="shop.eu"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(connections, "settings", databases)
        assert IdempotencyMiddleware(_view).engine.policy.ledger == "shop.eu"


def test_a_hook_of_a_dotted_path_is_called() -> None:
    """O-30."""
    with project(_counter(), IDEMPOTENCY_SCOPE=HOOKS["scope"], IDEMPOTENCY_ON_EVENT=HOOKS["on_event"]):
        seen = [post(Client(), headers={"X-User": user}).json()["n"] for user in ("ada", "bob", "ada")]
    assert seen == [1, 2, 1]
    assert _events


# Rules by path

RULES: dict[str, Any] = {
    "/charges/*": {"required": True},
    "/charges/free": exempt,
    "/charges/{id}/named": {"header": "X-Charge"},
    "PUT /things": {"methods": ["PUT"]},
    "/pings": "open_idempotency.django.exempt",
}


def _urls(view: Any) -> list[Any]:
    names = ("charges", "charges/free", "charges/paid", "charges/<int:id>/named", "things", "pings", "others")
    return [path(name, view) for name in names]


@pytest.mark.parametrize("client", [Client, AsyncClient], ids=["wsgi", "asgi"])
def test_rules_by_path_apply_to_djangos_routes(client: Callable[[], Any]) -> None:
    """O-27: in the form that the ASGI and the WSGI middleware have."""

    def status(place: str, key: str | None = None, **headers: str) -> tuple[int, str | None]:
        sent = post(client(), place, key=key, headers=headers)
        response = asyncio.run(sent) if client is AsyncClient else sent
        return response.status_code, response.headers.get(REPLAYED)

    urls = type("Urls", (), {"urlpatterns": _urls(_counter())})
    with project(IDEMPOTENCY_RULES=RULES), override_settings(ROOT_URLCONF=urls):
        assert [status(each)[0] for each in ("/charges", "/charges/paid", "/charges/free", "/others")] == [
            400, 400, 200, 200,
        ]  # fmt: skip
        assert [status("/charges/7/named", **{"X-Charge": KEY})[1] for _ in range(2)] == [None, "true"]
        assert [status("/pings", KEY[::-1])[1] for _ in range(2)] == [None, None]
        assert [status("/others", uuid.UUID(int=5).hex)[1] for _ in range(2)] == [None, "true"]


def test_a_rule_by_path_covers_a_method_and_a_views_own_rule_is_nearer() -> None:
    """O-27: the view's rule adds to the rule of its path."""
    urls = type("Urls", (), {"urlpatterns": [path("things", idempotent(required=True)(_counter()))]})
    with project(IDEMPOTENCY_RULES=RULES), override_settings(ROOT_URLCONF=urls):
        assert Client().put("/things").status_code == 400
        replays = [Client().put("/things", headers={"Idempotency-Key": KEY}).get(REPLAYED) for _ in range(2)]
    assert replays == [None, "true"]


@pytest.mark.parametrize(
    ("rules", "complaint"),
    [
        ({"charges": {}}, "IDEMPOTENCY_RULES['charges']: the path has to begin with a slash"),
        ({"/c": {"tll": 5}}, "IDEMPOTENCY_RULES['/c']: tll: no such policy field; did you mean ttl?"),
        ({"/c": {"ttl": 5}}, "IDEMPOTENCY_RULES['/c']: ttl: 5.0 s is shorter than lease"),
        ({"/c": {"scope": "no.such.thing"}}, "IDEMPOTENCY_RULES['/c']['scope']: 'no.such.thing' cannot be imported"),
        ({"/c": "no.such.thing"}, "IDEMPOTENCY_RULES['/c']: 'no.such.thing' cannot be imported"),
        ({"/c": 5}, "IDEMPOTENCY_RULES['/c']: expected a dictionary of policy fields"),
        ("/c", "IDEMPOTENCY_RULES: expected a dictionary of paths"),
    ],
)
def test_a_wrong_rule_by_path_is_named(rules: object, complaint: str) -> None:
    """O-27, O-30: bad input, by the check and when the middleware is constructed."""
    (message,) = _found(IDEMPOTENCY_RULES=rules)
    assert message.id == "open_idempotency.E001"
    assert message.msg.startswith(complaint)
    with project(_view, IDEMPOTENCY_RULES=rules), pytest.raises(ConfigurationError, match="IDEMPOTENCY_RULES"):
        IdempotencyMiddleware(_view)


def test_a_rule_by_path_that_fits_no_route_is_reported() -> None:
    """O-28: W009, for a typing error."""
    shop = include([path("charges/<int:id>", _view), path("charges", _view)])
    rules = {"/shop/charge": {"required": True}, "/shop/charges/{id}": {}, "POST /shop/*": {}, "/*": {}}
    (message,) = _found(path("shop/", shop), IDEMPOTENCY_RULES=rules)
    assert message.id == "open_idempotency.W009"
    assert "IDEMPOTENCY_RULES['/shop/charge'] fits no route" in message.msg


@pytest.mark.parametrize("anything", [path("<path:rest>", _view), re_path("^.*$", _view)], ids=["path", "regex"])
def test_where_a_route_may_fit_any_path_no_rule_by_path_is_reported(anything: Any) -> None:
    """O-28: there is no false alarm."""
    assert _found(path("a", _view), anything, IDEMPOTENCY_RULES={"/b": {}}) == []


# Rules without an effect


class Page(View):
    """A class with one method whose rule has no effect."""

    def post(self, request: HttpRequest) -> HttpResponse:
        """Covered."""
        return HttpResponse()

    @idempotent(required=True)
    def put(self, request: HttpRequest) -> HttpResponse:
        """Not covered, unless the rule says so."""
        return HttpResponse()


@idempotent(required=True)
class Base(View):
    """A base class with a rule for many pages, some of which are only read."""


class Read(Base):
    """A page that is only read."""

    def get(self, request: HttpRequest) -> HttpResponse:
        """Read."""
        return HttpResponse()


class Shelves(ViewSet):
    """A viewset of REST framework with an action for PUT that has a rule."""

    @idempotent(required=True)
    @action(detail=False, methods=["put"])
    def replace(self, request: Any) -> Response:
        """Replace."""
        return Response()


def _function(methods: list[str], *, below: bool) -> Any:
    """A function view of REST framework, with a rule below ``@api_view`` or above it."""

    def replace(request: Any) -> Response:
        return Response()

    mark = idempotent(required=True)
    return api_view(methods)(mark(replace)) if below else mark(api_view(methods)(replace))


@require_http_methods(["DELETE", "PUT"])
@idempotent(required=True)
def _replace(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


@pytest.mark.parametrize(
    ("view", "routes", "methods"),
    [
        (Page.as_view(), "PUT /shop/things/<int:id>", "methods=['PUT']"),
        (_replace, "DELETE /shop/things/<int:id>, PUT /shop/things/<int:id>", "methods=['DELETE', 'PUT']"),
        (_function(["PUT"], below=True), "PUT /shop/things/<int:id>", "methods=['PUT']"),
        (_function(["PUT"], below=False), "PUT /shop/things/<int:id>", "methods=['PUT']"),
        (Shelves.as_view({"put": "replace"}), "PUT /shop/things/<int:id>", "methods=['PUT']"),
        (Shelves.as_view({"get": "replace"}), "GET /shop/things/<int:id>", "such requests never are"),
    ],
    ids=["method of a class", "function", "below api_view", "above api_view", "action", "action that reads"],
)
def test_a_rule_on_a_route_of_which_no_method_is_covered_is_an_error(view: Any, routes: str, methods: str) -> None:
    """O-28: E005 names the route, and suggests ``methods=``."""
    (message,) = _found(path("shop/", include([path("things/<int:id>", view)])))
    assert message.id == "open_idempotency.E005"
    assert message.is_serious()
    assert routes in message.msg
    assert methods in message.msg


@pytest.mark.parametrize(
    "options", [{"IDEMPOTENCY_METHODS": ["PUT"]}, {"IDEMPOTENCY_RULES": {"/0": {"methods": ["PUT"]}}}]
)
def test_where_the_method_is_covered_the_rule_is_right(options: dict[str, Any]) -> None:
    """O-28: covered by the settings, or by a rule for the path."""
    assert _found(path("0", _replace), **options) == []


def test_the_rule_of_a_base_class_over_views_that_only_read_is_right() -> None:
    """O-28: as a rule of a router or an application is."""
    assert _found(path("0", Read.as_view())) == []


# Covering only marked views, and switching the middleware off


def test_only_marked_views_are_covered_if_the_settings_say_so() -> None:
    """O-27: by decorator, and by path."""
    views = [_counter(), idempotent(_counter()), _counter()]
    with project(*views, IDEMPOTENCY_COVER="marked", IDEMPOTENCY_RULES={"/2": {}}):
        seen = [
            [post(Client(), f"/{place}", key=f"{KEY}{place}").get(REPLAYED) for _ in range(2)] for place in range(3)
        ]
    assert seen == [[None, None], [None, "true"], [None, "true"]]


def test_a_project_that_covers_what_is_marked_and_marks_nothing_is_reported() -> None:
    """O-28: W008."""
    assert [each.id for each in _found(path("0", _view), IDEMPOTENCY_COVER="marked")] == ["open_idempotency.W008"]
    assert _found(path("0", idempotent(_counter())), IDEMPOTENCY_COVER="marked") == []


@pytest.mark.parametrize("client", [Client, AsyncClient], ids=["wsgi", "asgi"])
def test_everything_is_switched_off_by_one_setting_which_is_said_once(
    client: Callable[[], Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O-28: stages run plainly, no key is required, nothing is replayed, and no backend is needed."""
    monkeypatch.setattr(engine, "_said_off", False)
    numbers = count(1)

    def view(request: HttpRequest) -> HttpResponse:
        return JsonResponse({"n": idem.run("charge", lambda: next(numbers))})

    options: dict[str, Any] = {"IDEMPOTENCY_ENABLED": False, "IDEMPOTENCY_BACKEND": None}
    with caplog.at_level(logging.WARNING, "open_idempotency"), project(idempotent(required=True)(view), **options):
        for key in (None, KEY, KEY):
            sent = post(client(), key=key)
            response = asyncio.run(sent) if client is AsyncClient else sent
            assert (response.status_code, response.headers.get(REPLAYED)) == (200, None)
        assert [each.id for each in run_checks() if "open_idempotency" in (each.id or "")] == []
        deploying = [each.id for each in run_checks(include_deployment_checks=True)]
    assert next(numbers) == 4
    assert "open_idempotency.W010" in deploying
    assert len([each for each in caplog.records if "switches idempotency off" in each.getMessage()]) == 1


# One process


def test_the_test_clients_of_a_process_share_one_memory_backend() -> None:
    """O-30: each client constructs the middleware anew."""
    with project(_counter(), IDEMPOTENCY_BACKEND="memory://"):
        replays = [post(Client()).get(REPLAYED) for _ in range(2)]
        replays.append(asyncio.run(post(AsyncClient())).headers.get(REPLAYED))
    assert replays == [None, "true", "true"]


def test_memory_is_empty_where_a_test_sets_the_backend() -> None:
    """O-30: tests get a backend of their own by setting it."""
    for _ in range(2):
        with project(_counter(), IDEMPOTENCY_BACKEND="memory://"):
            assert post(Client()).get(REPLAYED) is None


@pytest.mark.parametrize("found_view", [False, True])
def test_a_bare_request_passes(found_view: bool) -> None:
    """O-30: tests of middleware construct one without an environ, a method or a stream."""
    with project(_view):
        middleware: Any = IdempotencyMiddleware(_view)
        middleware._found_view = found_view
        for method in (None, "POST"):
            request = HttpRequest()
            request.method = method
            assert middleware(request).content == b"done"


@pytest.mark.parametrize("length", [2, "2", 0, ""])
def test_a_content_length_that_is_a_number_is_one(length: Any) -> None:
    """O-30: test clients pass numbers, where servers pass text."""
    with project(_counter(), IDEMPOTENCY_FINGERPRINT_HEADERS=["Content-Length"]):
        headers = {"Idempotency-Key": KEY}
        sent = [
            Client().post("/0", data="{}", content_type="text/plain", headers=headers, CONTENT_LENGTH=length)
            for _ in range(2)
        ]
    assert [each.get(REPLAYED) for each in sent] == [None, "true"]


def test_a_number_that_is_too_long_is_too_long() -> None:
    """O-07: a declared length over the limit is refused."""
    with project(_view, IDEMPOTENCY_MAX_REQUEST_BYTES=5):
        sent: Any = Client().post(
            "/0", data="{}", content_type="a/b", headers={"Idempotency-Key": KEY}, CONTENT_LENGTH=6
        )
    assert sent.status_code == 413
