"""Django and REST framework: a caller who lost a permission gets the view's refusal, and no stored response (O-23)."""

# ruff: noqa: E402 (Django has to be set up before what needs its settings is imported)
from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from asgiref.sync import iscoroutinefunction, markcoroutinefunction

from tests.django_project import set_up

set_up()

from django.contrib.auth.decorators import login_required, permission_required, user_passes_test
from django.contrib.auth.mixins import LoginRequiredMixin, PermissionRequiredMixin, UserPassesTestMixin
from django.core.exceptions import PermissionDenied
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.test import AsyncClient, Client, override_settings
from django.utils.decorators import method_decorator
from django.views import View

from open_idempotency.django import idempotent
from tests.django_project.calls import OURS, REPLAYED, post, project

# REST framework reads its settings when its views are imported.
with override_settings(REST_FRAMEWORK={"UNAUTHENTICATED_USER": None}):
    from rest_framework.authentication import BaseAuthentication
    from rest_framework.decorators import api_view, authentication_classes, permission_classes
    from rest_framework.permissions import BasePermission
    from rest_framework.renderers import JSONRenderer
    from rest_framework.response import Response
    from rest_framework.throttling import BaseThrottle
    from rest_framework.views import APIView
    from rest_framework.viewsets import ViewSet

runs: list[str] = []
permissions: set[str] = set()
throttled: list[bool] = []


class Ann:
    """A verified user whose permissions a test may withdraw."""

    is_authenticated = is_active = True
    pk = 1

    def has_perm(self, name: str, obj: Any = None) -> bool:
        """Whether the user has the permission now."""
        return name in permissions

    def has_perms(self, names: Any, obj: Any = None) -> bool:
        """Whether the user has all of these permissions now."""
        return all(map(self.has_perm, names))

    async def ahas_perm(self, name: str, obj: Any = None) -> bool:
        """The async form of ``has_perm``."""
        return self.has_perm(name)


class ByHeader(BaseAuthentication):
    """An authenticator that returns the user of an outer middleware, without CSRF checks."""

    def authenticate(self, request: Any) -> Any:
        return Ann(), None


class MayCharge(BasePermission):
    """A permission class of a project."""

    def has_permission(self, request: Any, view: Any) -> bool:
        return request.user.has_perm("shop.charge")


class Counting(BaseThrottle):
    """A throttle that notes each request."""

    def allow_request(self, request: Any, view: Any) -> bool:
        throttled.append(True)
        return True


class AsAnn:
    """Middleware that sets the same verified user on every request."""

    sync_capable = async_capable = True

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request: Any) -> Any:
        request.user = Ann()
        return self.get_response(request)


def _charge(*_: Any, **__: Any) -> HttpResponse:
    runs.append("ann")
    return JsonResponse({"run": len(runs)}, status=201)


@permission_required("shop.charge", raise_exception=True)
@idempotent
def by_permission(request: HttpRequest) -> HttpResponse:
    """A view with Django's ``permission_required``."""
    return _charge()


@login_required
@user_passes_test(lambda user: user.has_perm("shop.charge"), login_url="/login")
@idempotent(ttl=3600)
def by_test(request: HttpRequest) -> HttpResponse:
    """A view with two decorators; a refusal is a redirect."""
    return _charge()


def awaited_permission(view: Callable[..., Any]) -> Callable[..., Any]:
    """A project's own decorator for coroutines."""

    @functools.wraps(view)
    async def check(request: Any, *args: Any, **kwargs: Any) -> Any:
        if not await request.user.ahas_perm("shop.charge"):
            raise PermissionDenied
        return await view(request, *args, **kwargs)

    return check


@awaited_permission
@idempotent
async def awaited(request: HttpRequest) -> HttpResponse:
    """An async view."""
    return _charge()


