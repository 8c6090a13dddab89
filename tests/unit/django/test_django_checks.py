"""Django's system checks: settings, rules, and the position of the middleware."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
from django.core.checks import CheckMessage, run_checks
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import include, path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.cache import never_cache

from open_idempotency.django import IdempotencyMiddleware, idempotent
from open_idempotency.exceptions import ConfigurationError
from tests.django_project.calls import OURS, project

# REST framework reads its settings when its views are imported.
with override_settings(REST_FRAMEWORK={"UNAUTHENTICATED_USER": None}):
    from rest_framework.decorators import api_view
    from rest_framework.viewsets import ViewSet

AUTHENTICATION = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
CSRF = "django.middleware.csrf.CsrfViewMiddleware"
GZIP = "django.middleware.gzip.GZipMiddleware"


def _found(*views: Any, **options: Any) -> Sequence[CheckMessage]:
    with project(*views, **options):
        return [message for message in run_checks() if (message.id or "").startswith("open_idempotency.")]


def _ids(*views: Any, **options: Any) -> list[str | None]:
    return [message.id for message in _found(*views, **options)]


def _view(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


class Subclass(IdempotencyMiddleware):
    """A project's own middleware, a subclass of the library's."""


def test_a_sound_project_has_nothing_to_report() -> None:
    assert _ids(_view, MIDDLEWARE=[GZIP, *AUTHENTICATION, CSRF, OURS]) == []


def test_a_middleware_made_of_ours_counts() -> None:
    """W002 is about protection, not about a class name."""
    assert _ids(_view, MIDDLEWARE=[f"{__name__}.Subclass"]) == []


def test_authentication_behind_it_is_not_reported() -> None:
    """The claim follows every request phase, so nothing is wrong."""
    assert _ids(_view, MIDDLEWARE=[OURS, *AUTHENTICATION]) == []


@pytest.mark.parametrize(
    ("setting", "value", "complaint"),
    [
        ("IDEMPOTENCY_TLL", 5, "did you mean IDEMPOTENCY_TTL?"),
        ("IDEMPOTENCY_XYZZY", 5, "known: IDEMPOTENCY_ALIASES"),
        ("IDEMPOTENCY_TTL", 5, "IDEMPOTENCY_TTL: 5.0 s is shorter than lease"),
        (
            "IDEMPOTENCY_BACKEND",
            "oracle://db",
            "IDEMPOTENCY_BACKEND: unknown scheme 'oracle'; known: django://, django-cache://, memory://",
        ),
        ("IDEMPOTENCY_BACKEND", None, "IDEMPOTENCY_BACKEND: none given"),
        ("IDEMPOTENCY_POLICY", {}, "IDEMPOTENCY_POLICY: expected an IdempotencyPolicy"),
    ],
)
def test_a_wrong_setting_is_named(setting: str, value: object, complaint: str) -> None:
    """A wrong setting is reported by the check, and raised when the middleware is constructed."""
    (message,) = _found(_view, **{setting: value})
    assert message.id == "open_idempotency.E001"
    assert setting in message.msg
    assert complaint in message.msg
    with project(_view, **{setting: value}), pytest.raises(ConfigurationError, match=setting):
        IdempotencyMiddleware(_view)


def test_settings_become_the_policy() -> None:
    """Each policy field has a setting."""
    with project(_view, IDEMPOTENCY_LEASE=12, IDEMPOTENCY_METHODS=["PUT"]):
        policy = IdempotencyMiddleware(_view).engine.policy
    assert (policy.lease, policy.methods) == (12.0, frozenset({"PUT"}))


def test_listing_it_twice_is_an_error() -> None:
    """E002."""
    assert _ids(_view, MIDDLEWARE=[OURS, f"{__name__}.Subclass"]) == ["open_idempotency.E002"]


def test_leaving_it_out_is_a_warning() -> None:
    """W002; the settings need no backend."""
    assert _ids(_view, MIDDLEWARE=[], IDEMPOTENCY_BACKEND=None) == ["open_idempotency.W002"]


def test_what_refuses_requests_belongs_before_it() -> None:
    """W001."""
    (message,) = _found(_view, MIDDLEWARE=[*AUTHENTICATION, OURS, CSRF])
    assert message.id == "open_idempotency.W001"
    assert CSRF in message.msg


def test_what_compresses_belongs_before_it() -> None:
    """W003."""
    assert _ids(_view, MIDDLEWARE=[OURS, GZIP]) == ["open_idempotency.W003"]


def test_a_views_rule_that_contradicts_the_settings_is_named() -> None:
    """E003: at start, not at the first request."""

    @idempotent(ttl=1)
    def hasty(request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    (message,) = _found(hasty)
    assert message.id == "open_idempotency.E003"
    assert "hasty" in message.msg
    assert "ttl" in message.msg


class Charges(View):
    """A class-based view with one method whose rule contradicts the settings."""

    def post(self, request: HttpRequest) -> HttpResponse:
        """Response."""
        return HttpResponse()

    @idempotent(ttl=1)
    def patch(self, request: HttpRequest) -> HttpResponse:
        """Response."""
        return HttpResponse()


@idempotent(lease=100)
class Slow(View):
    """A class-based view whose rule and method rule are valid alone and contradict each other."""

    @idempotent(ttl=99)
    def post(self, request: HttpRequest) -> HttpResponse:
        """Response."""
        return HttpResponse()


@method_decorator(idempotent(ttl=1), name="dispatch")
class Dispatching(View):
    """A class-based view whose ``dispatch`` is decorated."""

    def post(self, request: HttpRequest) -> HttpResponse:
        """Response."""
        return HttpResponse()


class Orders(ViewSet):
    """A viewset with an action that has a rule of its own."""

    @idempotent(ttl=1)
    def pay(self, request: Any) -> HttpResponse:
        """Pay."""
        return HttpResponse()


def _plain(request: Any) -> HttpResponse:
    return HttpResponse()


@never_cache
@idempotent(ttl=1)
def cached(request: HttpRequest) -> HttpResponse:
    """A view with another library's decorator as well."""
    return HttpResponse()


