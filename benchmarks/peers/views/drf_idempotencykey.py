"""The view that drf-idempotencykey protects, for the users that it needs; each database has them."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import User
from django.http.response import HttpResponseBase
from django.urls import path

from benchmarks.apps.django_views import charge
from benchmarks.interface import OTHER_PATH, PATH
from benchmarks.peers.loading import named

_anna, _bert = User(pk=1, username="anna"), User(pk=2, username="bert")


def authenticate(self: Any, request: Any) -> tuple[User, None]:
    """Everybody is one user, found without a query, except one who gives a name."""
    return _bert if request.headers.get("Authorization") == "Bearer bert" else _anna, None


def post(self: Any, request: Any) -> HttpResponseBase:
    """Read the order, respond with as many bytes."""
    return charge(request._request)


_mixin, _view = *named("drf_idempotencykey.mixins", "DrfIdempotencyKeyMixin"), *named("rest_framework.views", "APIView")
_authentication = type(
    "Authentication",
    tuple(named("rest_framework.authentication", "BaseAuthentication")),
    {"authenticate": authenticate},
)
_charges: Any = type(
    "Charges", (_mixin, _view), {"authentication_classes": [_authentication], "post": post, "patch": post}
)

urlpatterns = [path(each[1:], _charges.as_view()) for each in (PATH, OTHER_PATH)]
