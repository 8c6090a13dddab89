"""Rules on functions behind a layer above Django: django-ninja's operations, controllers, decorators, callables."""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import pytest
from django.core.checks import CheckMessage, run_checks
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View

from open_idempotency import rules
from open_idempotency.django import checks, exempt, idempotent
from tests.django_project.calls import KEY, REPLAYED, WatchedBackend, post, project

# ninja reads its settings when it is imported.
with override_settings():
    from ninja import NinjaAPI, Router, Schema
    from ninja.decorators import decorate_view
    from ninja.operation import PathView
    from ninja.security import HttpBearer
    from ninja.streaming import JSONL

with override_settings(REST_FRAMEWORK={"UNAUTHENTICATED_USER": None, "DEFAULT_AUTHENTICATION_CLASSES": []}):
    from rest_framework.decorators import action
    from rest_framework.response import Response
    from rest_framework.routers import SimpleRouter
    from rest_framework.viewsets import ViewSet

_numbers = itertools.count()


class Charge(Schema):
    """The body of a request. Only this module has the name, for annotations that are text."""

    amount: int


def make_api(**options: Any) -> NinjaAPI:
    """A new API of ninja, which refuses two APIs with one name."""
    return NinjaAPI(urls_namespace=f"api-{next(_numbers)}", **options)


@contextmanager
def served(*patterns: Any, **options: Any) -> Iterator[WatchedBackend]:
    """A project with these URL patterns."""
    urls = type("Urls", (), {"urlpatterns": list(patterns)})
    with project(**options) as backend, override_settings(ROOT_URLCONF=urls):
        yield backend


def found() -> Sequence[CheckMessage]:
    """The results of the library's system checks."""
    return [each for each in run_checks() if (each.id or "").startswith("open_idempotency.")]


def send(client: Any, place: str, **extra: Any) -> Any:
    """A POST; awaitable if the client is async."""
    sent = post(client, place, {"amount": 1}, **extra)
    return asyncio.run(sent) if isinstance(client, AsyncClient) else sent


both_clients = pytest.mark.parametrize("client", [Client, AsyncClient], ids=["wsgi", "asgi"])


@both_clients
def test_the_operations_of_one_path_of_ninja_have_their_own_rules(client: Callable[[], Any]) -> None:
    """O-27: several operations share one Django view; the rule of each is found by its method."""
    api = make_api()

    @api.post("/charges")
    @idempotent(required=True)
    def create(request: HttpRequest, charge: Charge) -> dict[str, int]:
        return {"amount": charge.amount}

    @api.patch("/charges")
    @exempt
    async def change(request: HttpRequest) -> dict[str, int]:
        return {"amount": 2}

    @api.put("/charges")
    @idempotent(methods=["PUT"], header="X-Put")
    def replace(request: HttpRequest) -> dict[str, int]:
        return {"amount": 3}

    def other(method: str, key: str, header: str = "Idempotency-Key") -> str | None:
        factory = client()
        # Django 4.2's own reading of ``headers`` for the async client sends names with underscores.
        named = {header: key} if isinstance(factory, AsyncClient) else {"headers": {header: key}}
        sent = factory.generic(method, "/api/charges", **named)
        response = asyncio.run(sent) if isinstance(factory, AsyncClient) else sent
        assert response.status_code == 200
        return str(response.headers.get(REPLAYED))

    with served(path("api/", api.urls)) as backend:
        assert send(client(), "/api/charges", key=None).status_code == 400
        assert [send(client(), "/api/charges").headers.get(REPLAYED) for _ in range(2)] == [None, "true"]
        claims = len(backend.verbs)
        assert [other("PATCH", KEY) for _ in range(2)] == ["None", "None"]
        assert len(backend.verbs) == claims
        assert [other("PUT", KEY[::-1], "X-Put") for _ in range(2)] == ["None", "true"]
        assert found() == []