WRONG: dict[str, tuple[Any, str]] = {
    "a method of a class": (Charges.as_view(), "Charges.patch: ttl: 1.0"),
    "a class and its method": (Slow.as_view(), "Slow.post: ttl: 99"),
    "a class and the URLs": (idempotent(lease=90_000)(Charges.as_view()), "Charges.post: ttl: 86400"),
    "dispatch": (Dispatching.as_view(), "Dispatching.post: ttl: 1.0"),
    "an action": (Orders.as_view({"post": "pay"}), "Orders.pay: ttl: 1.0"),
    "below @api_view": (api_view(["POST"])(idempotent(ttl=1)(_plain)), "_plain.post: ttl: 1.0"),
    "below another decorator": (cached, "cached: ttl: 1.0"),
    "a partial": (partial(idempotent(ttl=1)(lambda request, shop: HttpResponse()), shop="a"), "ttl: 1.0"),
}


@pytest.mark.parametrize("form", WRONG)
def test_a_rule_is_found_wherever_it_is(form: str) -> None:
    """E003, with the name of the view that has the rule."""
    view, complaint = WRONG[form]
    messages = _found(view)
    assert {message.id for message in messages} == {"open_idempotency.E003"}
    assert any(complaint in message.msg for message in messages), messages


def test_a_rule_in_a_nested_url_configuration_is_found() -> None:
    """E003: included twice; reported once although two URLs lead there."""
    nested = include(
        ([path("b/", include(([path("c", Charges.as_view()), path("d", Charges.as_view())], "in")))], "out")
    )
    urls = type("Urls", (), {"urlpatterns": [path("a/", nested)]})
    with project(), override_settings(ROOT_URLCONF=urls):
        messages = [m.msg for m in run_checks() if m.id == "open_idempotency.E003"]
    assert len(messages) == 1
    assert "Charges.patch" in messages[0]


def test_a_middleware_that_cannot_be_imported_is_left_to_django() -> None:
    """Django itself reports the import error."""
    with override_settings(SILENCED_SYSTEM_CHECKS=[]):
        assert _ids(_view, MIDDLEWARE=["nowhere.Middleware", OURS]) == []
