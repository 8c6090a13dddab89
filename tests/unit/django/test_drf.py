"""Django REST framework: callers whom its own authentication verifies, and rules on every form of its views."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.test import Client, override_settings

from tests.django_project.calls import KEY, REPLAYED, post, project

# REST framework reads its settings when its views are imported.
with override_settings(REST_FRAMEWORK={"UNAUTHENTICATED_USER": None}):
    from rest_framework.authentication import BaseAuthentication
    from rest_framework.decorators import action, api_view, authentication_classes, parser_classes, permission_classes
    from rest_framework.exceptions import APIException, AuthenticationFailed, Throttled
    from rest_framework.parsers import FormParser, JSONParser, MultiPartParser
    from rest_framework.permissions import BasePermission
    from rest_framework.renderers import JSONRenderer
    from rest_framework.request import Request
    from rest_framework.response import Response
    from rest_framework.throttling import BaseThrottle
    from rest_framework.views import APIView
    from rest_framework.viewsets import ViewSet

from open_idempotency import idem
from open_idempotency.django import exempt, idempotent

runs: list[Any] = []


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Forget what an earlier test has noted."""
    runs.clear()
    yield
    runs.clear()


class Bearer(BaseAuthentication):
    """An authenticator with two tokens."""

    users = {"Bearer one": "ann", "Bearer two": "bob"}

    def authenticate(self, request: Request) -> tuple[Any, None] | None:
        field = request.headers.get("authorization")
        if field is None:
            return None
        if field not in self.users:
            raise AuthenticationFailed("no such token")
        return type("User", (), {"is_authenticated": True, "pk": self.users[field]})(), None

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


class Known(BasePermission):
    """A permission for every authenticated user."""

    def has_permission(self, request: Request, view: Any) -> bool:
        return getattr(request.user, "pk", None) is not None


class Charges(APIView):
    """Responds with the caller, and notes it."""

    authentication_classes = [Bearer]
    permission_classes = [Known]
    renderer_classes = [JSONRenderer]

    def post(self, request: Request) -> Response:
        """Charge."""
        runs.append(request.user.pk)
        return Response({"charged": request.user.pk, "run": len(runs)}, status=201)


def charge(token: str | None, key: str = KEY) -> Any:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return post(Client(raise_request_exception=False), data={"amount": 5}, key=key, headers=headers)


# Authentication inside the view


def test_callers_are_distinguished_by_their_users() -> None:
    """The view's own authenticators verify them before the view runs."""
    with project(Charges.as_view()):
        assert charge("one").json() == {"charged": "ann", "run": 1}
        assert charge("two").json() == {"charged": "bob", "run": 2}
        again = charge("one")
    assert (again.json(), again[REPLAYED]) == ({"charged": "ann", "run": 1}, "true")


def test_a_refused_token_takes_no_key() -> None:
    """A 401 is not stored, so the same request may come again."""
    with project(Charges.as_view()):
        assert [charge("wrong").status_code for _ in range(2)] == [401, 401]
        assert REPLAYED not in charge("wrong")
    assert runs == []


def test_a_refused_permission_is_not_stored() -> None:
    """Neither a 401 nor a 403 for an unknown caller is stored."""
    with project(Charges.as_view()):
        responses = [charge(None) for _ in range(2)]
    assert all(response.status_code in (401, 403) and REPLAYED not in response for response in responses)


class Busy(BaseThrottle):
    """A throttle that lets the second request pass."""

    def allow_request(self, request: Request, view: Any) -> bool:
        runs.append("throttle")
        return len(runs) > 1

    def wait(self) -> float | None:
        return 3


class Throttling(Charges):
    """A view that is throttled at first."""

    throttle_classes = [Busy]


def test_a_throttled_request_runs_again() -> None:
    """A 429 is not stored."""
    with project(Throttling.as_view()):
        first, second = charge("one"), charge("one")
    assert (first.status_code, first["Retry-After"], second.status_code) == (429, "3", 201)


# Parsers and exceptions


class OutOfStock(APIException):
    """An APIException with a status of its own."""

    status_code = 402
    default_code = "out_of_stock"


@api_view(["POST"])
@authentication_classes([])
@permission_classes([])
@parser_classes([JSONParser, FormParser, MultiPartParser])
def buy(request: Request) -> Response:
    """Notes the data of the request."""
    runs.append(dict(request.data))
    if request.data.get("amount") in (0, "0"):
        raise OutOfStock
    if request.data.get("amount") in (9, "9"):
        raise Throttled(wait=2)
    return Response({"stages": [stage.name for stage in idem.stages], "attempt": idem.attempt})


@pytest.mark.parametrize(
    ("data", "content_type"),
    [(b'{"amount": "5"}', "application/json"), (b"amount=5", "application/x-www-form-urlencoded")],
    ids=["json", "form"],
)
def test_a_parser_reads_the_body_that_was_kept(data: bytes, content_type: str) -> None:
    """R-08: once; the repeated request gets its response without parsing."""
    with project(buy):
        first, again = [post(Client(), data=data, content_type=content_type) for _ in range(2)]
    assert (first.json(), again[REPLAYED]) == ({"stages": [], "attempt": 1}, "true")
    assert [run["amount"] in ("5", ["5"]) for run in runs] == [True]


def test_an_api_exception_is_an_outcome() -> None:
    """R-08: the response of the exception handler is stored by its status."""
    with project(buy):
        first, again = [post(Client(), data={"amount": 0}) for _ in range(2)]
        assert [post(Client(), data={"amount": 9}, key=KEY + "2").status_code for _ in range(2)] == [429, 429]
    assert first.status_code == 402
    assert (again.content, again[REPLAYED], len(runs)) == (first.content, "true", 3)


# Rules


class Orders(ViewSet):
    """A viewset with extra actions, marked on either side of ``@action``."""

    authentication_classes: list[Any] = []
    renderer_classes = [JSONRenderer]

    @idempotent(required=True)
    @action(detail=False, methods=["post"])
    def above(self, request: Request) -> Response:
        """Marked above ``@action``."""
        return Response("done")

    @action(detail=False, methods=["post"])
    @idempotent(required=True)
    def below(self, request: Request) -> Response:
        """Marked below ``@action``."""
        return Response("done")


@api_view(["POST"])
@idempotent(required=True)
def strict(request: Request) -> Response:
    """Marked below ``@api_view``, as DRF's own decorators are."""
    return Response("done")


@api_view(["POST", "PATCH"])
@exempt
def free(request: Request) -> Response:
    """Marked below ``@api_view``."""
    runs.append(1)
    return Response("done")


@pytest.mark.parametrize(
    "view",
    [Orders.as_view({"post": "above"}), Orders.as_view({"post": "below"}), strict],
    ids=["above action", "below action", "below api_view"],
)
def test_a_view_requires_a_key_on_whichever_side_the_mark_is(view: Any) -> None:
    """O-06."""
    with project(view):
        assert post(Client(), key=None).json()["type"] == "urn:problem-type:open-idempotency:key-missing"
        assert [post(Client()).status_code for _ in range(2)] == [200, 200]


def test_an_exempt_function_below_api_view_is_not_covered() -> None:
    with project(free) as backend:
        assert [post(Client()).status_code for _ in range(2)] == [200, 200]
    assert (runs, backend.verbs) == ([1, 1], [])


def test_an_unmarked_function_view_has_no_rule() -> None:
    """The wrapper of ``@api_view`` has no rule of its own."""
    with project(buy):
        assert post(Client(), data={"amount": 5}, key=None).status_code == 200