def test_a_router_of_ninja_that_is_mounted_keeps_its_rules() -> None:
    """O-27: ninja clones the operations of a router."""
    router = Router()

    @router.post("/charges")
    @idempotent(required=True)
    def create(request: HttpRequest) -> dict[str, int]:
        return {}

    api = make_api()
    api.add_router("/one", router)
    with served(path("api/", api.urls)):
        assert send(Client(), "/api/one/charges", key=None).status_code == 400


def test_a_rule_among_the_decorators_of_a_whole_operation_counts() -> None:
    """O-27: ``decorate_view`` decorates the function that runs the operation; the operation's own function has another
    rule.
    """
    api = make_api()

    def passing(run: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(run)
        def inner(*args: Any, **kwargs: Any) -> Any:
            return run(*args, **kwargs)

        return inner

    @api.post("/charges")
    @decorate_view(passing, idempotent(required=True))
    @idempotent(header="X-Charge")
    def create(request: HttpRequest) -> dict[str, int]:
        return {}

    with served(path("api/", api.urls)):
        assert send(Client(), "/api/charges").status_code == 400
        assert send(Client(), "/api/charges", key=None, headers={"X-Charge": KEY}).status_code == 200


class Bearer(HttpBearer):
    """Accepts one token until it is revoked."""

    def __init__(self) -> None:
        super().__init__()
        self.valid = {"t"}

    def authenticate(self, request: HttpRequest, token: str) -> str | None:
        """See ninja."""
        return token if token in self.valid else None


@both_clients
@pytest.mark.parametrize("mark", [idempotent, lambda function: function], ids=["marked", "unmarked"])
@pytest.mark.parametrize("awaited", [False, True], ids=["def", "async def"])
def test_ninja_authenticates_before_a_replay(client: Callable[[], Any], mark: Any, awaited: bool) -> None:
    """O-23: a revoked token gets ninja's own 401."""
    bearer = Bearer()
    api = make_api(auth=bearer)
    calls: list[int] = []

    def create(request: HttpRequest) -> dict[str, int]:
        calls.append(1)
        return {}

    async def acreate(request: HttpRequest) -> dict[str, int]:
        return create(request)

    api.post("/charges")(mark(acreate if awaited else create))
    header = {"Authorization": "Bearer t"}
    with served(path("api/", api.urls)):
        assert [send(client(), "/api/charges", headers=header).status_code for _ in range(2)] == [200, 200]
        bearer.valid.clear()
        assert send(client(), "/api/charges", headers=header).status_code == 401
    assert calls == [1]


def test_a_marked_stream_of_ninja_is_an_async_generator_as_before() -> None:
    """O-27: ninja inspects the kind of the function that it is given."""
    api = make_api()

    @api.post("/numbers", response=JSONL[int])
    @idempotent(required=True)
    async def numbers(request: HttpRequest) -> AsyncIterator[int]:
        for number in range(2):
            yield number

    async def read(sender: AsyncClient) -> bytes:
        response: Any = await post(sender, "/api/numbers")
        if not response.streaming:
            return bytes(response.content)
        return b"".join([part async for part in response.streaming_content])

    with served(path("api/", api.urls)):
        assert send(AsyncClient(), "/api/numbers", key=None).status_code == 400
        assert {asyncio.run(read(AsyncClient())) for _ in range(2)} == {b"0\n1\n"}


def _forgetful(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator without ``functools.wraps``."""

    def inner(request: HttpRequest, **kwargs: Any) -> Any:
        return function(request, **kwargs)

    return inner


def test_a_marked_function_that_no_route_leads_to_is_reported() -> None:
    """O-28: W007, for a view of Django and an operation of ninja."""
    api = make_api()

    @api.post("/charges")
    @_forgetful
    @idempotent(required=True)
    def hidden_from_ninja(request: HttpRequest) -> dict[str, int]:
        return {}

    @_forgetful
    @idempotent(required=True)
    def hidden_from_django(request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    with served(path("api/", api.urls), path("0", hidden_from_django)):
        messages = found()
    assert [each.id for each in messages] == ["open_idempotency.W007"] * 2
    assert "hidden_from_ninja" in messages[0].msg
    assert "POST /api/charges" in messages[0].msg
    assert "hidden_from_django" in messages[1].msg


def test_ninjas_view_stands_for_a_path_view_whose_operations_check_requests() -> None:
    """Private parts of ninja: if this fails, ``django/layers.py`` has to look elsewhere."""
    from open_idempotency.django import layers

    view = PathView()
    view.add_operation("/charges", ["POST"], lambda request: None)
    (operation,) = layers.operations(view.get_view())
    assert operation.methods == ["POST"]
    assert callable(operation._run_checks)

    class Older(PathView):
        def get_view(self) -> Callable[..., Any]:
            """The method of ninja 1.0 to 1.4."""
            return self._sync_view

    older = Older()
    older.add_operation("/charges", ["POST"], lambda request: None)
    assert [each.methods for each in layers.operations(older.get_view())] == [["POST"]]


class Controller:
    """A controller as packages make them: methods of an object, each behind a function that ninja is given."""

    @idempotent(required=True)
    def pay(self, request: HttpRequest) -> dict[str, int]:
        """Marked."""
        return {}

    @exempt
    def free(self, request: HttpRequest) -> dict[str, int]:
        """Exempt."""
        return {}


def test_the_methods_of_controllers_keep_their_rules() -> None:
    """O-27."""
    api, controller = make_api(), Controller()
    for name in ("pay", "free"):
        method = getattr(Controller, name)

        @functools.wraps(method)
        def as_view(request: HttpRequest, *, _method: Any = method) -> Any:
            return _method(controller, request)

        # ninja takes every parameter that it sees for one of the request
        cast("Any", as_view).__signature__ = inspect.signature(lambda request: None)
        api.post(f"/{name}")(as_view)
    with served(path("api/", api.urls)) as backend:
        assert send(Client(), "/api/pay", key=None).status_code == 400
        assert send(Client(), "/api/free").status_code == 200
    assert backend.verbs == []


class Callables:
    """Views that are callable, and not functions."""

    class Object:
        """A callable object with a marked ``__call__``."""

        @idempotent(required=True)
        def __call__(self, request: HttpRequest) -> HttpResponse:
            return HttpResponse()

    class Post(View):
        """A class-based view with ``method_decorator`` on a method."""

        @method_decorator(idempotent(required=True))
        def post(self, request: HttpRequest) -> HttpResponse:
            """Respond."""
            return HttpResponse()

    class Wrapping:
        """A decorator written as a class, which keeps the wrapped function and copies nothing."""

        def __init__(self, view: Callable[..., Any]) -> None:
            self.__wrapped__ = view

        def __call__(self, request: HttpRequest) -> Any:
            return self.__wrapped__(request)


@idempotent(required=True)
def _marked(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


@pytest.mark.parametrize(
    "view",
    [
        Callables.Object(),
        Callables.Post.as_view(),
        Callables.Wrapping(_marked),
        functools.partial(_marked),
        Callables.Wrapping(functools.partial(_marked)).__wrapped__,
    ],
    ids=["__call__", "method_decorator", "__wrapped__", "partial", "partial in a wrapper"],
)
def test_rules_reach_what_a_layer_keeps(view: Any) -> None:
    """O-27: a rule is found on the object that the layer wraps."""
    with project(view):
        assert post(Client(), key=None).status_code == 400
        assert post(Client()).status_code == 200


class Actions(ViewSet):
    """A viewset of REST framework, whose routes a router makes."""

    @action(detail=False, methods=["post"])
    @idempotent(required=True)
    def pay(self, request: Any) -> Response:
        """Marked below ``@action``."""
        return Response({})

    @idempotent(required=True)
    @action(detail=False, methods=["post"])
    def refund(self, request: Any) -> Response:
        """Marked above ``@action``."""
        return Response({})


def test_the_actions_of_a_viewset_keep_their_rules() -> None:
    """O-27."""
    router = SimpleRouter(trailing_slash=False)
    router.register("charges", Actions, basename="charge")
    with served(*router.urls):
        assert [send(Client(), f"/charges/{name}", key=None).status_code for name in ("pay", "refund")] == [400, 400]
        assert found() == []


KINDS = {
    "function": _marked,
    "class": method_decorator(idempotent, name="dispatch")(type("Page", (View,), {"post": _marked})).as_view(),
    "viewset": Actions.as_view({"post": "pay"}),
}


@pytest.mark.parametrize("kind", [*KINDS, "ninja"])
def test_rules_without_the_middleware_are_reported(kind: str) -> None:
    """O-28: W002, for each form of view that can have a rule."""
    api = make_api()
    api.post("/charges")(idempotent(required=True)(lambda request: None))
    with served(path("0", KINDS[kind]) if kind in KINDS else path("api/", api.urls), MIDDLEWARE=[]):
        assert [each.id for each in found()] == ["open_idempotency.W002"]


def test_rules_without_the_middleware_and_without_the_application_are_reported() -> None:
    """O-28: importing a decorator registers the checks, so W002 does not need INSTALLED_APPS. Ninja is not imported."""
    code = (
        "import sys, django\nfrom django.conf import settings\nsettings.configure(ROOT_URLCONF='')\ndjango.setup()\n"
        "from open_idempotency.django import idempotent\nfrom django.core.checks import run_checks\n"
        "print([each.id for each in run_checks() if each.id.startswith('open_')], 'ninja' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "['open_idempotency.W002'] False"


@idempotent(required=True)
def in_a_table(request: HttpRequest) -> HttpResponse:
    """A function that a dispatcher finds in a table."""
    return HttpResponse()


TABLE = {"pay": in_a_table}


def dispatcher(request: HttpRequest, name: str) -> HttpResponse:
    """A view that looks another view up by name and calls it."""
    return TABLE[name](request)


class Overridden(View):
    """A base class whose marked method is overridden by a subclass."""

    @idempotent(required=True)
    def post(self, request: HttpRequest) -> HttpResponse:
        """Marked."""
        return HttpResponse()


class Overriding(Overridden):
    """The subclass, whose method has no mark."""

    def post(self, request: HttpRequest) -> HttpResponse:
        """Not marked."""
        return HttpResponse()


@exempt
class Exempt(View):
    """An exempt class with a subclass."""


class ExemptToo(Exempt):
    """The subclass of an exempt class."""

    def post(self, request: HttpRequest) -> HttpResponse:
        """Respond."""
        return HttpResponse()


class ExemptAction(ViewSet):
    """A viewset with an exempt action."""

    @action(detail=False, methods=["post"])
    @exempt
    def free(self, request: Any) -> Response:
        """Exempt."""
        return Response({})


def test_a_marked_function_of_the_project_that_no_route_names_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """O-28: W012, where no code of a view names the function. Functions behind a route, a subclass or a decorator are
    not reported.
    """
    mine = [in_a_table, Overridden.post, Exempt, ExemptAction.free, Actions.pay, Actions.refund]
    marked = [getattr(each, "__wrapped__", each) for each in mine]
    monkeypatch.setattr(rules, "marked", [*marked, *(each for each in rules.marked if each in mine)])
    monkeypatch.setattr(checks, "_is_of_project", lambda each: True)
    router = SimpleRouter(trailing_slash=False)
    router.register("charges", Actions, basename="charge")
    views = [
        path("1", Overriding.as_view()),
        path("2", ExemptToo.as_view()),
        path("3", ExemptAction.as_view({"post": "free"})),
    ]
    with served(path("<str:name>", dispatcher), *views, *router.urls):
        names = [each.msg.partition(" ")[0] for each in found() if each.id == "open_idempotency.W012"]
    assert names == [f"{__name__}.Overridden.post", f"{__name__}.in_a_table"]


def test_only_code_of_the_project_is_looked_at() -> None:
    """O-28: there is no warning for functions of a package that the project does not use."""
    with served(path("0", lambda request: HttpResponse())):
        assert found() == []
    with override_settings(ROOT_URLCONF=f"{__package__}.no_urls", INSTALLED_APPS=[]):
        assert checks._is_of_project(in_a_table)
    with override_settings(ROOT_URLCONF="shop.urls", INSTALLED_APPS=[]):
        assert not checks._is_of_project(in_a_table)
