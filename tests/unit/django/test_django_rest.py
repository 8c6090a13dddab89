"""Django REST framework behind the middleware: parsers, renderers, exception handler, views and viewsets."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import AsyncClient, Client, override_settings
from django.test.client import encode_multipart

from tests.django_project.calls import KEY, REPLAYED, post, project

# REST framework reads its settings when its views are imported.
with override_settings(REST_FRAMEWORK={"UNAUTHENTICATED_USER": None}):
    from rest_framework import serializers
    from rest_framework.decorators import api_view
    from rest_framework.renderers import JSONRenderer
    from rest_framework.request import Request
    from rest_framework.response import Response
    from rest_framework.views import APIView
    from rest_framework.viewsets import ViewSet

from open_idempotency import idem
from open_idempotency.django import exempt, idempotent

OWN_BOUNDARY = "multipart/form-data; boundary=own"


class Amount(serializers.Serializer[Any]):
    """The serializer of the body."""

    amount = serializers.IntegerField(min_value=1)


class Charges(APIView):
    """Validates the body, counts the run, and responds."""

    authentication_classes: list[Any] = []
    renderer_classes = [JSONRenderer]
    calls: list[int] = []

    def post(self, request: Request) -> Response:
        """Charge."""
        amount = Amount(data=request.data)
        amount.is_valid(raise_exception=True)
        self.calls.append(idem.attempt)
        if amount.validated_data["amount"] == 500 and idem.attempt == 1:
            raise ValueError
        files = {name: file.read().decode() for name, file in request.FILES.items()}
        return Response({"charged": amount.validated_data["amount"], **files}, status=201)


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the attempts in this test."""
    mine: list[int] = []
    monkeypatch.setattr(Charges, "calls", mine)
    return mine


def _blocking(**extra: Any) -> Any:
    return post(Client(raise_request_exception=False), **extra)


def _awaited(**extra: Any) -> Any:
    return asyncio.run(post(AsyncClient(raise_request_exception=False), **extra))


both_chains = pytest.mark.parametrize("send", [_blocking, _awaited], ids=["wsgi", "asgi"])


@both_chains
def test_a_rendered_response_is_replayed(send: Any, calls: list[int]) -> None:
    """R-08, O-02."""
    with project(Charges.as_view()):
        first, again = send(data={"amount": 5}), send(data={"amount": 5})
    assert first.status_code == again.status_code == 201
    assert first.content == again.content == b'{"charged":5}'
    assert first["Content-Type"] == again["Content-Type"] == "application/json"
    assert again[REPLAYED] == "true"
    assert calls == [1]


@both_chains
def test_what_the_exception_handler_makes_of_an_error_is_stored(send: Any, calls: list[int]) -> None:
    """R-08: a validation error is an outcome, and so is a parse error."""
    with project(Charges.as_view()):
        assert send(data={"amount": 0}).json() == {"amount": ["Ensure this value is greater than or equal to 1."]}
        assert send(data={"amount": 0})[REPLAYED] == "true"
        assert send(data=None, key=KEY + "2").status_code == 400
    assert calls == []


@both_chains
def test_an_unhandled_error_runs_again(send: Any, calls: list[int]) -> None:
    """O-08: the framework's handler raises it on."""
    with project(Charges.as_view()):
        assert send(data={"amount": 500}).status_code == 500
        assert send(data={"amount": 500}).status_code == 201
    assert calls == [1, 2]


@both_chains
@pytest.mark.parametrize("spool", [10, 100_000], ids=["on disk", "in memory"])
def test_an_upload_reaches_request_data(send: Any, spool: int) -> None:
    """R-08, R-09."""
    data = encode_multipart("own", {"amount": "5", "receipt": SimpleUploadedFile("a.txt", b"thanks")})
    with project(Charges.as_view(), IDEMPOTENCY_SPOOL_BYTES=spool):
        assert send(data=data, content_type=OWN_BOUNDARY).json() == {"charged": 5, "receipt": "thanks"}
        assert send(data=data, content_type=OWN_BOUNDARY)[REPLAYED] == "true"


class Orders(ViewSet):
    """A viewset with one action that requires a key, and one that is exempt."""

    authentication_classes: list[Any] = []
    renderer_classes = [JSONRenderer]

    @idempotent(required=True)
    def create(self, request: Request) -> Response:
        """Create."""
        return Response("created")

    @exempt
    def preview(self, request: Request) -> Response:
        """Preview."""
        return Response("previewed")


def test_the_actions_of_a_viewset_have_rules_of_their_own() -> None:
    """O-06: each route has its own rule."""
    with project(Orders.as_view({"post": "create"}), Orders.as_view({"post": "preview"})) as backend:
        assert post(Client(), "/0", key=None).status_code == 400
        assert post(Client(), "/1").json() == "previewed"
        assert backend.verbs == []
        assert post(Client(), "/0").json() == "created"


@idempotent(required=True)
class Strict(Charges):
    """A view that requires a key."""


@idempotent(required=True)
@api_view(["POST"])
def shout(request: Request) -> Response:
    """A function view."""
    return Response(json.dumps(request.data))


@pytest.mark.parametrize("view", [Strict.as_view(), shout])
def test_views_of_the_framework_can_require_a_key(view: Any) -> None:
    """O-06."""
    with project(view):
        assert post(Client(), data={"amount": 5}, key=None).status_code == 400
        assert post(Client(), data={"amount": 5}).status_code in (200, 201)
