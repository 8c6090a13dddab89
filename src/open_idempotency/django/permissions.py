"""Whether a view still lets a request through, checked before a stored response is sent again (O-23).

A caller may have lost a permission since the first try. The view itself does not run for a retry, so only the checks in
front of its code run: the decorators above ``@idempotent``, the checks of a REST framework view before its handler
(authentication, permissions, throttles), those of an operation of ninja's, and Django's own access mixins. Their
refusal is sent, and is not stored.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from open_idempotency._routes import marks
from open_idempotency.django import layers, rest

Ask = Callable[[], Any]


def refusal(request: HttpRequest, view: Any) -> HttpResponseBase | None:
    """The response by which the view refuses this request; None if it lets it through. Raises what the view raises."""
    call = _call(request, view)
    if call is not None and iscoroutinefunction(view):
        response: HttpResponseBase | None = async_to_sync(marks.acall_to_mark)(request, call)
        return response
    ask = call or _question(request, view)
    return None if ask is None else marks.call_to_mark(request, ask)


async def arefusal(request: HttpRequest, view: Any) -> HttpResponseBase | None:
    """``refusal``, awaited: sync views are called in Django's own thread."""
    call = _call(request, view)
    if call is not None and iscoroutinefunction(view):
        return await marks.acall_to_mark(request, call)
    ask = call or _question(request, view)
    return None if ask is None else await sync_to_async(marks.call_to_mark)(request, ask)


def _call(request: HttpRequest, view: Any) -> Ask | None:
    """A call of the view as far as its mark; None without a mark, or without decorators above it."""
    if not marks.has_decorators_above(view) and not marks.is_marked(_handler(request, view)):
        return None
    match: Any = request.resolver_match
    return lambda: view(request, *match.args, **match.kwargs)


def _question(request: HttpRequest, view: Any) -> Ask | None:
    """A call of the checks in front of the code of a class-based view, or of ninja's; None if they are unknown."""
    operation = layers.find_operation(view, str(request.method))
    if operation is not None:
        return lambda: layers.refusal(request, operation)
    rest_view = rest.find_view(request)
    if rest_view is not None:
        return lambda: rest.refusal(request, rest_view)
    mixins: Any = sys.modules.get("django.contrib.auth.mixins")
    holder = getattr(view, "view_class", None)
    if mixins is None or not isinstance(holder, type) or not issubclass(holder, mixins.AccessMixin):
        return None
    return lambda: _refusal_by_mixins(request, view, mixins)


def _handler(request: HttpRequest, view: Any) -> Any:
    """The method or action of a class-based view that is going to run, or ninja's function; None for another one."""
    operation = layers.find_operation(view, str(request.method))
    if operation is not None:
        return operation.view_func
    holder = getattr(view, "cls", None) or getattr(view, "view_class", None)
    verb = str(request.method).lower()
    return getattr(holder, (getattr(view, "actions", None) or {}).get(verb, verb), None)


def _refusal_by_mixins(request: HttpRequest, view: Any, mixins: Any) -> HttpResponseBase | None:
    """The checks of Django's mixins, without ``dispatch``: a class may do its work in there."""
    match: Any = request.resolver_match
    instance = view.view_class(**view.view_initkwargs)
    instance.setup(request, *match.args, **match.kwargs)
    user: Any = getattr(request, "user", None)
    passes = (
        (not isinstance(instance, mixins.LoginRequiredMixin) or user.is_authenticated)
        and (not isinstance(instance, mixins.PermissionRequiredMixin) or instance.has_permission())
        and (not isinstance(instance, mixins.UserPassesTestMixin) or instance.get_test_func()())
    )
    refused: HttpResponseBase | None = None if passes else instance.handle_no_permission()
    return refused
