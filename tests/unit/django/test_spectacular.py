"""What drf-spectacular's schema says of covered views; other views are described as before."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.test import override_settings

from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.django import exempt, idempotent
from open_idempotency.exceptions import MissingExtra
from tests.django_project.calls import OURS

REST = {
    "UNAUTHENTICATED_USER": None,
    "DEFAULT_AUTHENTICATION_CLASSES": [],
    "DEFAULT_SCHEMA_CLASS": "open_idempotency.django.spectacular.AutoSchema",
}

# REST framework and drf-spectacular read their settings when they are imported.
with override_settings(REST_FRAMEWORK=REST):
    from django.urls import path
    from drf_spectacular.generators import SchemaGenerator
    from drf_spectacular.utils import OpenApiResponse, extend_schema
    from rest_framework import serializers
    from rest_framework.decorators import action, api_view
    from rest_framework.request import Request
    from rest_framework.response import Response
    from rest_framework.views import APIView
    from rest_framework.viewsets import ViewSet

    from open_idempotency.django import spectacular


class Amount(serializers.Serializer[Any]):
    """The serializer of the body."""

    amount = serializers.IntegerField()


class Charges(APIView):
    """A view with one covered method and two others."""

    serializer_class = Amount

    def post(self, request: Request) -> Response:
        """Create."""
        return Response()

    def put(self, request: Request) -> Response:
        """Replace."""
        return Response()

    def get(self, request: Request) -> Response:
        """Read."""
        return Response()


@idempotent(required=True)
class StrictCharges(Charges):
    """A view that requires a key."""


# ``@extend_schema`` asks for the default schema class at once.
with override_settings(REST_FRAMEWORK=REST):

    class Orders(ViewSet):
        """A viewset whose actions have rules of their own."""

        serializer_class = Amount

        @idempotent(required=True)
        def create(self, request: Request) -> Response:
            """Create."""
            return Response()

        @exempt
        @action(detail=False, methods=["post"])
        def preview(self, request: Request) -> Response:
            """Preview."""
            return Response()

        @extend_schema(responses={201: Amount, 409: OpenApiResponse(description="Sold out")})
        @action(detail=False, methods=["post"])
        def reserve(self, request: Request) -> Response:
            """Reserve."""
            return Response()


def shout(request: Request) -> Response:
    """A function view."""
    return Response()


def function(mark: Any, *, below: bool) -> Any:
    """The function view with a mark, below ``@api_view`` or above it."""
    with override_settings(REST_FRAMEWORK=REST):
        posted = api_view(["POST"])
        copy = type(shout)(shout.__code__, globals(), "shout")  # a mark stays on what it was put on
        return posted(mark(copy)) if below else mark(posted(copy))


@contextmanager
def described(*views: Any, **options: Any) -> Iterator[dict[str, Any]]:
    """The schema of a project with these views at ``/0``, ``/1``, ..."""
    options = {"MIDDLEWARE": [OURS], "IDEMPOTENCY_BACKEND": MemoryBackend(), "REST_FRAMEWORK": REST, **options}
    urls = type("Urls", (), {"urlpatterns": [path(str(place), view) for place, view in enumerate(views)]})
    with override_settings(ROOT_URLCONF=urls, **options):
        yield SchemaGenerator().get_schema(public=True)


def operation(*views: Any, method: str = "post", **options: Any) -> dict[str, Any]:
    """The schema of one operation."""
    with described(*views, **options) as schema:
        found: dict[str, Any] = schema["paths"]["/0"][method]
        return found


def header(operation: dict[str, Any]) -> dict[str, Any] | None:
    found = [p for p in operation.get("parameters", ()) if p["in"] == "header"]
    assert len(found) < 2
    return found[0] if found else None


def is_described(operation: dict[str, Any]) -> bool:
    """Whether the header and the library's responses are described; both or neither."""
    there = header(operation) is not None
    for status in ("400", "409", "413", "422", "503"):
        content = operation["responses"].get(status, {}).get("content", {})
        assert ("application/problem+json" in content) is there
    return there


