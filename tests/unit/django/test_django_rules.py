"""The rules of Django views, and the imports that the adapter needs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from functools import cached_property
from typing import Any

import pytest
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View

from open_idempotency import ConfigurationError, idem, rules
from open_idempotency._engine.engine import running
from open_idempotency.django import exempt, idempotent
from tests.django_project.calls import KEY, OURS, REPLAYED, post, project

Send = Callable[..., Any]


def _blocking(place: str = "/0", **extra: Any) -> Any:
    return post(Client(raise_request_exception=False), place, **extra)


def _awaited(place: str = "/0", **extra: Any) -> Any:
    return asyncio.run(post(AsyncClient(raise_request_exception=False), place, **extra))


both_chains = pytest.mark.parametrize("send", [_blocking, _awaited], ids=["wsgi", "asgi"])


def _counting(calls: list[int]) -> Callable[[HttpRequest], HttpResponse]:
    def view(request: HttpRequest) -> HttpResponse:
        calls.append(1)
        return JsonResponse({"calls": len(calls)}, status=201)

    return view


class Required(View):
    """A class whose methods all require a key."""

    def post(self, request: HttpRequest) -> HttpResponse:
        """Response."""
        return HttpResponse("posted")


class OnlyPatch(View):
    """A class with one method that requires a key."""

    def post(self, request: HttpRequest) -> HttpResponse:
        """Response."""
        return HttpResponse("posted")

    @idempotent(required=True)
    def patch(self, request: HttpRequest) -> HttpResponse:
        """Response."""
        return HttpResponse("patched")


@method_decorator(idempotent(required=True), name="dispatch")
class Decorated(Required):
    """A class decorated in the usual way, by ``method_decorator``."""


@idempotent(required=True)
class Marked(Required):
    """A class decorated directly."""


@pytest.mark.parametrize("cls", [Decorated, Marked])
def test_a_class_based_view_can_require_a_key(cls: type[View]) -> None:
    """O-06."""
    with project(cls.as_view()):
        assert _blocking(key=None).status_code == 400
        assert _blocking().content == b"posted"


def test_one_method_of_a_class_can_have_a_rule_of_its_own() -> None:
    """A rule may concern a single method."""
    with project(OnlyPatch.as_view()):
        assert _blocking(key=None).content == b"posted"
        assert Client().patch("/0").status_code == 400


@idempotent(required=True)
class Several(View):
    """A class with a rule for all methods, and methods that change it."""

    def post(self, request: HttpRequest) -> HttpResponse:
        """Response."""
        return HttpResponse("posted")

    @idempotent(ttl=60)
    def patch(self, request: HttpRequest) -> HttpResponse:
        """Response."""
        return HttpResponse("patched")

    @exempt
    def put(self, request: HttpRequest) -> HttpResponse:
        """Response."""
        return HttpResponse("put")


def test_a_method_adds_to_what_its_class_says() -> None:
    """The nearest rule sets its fields; other fields keep the values of the wider rule."""
    with project(Several.as_view(), IDEMPOTENCY_METHODS=["POST", "PATCH", "PUT"]):
        statuses = [Client().generic(method, "/0").status_code for method in ("POST", "PATCH", "PUT")]
    assert statuses == [400, 400, 200]


def test_what_the_urls_say_adds_to_what_the_class_says() -> None:
    """One class has two URLs with different rules."""
    with project(idempotent(required=False)(Marked.as_view()), Marked.as_view()):
        assert [_blocking(place, key=None).status_code for place in ("/0", "/1")] == [200, 400]


@both_chains
def test_an_exempt_view_is_not_covered(send: Send) -> None:
    """The key of a request does not matter."""
    calls: list[int] = []
    with project(exempt(_counting(calls))) as backend:
        send()
        assert send().json() == {"calls": 2}
    assert backend.verbs == []


@both_chains
def test_a_view_can_have_a_key_field_of_its_own(send: Send) -> None:
    """A rule may set any policy field."""
    with project(idempotent(header="X-Charge")(_counting([]))):
        send(key=None, headers={"X-Charge": KEY})
        again = send(key=None, headers={"X-Charge": KEY})
        assert again[REPLAYED] == "true"
        assert send().json() == {"calls": 2}


def test_a_view_can_opt_another_method_in() -> None:
    """PUT and DELETE are covered only if a rule says so."""
    calls: list[int] = []
    with project(idempotent(methods=["PUT"])(_counting(calls))):
        for _ in range(2):
            response = Client().put("/0", headers={"Idempotency-Key": KEY})
        assert response[REPLAYED] == "true"
        _blocking(), _blocking()
    assert calls == [1, 1, 1]


class LoadedLate:
    """A URL configuration whose views get their rules when Django first loads it, in the first request."""

    def __init__(self, make: Callable[[], Callable[..., Any]]) -> None:
        self._make = make

    @cached_property
    def urlpatterns(self) -> list[Any]:
        """See Django."""
        return [path("0", self._make())]


@both_chains
@pytest.mark.parametrize(("key", "status"), [(None, 400), (KEY, 201)])
def test_the_first_rule_of_a_process_counts_for_the_request_that_loads_it(
    send: Send, key: str | None, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O-06: that request needs a key too."""
    monkeypatch.setattr(rules, "registry", rules.RuleRegistry())
    calls: list[int] = []
    with project(), override_settings(ROOT_URLCONF=LoadedLate(lambda: idempotent(required=True)(_counting(calls)))):
        assert send(key=key).status_code == status
    assert calls == [1] * (status == 201)


