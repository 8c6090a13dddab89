"""Every form of Django view that ``@idempotent(atomic=True)`` supports. Each view inserts a row into ``orders``."""

# ruff: noqa: E402 (Django has to be set up before what needs its settings is imported)
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.django_project import set_up

set_up()

from django.db import connections
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.utils.decorators import method_decorator
from django.views import View

from open_idempotency.django import idempotent

with override_settings(REST_FRAMEWORK={"UNAUTHENTICATED_USER": None}):
    from rest_framework.decorators import action, api_view, authentication_classes, permission_classes
    from rest_framework.request import Request
    from rest_framework.response import Response
    from rest_framework.views import APIView
    from rest_framework.viewsets import ViewSet


def place() -> int:
    """Insert a row; return its number."""
    with connections["default"].cursor() as cursor:
        cursor.execute("INSERT INTO orders DEFAULT VALUES")
        return int(cursor.lastrowid)


@idempotent(atomic=True)
def function(request: HttpRequest) -> HttpResponse:
    """A function view."""
    return HttpResponse(f"order {place()}", status=201, headers={"X-Order": "here"})


@idempotent(atomic=True)
class Decorated(View):
    """A class, decorated as a whole."""

    def post(self, request: HttpRequest) -> HttpResponse:
        """Place an order."""
        return HttpResponse(f"order {place()}", status=201, headers={"X-Order": "here"})


class WithMethod(View):
    """A class with one decorated method."""

    @idempotent(atomic=True)
    def post(self, request: HttpRequest) -> HttpResponse:
        """Place an order."""
        return HttpResponse(f"order {place()}", status=201, headers={"X-Order": "here"})


@method_decorator(idempotent(atomic=True), name="post")
class ByMethodDecorator(View):
    """A class decorated by Django's ``method_decorator``."""

    def post(self, request: HttpRequest) -> HttpResponse:
        """Place an order."""
        return HttpResponse(f"order {place()}", status=201, headers={"X-Order": "here"})


@idempotent(atomic=True)
class RestClass(APIView):
    """A class-based view of REST framework."""

    def post(self, request: Request) -> Response:
        """Place an order."""
        return Response({"order": place()}, status=201, headers={"X-Order": "here"})


class RestMethod(APIView):
    """A class-based view of REST framework with a decorated method."""

    @idempotent(atomic=True)
    def post(self, request: Request) -> Response:
        """Place an order."""
        return Response({"order": place()}, status=201, headers={"X-Order": "here"})


@api_view(["POST"])
@authentication_classes([])
@permission_classes([])
@idempotent(atomic=True)
def rest_function(request: Request) -> Response:
    """A function view of REST framework."""
    return Response({"order": place()}, status=201, headers={"X-Order": "here"})


class RestSet(ViewSet):
    """A viewset of REST framework with actions."""

    @action(detail=False, methods=["post"])
    @idempotent(atomic=True)
    def buy(self, request: Request) -> Response:
        """Place an order."""
        return Response({"order": place()}, status=201, headers={"X-Order": "here"})


VIEWS: dict[str, Callable[[], Any]] = {
    "function": lambda: function,
    "class": Decorated.as_view,
    "method": WithMethod.as_view,
    "method_decorator": ByMethodDecorator.as_view,
    "APIView class": RestClass.as_view,
    "APIView method": RestMethod.as_view,
    "api_view": lambda: rest_function,
    "action": lambda: RestSet.as_view({"post": "buy"}),
}
