"""The view that drf-idempotencykey protects, for the user that it needs; each database has her."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import User
from django.http import HttpResponse
from django.urls import path

from benchmarks.apps.django_views import charge
from benchmarks.interface import PATH
from benchmarks.peers.loading import named

_anna = User(pk=1, username="anna")


def authenticate(self: Any, request: Any) -> tuple[User, None]:
    """Everybody is one user, found without a query."""
    return _anna, None


def post(self: Any, request: Any) -> HttpResponse:
    """Read the order, answer with as many bytes."""
    return charge(request._request)


_mixin, _view = *named("drf_idempotencykey.mixins", "DrfIdempotencyKeyMixin"), *named("rest_framework.views", "APIView")
_authentication = type(
    "Authentication",
    tuple(named("rest_framework.authentication", "BaseAuthentication")),
    {"authenticate": authenticate},
)
_charges: Any = type("Charges", (_mixin, _view), {"authentication_classes": [_authentication], "post": post})

urlpatterns = [path(PATH[1:], _charges.as_view())]