class OnMethod(View):
    """A view with the decorator and the mark on the method."""

    @method_decorator(permission_required("shop.charge", raise_exception=True))
    @idempotent
    def post(self, request: HttpRequest) -> HttpResponse:
        """Charge."""
        return _charge()


@method_decorator(permission_required("shop.charge", raise_exception=True), name="dispatch")
class OnDispatch(View):
    """A view with the decorator on ``dispatch``, and the mark on the method."""

    @idempotent
    def post(self, request: HttpRequest) -> HttpResponse:
        """Charge."""
        return _charge()


class WithPermission(PermissionRequiredMixin, View):
    """A view with Django's mixin, without a mark."""

    permission_required = "shop.charge"
    raise_exception = True

    def post(self, request: HttpRequest) -> HttpResponse:
        """Charge."""
        return _charge()


class WithTest(LoginRequiredMixin, UserPassesTestMixin, View):
    """A view with two mixins."""

    def test_func(self) -> bool:
        """Whether the user may charge."""
        return self.request.user.has_perm("shop.charge")

    def post(self, request: HttpRequest) -> HttpResponse:
        """Charge."""
        return _charge()


class RestView(APIView):
    """A view of REST framework with a permission."""

    authentication_classes = [ByHeader]
    permission_classes = [MayCharge]
    throttle_classes = [Counting]
    renderer_classes = [JSONRenderer]

    def post(self, request: Any) -> Response:
        """Charge."""
        runs.append("ann")
        return Response({"run": len(runs)}, status=201)


class MarkedRestView(RestView):
    """The same view with a rule."""

    @idempotent
    def post(self, request: Any) -> Response:
        """Charge."""
        return super().post(request)


class RestActions(ViewSet):
    """A viewset with an action that has permissions of its own."""

    authentication_classes = [ByHeader]
    renderer_classes = [JSONRenderer]

    def get_permissions(self) -> list[Any]:
        """The permissions of the action."""
        return [MayCharge()] if self.action == "pay" else []

    def pay(self, request: Any) -> Response:
        """Charge."""
        runs.append("ann")
        return Response({"run": len(runs)}, status=201)


class KeyInPermission(RestView):
    """A permission that checks an API key by itself, without any authenticator."""

    authentication_classes = []


@api_view(["POST"])
@authentication_classes([ByHeader])
@permission_classes([MayCharge])
def rest_function(request: Any) -> Response:
    """A function view of REST framework."""
    runs.append("ann")
    return Response({"run": len(runs)}, status=201)


rest_function.cls.renderer_classes = [JSONRenderer]

VIEWS: dict[str, tuple[Any, int]] = {
    "permission_required": (by_permission, 403),
    "user_passes_test": (by_test, 302),
    "a coroutine": (awaited, 403),
    "a method": (OnMethod.as_view(), 403),
    "dispatch": (OnDispatch.as_view(), 403),
    "in urls.py": (permission_required("shop.charge", raise_exception=True)(OnDispatch.as_view()), 403),
    "PermissionRequiredMixin": (WithPermission.as_view(), 403),
    "UserPassesTestMixin": (WithTest.as_view(), 403),
    "APIView": (RestView.as_view(), 403),
    "APIView with a rule": (MarkedRestView.as_view(), 403),
    "a viewset": (RestActions.as_view({"post": "pay"}), 403),
    "@api_view": (rest_function, 403),
}


def _blocking(**extra: Any) -> Any:
    return post(Client(), **extra)


def _awaited(**extra: Any) -> Any:
    async def send() -> Any:
        return await post(AsyncClient(), **extra)

    return asyncio.run(send())