def test_a_covered_view_has_the_header_and_our_responses() -> None:
    """H-14, O-03, O-05, O-06."""
    with described(Charges.as_view()) as schema:
        found = schema["paths"]["/0"]["post"]
        assert header(found) == {**header(found), "name": "Idempotency-Key", "required": False}
        assert "Idempotent-Replayed" in found["responses"]["200"]["headers"]
        assert "Retry-After" in found["responses"]["503"]["headers"]
        for status in ("400", "409", "413", "422", "503"):
            said = found["responses"][status]["content"]["application/problem+json"]["schema"]
            assert said == {"$ref": "#/components/schemas/IdempotencyProblem"}
        assert "reference" in schema["components"]["schemas"]["IdempotencyProblem"]["properties"]


@pytest.mark.parametrize("method", ["get", "put"])
def test_a_method_that_is_not_covered_has_none_of_it(method: str) -> None:
    assert not is_described(operation(Charges.as_view(), method=method))


def test_settings_count() -> None:
    """The settings of the middleware decide which views are described."""
    found = operation(Charges.as_view(), method="put", IDEMPOTENCY_METHODS=["PUT"], IDEMPOTENCY_HEADER="X-Key")
    assert (header(found) or {})["name"] == "X-Key"


@pytest.mark.parametrize(
    "view",
    [
        StrictCharges.as_view(),
        idempotent(required=True)(Charges.as_view()),
        Orders.as_view({"post": "create"}),
        function(idempotent(required=True), below=True),
        function(idempotent(required=True), below=False),
    ],
    ids=["class", "marked view", "action", "marked function", "marked function view"],
)
def test_a_view_that_requires_a_key_says_so(view: Any) -> None:
    """O-06: wherever its rule is set."""
    found = header(operation(view))
    assert found is not None
    assert found["required"] is True


@pytest.mark.parametrize(
    "view",
    [
        exempt(Charges.as_view()),
        Orders.as_view({"post": "preview"}),
        function(exempt, below=True),
        function(exempt, below=False),
    ],
    ids=["marked view", "action", "marked function", "marked function view"],
)
def test_an_exempt_view_has_none_of_it(view: Any) -> None:
    assert not is_described(operation(view))


def test_a_marked_view_does_not_speak_for_its_class() -> None:
    """The class has another URL, where its rule differs."""
    with described(exempt(Charges.as_view()), Charges.as_view()) as schema:
        assert not is_described(schema["paths"]["/0"]["post"])
        assert is_described(schema["paths"]["/1"]["post"])


def test_what_the_project_says_of_a_status_stays() -> None:
    """Nothing is overwritten, and ``@extend_schema`` works."""
    found = operation(Orders.as_view({"post": "reserve"}))
    assert found["responses"]["409"]["description"].startswith("Sold out. ")
    assert is_described(found)


def test_without_the_middleware_nothing_is_described() -> None:
    """Only covered views are described."""
    with described(Charges.as_view(), MIDDLEWARE=[]) as schema:
        assert not is_described(schema["paths"]["/0"]["post"])
        assert "IdempotencyProblem" not in schema["components"]["schemas"]


def test_without_drf_spectacular_the_pip_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error for a missing package names the install command."""
    monkeypatch.setitem(sys.modules, "drf_spectacular", None)
    spec = importlib.util.spec_from_file_location("spectacular_again", spectacular.__file__)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(MissingExtra, match="pip install drf-spectacular"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_rules_by_path_count() -> None:
    """O-27: they decide as they do for the middleware."""
    rules = {"/*": {"methods": ["PUT"]}, "/0": {"header": "X-Key"}, "POST /0": exempt}
    with described(Charges.as_view(), IDEMPOTENCY_RULES=rules) as schema:
        assert (header(schema["paths"]["/0"]["put"]) or {})["name"] == "X-Key"
        assert not is_described(schema["paths"]["/0"]["post"])


@pytest.mark.parametrize("options", [{"IDEMPOTENCY_ENABLED": False}, {"IDEMPOTENCY_COVER": "marked"}])
def test_what_is_switched_off_or_not_marked_is_not_described(options: dict[str, Any]) -> None:
    """O-25, O-26: an application that is switched off, and a view without a rule where a rule is needed."""
    assert not is_described(operation(Charges.as_view(), **options))
    assert is_described(operation(StrictCharges.as_view(), IDEMPOTENCY_COVER="marked"))