@both_chains
def test_an_exemption_counts_for_the_request_that_loads_it(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    """S-03: an uncovered request has no stages."""

    def view(request: HttpRequest) -> HttpResponse:
        return JsonResponse({"active": idem.active, "started": running.get() is not None})

    monkeypatch.setattr(rules, "registry", rules.RuleRegistry())
    with project(), override_settings(ROOT_URLCONF=LoadedLate(lambda: exempt(view))):
        assert send(key=None).json() == {"active": False, "started": False}


@both_chains
def test_the_request_that_loads_a_view_with_a_field_of_its_own_is_let_go_when_it_is_stopped(
    send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L-04: its key is freed, whatever was known of the request before its view was found."""
    monkeypatch.setattr(rules, "registry", rules.RuleRegistry())
    ends: list[BaseException | None] = [SystemExit(1), None]

    def view(request: HttpRequest) -> HttpResponse:
        end = ends.pop(0)
        if end is not None:
            raise end
        return HttpResponse("paid")

    late = LoadedLate(lambda: idempotent(header="X-Charge")(view))
    with project(), override_settings(ROOT_URLCONF=late):
        with pytest.raises(SystemExit):
            send(key=None, headers={"X-Charge": KEY})
        assert send(key=None, headers={"X-Charge": KEY}).content == b"paid"


def test_a_field_of_a_views_own_is_known_before_a_request_has_reached_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """R-09: the body is buffered before other middleware reads it."""
    with project(_counting([]), idempotent(header="X-Later")(_counting([])), MIDDLEWARE=[OURS, f"{__name__}.Reading"]):
        _blocking(key=None)
        responses = [Client().post("/1", {"amount": "1"}, headers={"X-Later": KEY}) for _ in range(2)]
    assert [response.status_code for response in responses] == [201, 201]
    assert responses[1][REPLAYED] == "true"


@pytest.mark.parametrize("fields", [{"header": 5}, {"header": "Schl\xfcssel"}, {"aliases": None}, {"aliases": "X-One"}])
def test_a_wrong_field_of_a_view_is_reported_by_its_policy(fields: dict[str, Any]) -> None:
    """Bad input: the error is not raised while rules are collected."""
    with project(idempotent(**fields)(_counting([]))), pytest.raises(ConfigurationError):
        Client().post("/0", headers={"Idempotency-Key": KEY})


class Reading:
    """Middleware that reads the form, as CSRF protection does; the raw body cannot be read afterwards."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        assert request.POST is not None
        return self.get_response(request)


def _run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def test_importing_it_needs_no_settings() -> None:
    """Settings are read only when they are needed."""
    code = (
        "import open_idempotency.django, django.conf; print(open_idempotency.django.idempotent.__name__, "
        "django.conf.settings.configured)"
    )
    assert _run_python(code) == "idempotent False"


def test_without_django_the_error_names_the_command() -> None:
    """The error for a missing extra names the install command."""
    code = (
        "import sys; sys.modules['django'] = None\n"
        "from open_idempotency.exceptions import MissingExtra\n"
        "try: import open_idempotency.django\n"
        "except MissingExtra as error: print(error)"
    )
    assert "pip install 'open-idempotency[django]'" in _run_python(code)