both_chains = pytest.mark.parametrize("send", [_blocking, _awaited], ids=["wsgi", "asgi"])
each_view = pytest.mark.parametrize(("view", "refused"), VIEWS.values(), ids=VIEWS)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Grant the permission, and forget all runs."""
    runs.clear()
    throttled.clear()
    permissions.add("shop.charge")
    yield
    permissions.clear()


def _project(view: Any, **options: Any) -> Any:
    return project(view, MIDDLEWARE=[f"{__name__}.AsAnn", OURS], **options)


@both_chains
@each_view
def test_who_may_no_longer_do_it_gets_no_replay(view: Any, refused: int, send: Any) -> None:
    """O-23: the view refuses, though the caller and the key are the same; the replay is sent as soon as it is allowed
    again.
    """
    with _project(view):
        first, again = send(), send()
        assert (first.status_code, again.status_code, again[REPLAYED]) == (201, 201, "true")
        permissions.clear()
        denied = send()
        assert denied.status_code == refused
        assert REPLAYED not in denied
        assert b"run" not in denied.content
        permissions.add("shop.charge")
        assert send()[REPLAYED] == "true"
    assert runs == ["ann"]


@both_chains
@each_view
def test_who_may_no_longer_do_it_does_not_learn_that_the_key_is_known(view: Any, refused: int, send: Any) -> None:
    """O-23: the caller gets no 422 either."""
    with _project(view):
        assert send(data={"amount": 5}).status_code == 201
        assert send(data={"amount": 6}).status_code == 422
        permissions.clear()
        assert send(data={"amount": 6}).status_code == refused
    assert runs == ["ann"]


@pytest.mark.parametrize("on_disk", [False, True], ids=["in memory", "on disk"])
def test_what_is_asked_before_a_replay_may_read_the_body(on_disk: bool) -> None:
    """O-23: a permission that reads ``request.data`` gets the whole body."""
    seen: list[Any] = []

    class Reading(BasePermission):
        def has_permission(self, request: Any, view: Any) -> bool:
            seen.append(request.data)
            return True

    class Charges(RestView):
        permission_classes = [Reading]

    with _project(Charges.as_view(), IDEMPOTENCY_SPOOL_BYTES=10 if on_disk else 10_000):
        body = {"amount": "5" * 100}
        assert [_blocking(data=body).status_code for _ in range(2)] == [201, 201]
    assert seen == [body, body]


def test_each_try_counts_for_the_throttles_of_a_rest_framework_view() -> None:
    """O-23: each request passes the checks in front of the view's code once."""
    with _project(RestView.as_view()):
        for count in (1, 2, 3):
            _blocking()
            assert len(throttled) == count


def test_a_first_request_asks_nothing_twice() -> None:
    """O-23: only the view itself checks; the same holds where its permission refuses."""
    asked: list[bool] = []

    class Counted(BasePermission):
        def has_permission(self, request: Any, view: Any) -> bool:
            asked.append(True)
            return request.user.has_perm("shop.charge")

    class Charges(RestView):
        permission_classes = [Counted]

    with _project(Charges.as_view()) as backend:
        assert _blocking().status_code == 201
        permissions.clear()
        assert _blocking(key="another-key-of-hers").status_code == 403
        assert len(asked) == 2
        permissions.add("shop.charge")
        assert _blocking(key="another-key-of-hers").status_code == 201
    assert backend.verbs.count("complete") == 2


def test_a_permission_that_fails_lets_nobody_see_a_response() -> None:
    """O-23: an error stays an error, and no replay is sent."""
    failing: list[bool] = []

    class Failing(BasePermission):
        def has_permission(self, request: Any, view: Any) -> bool:
            if failing:
                raise RuntimeError("the permissions' server is away")
            return True

    class Charges(RestView):
        permission_classes = [Failing]

    with _project(Charges.as_view()):
        assert _blocking().status_code == 201
        failing.append(True)
        denied = post(Client(raise_request_exception=False))
    assert (denied.status_code, REPLAYED in denied) == (500, False)


def test_a_key_in_a_permission_without_authenticators_is_asked_for() -> None:
    """O-23: a view without authenticators may have permissions all the same."""

    class HasKey(BasePermission):
        def has_permission(self, request: Any, view: Any) -> bool:
            return "shop.charge" in permissions

    class Charges(KeyInPermission):
        permission_classes = [HasKey]

    with project(Charges.as_view()):
        first, again = _blocking(), _blocking()
        assert (first.status_code, again[REPLAYED]) == (201, "true")
        permissions.clear()
        assert _blocking().status_code == 403


