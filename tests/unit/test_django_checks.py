"""Django's system checks: settings and the middleware's place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from django.core.checks import CheckMessage, run_checks
from django.http import HttpRequest, HttpResponse
from django.test import override_settings

from open_idempotency.django import IdempotencyMiddleware, idempotent
from open_idempotency.exceptions import ConfigurationError
from tests.django_project.calls import OURS, project

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
    """A project's own middleware, made of ours."""


def test_a_sound_project_has_nothing_to_report() -> None:
    """SPEC 5."""
    assert _ids(_view, MIDDLEWARE=[GZIP, *AUTHENTICATION, CSRF, OURS]) == []


def test_a_middleware_made_of_ours_counts() -> None:
    """W002 is about protection, not about a name."""
    assert _ids(_view, MIDDLEWARE=[f"{__name__}.Subclass"]) == []


def test_authentication_behind_it_is_not_reported() -> None:
    """SPEC 5: the claim comes after every request phase, so nothing is wrong."""
    assert _ids(_view, MIDDLEWARE=[OURS, *AUTHENTICATION]) == []


@pytest.mark.parametrize(
    ("setting", "value", "complaint"),
    [
        ("IDEMPOTENCY_TLL", 5, "did you mean IDEMPOTENCY_TTL?"),
        ("IDEMPOTENCY_XYZZY", 5, "known: IDEMPOTENCY_ALIASES"),
        ("IDEMPOTENCY_TTL", 5, "IDEMPOTENCY_TTL: 5.0 s is shorter than lease"),
        ("IDEMPOTENCY_BACKEND", "oracle://db", "IDEMPOTENCY_BACKEND: unknown scheme 'oracle'; known: memory://"),
        ("IDEMPOTENCY_BACKEND", None, "IDEMPOTENCY_BACKEND: none given"),
        ("IDEMPOTENCY_POLICY", {}, "IDEMPOTENCY_POLICY: expected an IdempotencyPolicy"),
    ],
)
def test_a_wrong_setting_is_named(setting: str, value: object, complaint: str) -> None:
    """Issue 2, what bad input gets: by the check, and when the middleware is made."""
    (message,) = _found(_view, **{setting: value})
    assert message.id == "open_idempotency.E001"
    assert setting in message.msg
    assert complaint in message.msg
    with project(_view, **{setting: value}), pytest.raises(ConfigurationError, match=setting):
        IdempotencyMiddleware(_view)


def test_settings_become_the_policy() -> None:
    """Issue 2: one for each field."""
    with project(_view, IDEMPOTENCY_LEASE=12, IDEMPOTENCY_METHODS=["PUT"]):
        policy = IdempotencyMiddleware(_view).engine.policy
    assert (policy.lease, policy.methods) == (12.0, frozenset({"PUT"}))


def test_listing_it_twice_is_an_error() -> None:
    """E002."""
    assert _ids(_view, MIDDLEWARE=[OURS, f"{__name__}.Subclass"]) == ["open_idempotency.E002"]


def test_leaving_it_out_is_a_warning() -> None:
    """W002, and the settings are not asked for a backend."""
    assert _ids(_view, MIDDLEWARE=[], IDEMPOTENCY_BACKEND=None) == ["open_idempotency.W002"]


def test_what_refuses_requests_belongs_before_it() -> None:
    """W001: SPEC 5, FAULTS 4."""
    (message,) = _found(_view, MIDDLEWARE=[*AUTHENTICATION, OURS, CSRF])
    assert message.id == "open_idempotency.W001"
    assert CSRF in message.msg


def test_what_compresses_belongs_before_it() -> None:
    """W003: FAULTS 4, store identity bytes."""
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


def test_a_middleware_that_cannot_be_imported_is_left_to_django() -> None:
    """It is none of ours."""
    with override_settings(SILENCED_SYSTEM_CHECKS=[]):
        assert _ids(_view, MIDDLEWARE=["nowhere.Middleware", OURS]) == []
