"""Views of a Django project that takes payments: sync, async, and of REST framework. The module is its URLconf."""

from __future__ import annotations

import json
from typing import Any

from django.contrib.auth.models import User
from django.db import transaction
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from rest_framework.decorators import api_view
from rest_framework.request import Request
from rest_framework.response import Response

from open_idempotency import idem
from open_idempotency.django import idempotent
from tests.unit.testing.bank import bank


def pay(request: HttpRequest) -> HttpResponse:
    """One charge, in a stage."""
    amount = json.loads(request.body)["amount"]
    charge = idem.run("charge", bank.charge, amount, idem.key_for("charge"))
    return JsonResponse({"charge": charge}, status=201)


async def apay(request: HttpRequest) -> HttpResponse:
    """The async form of ``pay``."""
    amount = json.loads(request.body)["amount"]
    charge = await idem.arun("charge", bank.acharge, amount, idem.key_for("charge"))
    return JsonResponse({"charge": charge}, status=201)


@api_view(["POST"])
def rest_pay(request: Request) -> Response:
    """``pay``, with REST framework."""
    charge = idem.run("charge", bank.charge, request.data["amount"], idem.key_for("charge"))
    return Response({"charge": charge}, status=201)


def twice(request: HttpRequest) -> HttpResponse:
    """Two charges, and neither in a stage."""
    amount = json.loads(request.body)["amount"]
    bank.charge(amount, f"first-{bank.count()}")
    bank.charge(amount, f"second-{bank.count()}")
    return JsonResponse({"charged": amount})


@idempotent(atomic=True)
def sign_up(request: HttpRequest) -> HttpResponse:
    """Insert one row, committed with the response."""
    user = User.objects.create(username=f"user-{User.objects.count()}")
    return JsonResponse({"user": user.pk}, status=201)


def sign_up_in_stage(request: HttpRequest) -> HttpResponse:
    """Insert one row, committed with its stage."""
    with transaction.atomic():
        made: dict[str, Any] = idem.run("user", _make_user, tx="default")
    return JsonResponse(made, status=201)


def _make_user() -> dict[str, Any]:
    return {"user": User.objects.create(username=f"user-{User.objects.count()}").pk}


def stream(request: HttpRequest) -> StreamingHttpResponse:
    """A charge, and a response in parts."""
    charge = idem.run("charge", bank.charge, 1, idem.key_for("charge"))
    return StreamingHttpResponse([b"charged ", str(charge["amount"]).encode()])


async def astream(request: HttpRequest) -> StreamingHttpResponse:
    """The async form of ``stream``."""
    charge = await idem.arun("charge", bank.acharge, 1, idem.key_for("charge"))

    async def parts() -> Any:
        yield b"charged "
        yield str(charge["amount"]).encode()

    return StreamingHttpResponse(parts())


urlpatterns = [
    path("pay", pay),
    path("apay", apay),
    path("rest", rest_pay),
    path("twice", twice),
    path("sign-up", sign_up),
    path("sign-up-in-stage", sign_up_in_stage),
    path("stream", stream),
    path("astream", astream),
]