def test_a_refusal_under_atomic_requests_leaves_a_transaction_around_it_alone() -> None:
    """O-23: the test cases of a project have one; REST framework rolls back the transaction that it takes for the
    view's.
    """
    with _project(RestView.as_view()), transaction.atomic():
        connection.settings_dict["ATOMIC_REQUESTS"] = True
        try:
            assert _blocking().status_code == 201
            permissions.clear()
            assert _blocking().status_code == 403
            with connection.cursor() as cursor:
                assert cursor.execute("SELECT 1").fetchone() == (1,)
        finally:
            connection.settings_dict["ATOMIC_REQUESTS"] = False


def test_a_class_that_does_its_work_in_dispatch_does_it_once() -> None:
    """O-02: without a mark on a method, ``dispatch`` is the view's own code, and is not called for a replay."""

    class Work(View):
        def dispatch(self, request: Any, *args: Any, **kwargs: Any) -> HttpResponse:
            return _charge()

    with _project(Work.as_view()):
        assert [_blocking().status_code, _blocking()[REPLAYED]] == [201, "true"]
    assert runs == ["ann"]


def test_a_decorator_below_the_mark_is_part_of_the_view() -> None:
    """O-02, O-23: only decorators above the mark run for each try."""
    passed: list[str] = []

    def noting(name: str) -> Callable[[Any], Any]:
        def decorate(view: Any) -> Any:
            @functools.wraps(view)
            def note(request: Any) -> Any:
                passed.append(name)
                return view(request)

            return note

        return decorate

    with _project(noting("above")(idempotent(noting("below")(lambda request: _charge())))):
        assert [_blocking().status_code, _blocking()[REPLAYED]] == [201, "true"]
    assert passed == ["above", "below", "above"]


def test_a_marked_view_keeps_its_name_and_kind() -> None:
    """O-23: the mark wraps the view, and is sync or async as the view is."""
    assert iscoroutinefunction(awaited)
    assert not iscoroutinefunction(by_permission)
    assert (by_permission.__name__, by_permission.__doc__) == (
        "by_permission",
        "A view with Django's ``permission_required``.",
    )


def in_own_thread(view: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that calls its view in a thread of its own, as decorators for time limits do."""

    @functools.wraps(view)
    def check(*args: Any, **kwargs: Any) -> Any:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(view, *args, **kwargs).result(20)

    return check


@in_own_thread
@idempotent
def threaded(request: HttpRequest) -> HttpResponse:
    """A function view in its own thread."""
    return _charge()


class ThreadedMethod(View):
    """A class-based view whose method runs in its own thread."""

    @method_decorator(in_own_thread)
    @idempotent
    def post(self, request: HttpRequest) -> HttpResponse:
        """Charge."""
        return _charge()


class ThreadedRestView(RestView):
    """A view of REST framework whose method runs in its own thread."""

    @in_own_thread
    @idempotent
    def post(self, request: Any) -> Response:
        """Charge."""
        return super().post(request)


@both_chains
@pytest.mark.parametrize(
    "view", [threaded, ThreadedMethod.as_view(), ThreadedRestView.as_view()], ids=["function", "method", "REST"]
)
def test_a_view_that_is_asked_in_another_thread_does_not_run(view: Any, send: Any) -> None:
    """O-23, O-02: the thread has none of the context variables that mark the call as a permission check."""
    with _project(view):
        first, again = send(data={"amount": 5}), send(data={"amount": 5})
        assert (first.status_code, again.status_code, again[REPLAYED]) == (201, 201, "true")
        assert send(data={"amount": 6}).status_code == 422
    assert runs == ["ann"]
