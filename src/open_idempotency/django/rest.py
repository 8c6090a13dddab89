"""The only module that knows Django REST framework: the caller of its views, their refusals, and its responses.

REST framework authenticates inside the view, after the claim. So its authenticators are called before the claim, with a
copy of the request, and again by the view. REST framework is never imported here: a project without it has no such
views.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from importlib import import_module
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.core.exceptions import PermissionDenied
from django.db import connections, transaction
from django.http import Http404, HttpRequest

from open_idempotency.django import private

#: Lends the request's body: whatever is read from it, the view finds the body unread.
Lend = Callable[[], AbstractContextManager[Any]]


def find_view(request: HttpRequest) -> Any:
    """The REST framework view that is going to run; None for any other view."""
    framework = sys.modules.get("rest_framework.views")
    view: Any = getattr(request.resolver_match, "func", None)
    holder = getattr(view, "cls", None)
    return view if framework and isinstance(holder, type) and issubclass(holder, framework.APIView) else None


def find_authenticating_view(request: HttpRequest) -> Any:
    """The REST framework view that is going to run, if it has authenticators; else None."""
    view = find_view(request)
    if view is None:
        return None
    listed = view.initkwargs.get("authentication_classes", getattr(view.cls, "authentication_classes", ()))
    base: Any = sys.modules["rest_framework.views"].APIView
    return view if listed or getattr(view.cls, "get_authenticators", None) is not base.get_authenticators else None


def refusal(request: HttpRequest, view: Any) -> Any:
    """The response with which a view refuses a request before its handler; None if it would call the handler.

    The authenticators, permissions and throttles get the request itself, since the view does not run afterwards. Raises
    what the view would raise.
    """
    instance = _initialize(view, request)
    asked = instance.request
    instance.headers = instance.default_response_headers
    with ExitStack() as stack:
        for connection in connections.all():
            # The exception handler rolls back the view's transaction, which has not begun, so it gets one of its own.
            if connection.settings_dict["ATOMIC_REQUESTS"] and connection.in_atomic_block:
                stack.enter_context(transaction.atomic(connection.alias))
        try:
            instance.initial(asked, *instance.args, **instance.kwargs)
        except Exception as error:  # whatever the view's own handling makes of it
            response = instance.handle_exception(error)
            return instance.finalize_response(asked, response, *instance.args, **instance.kwargs)
    return None


def find_user(request: HttpRequest, view: Any, outer_user: Any, lend: Lend) -> Any:
    """The user whom the view's authenticators verify; None if they refuse or verify none, as the view will see again.

    ``outer_user``: Django's own user, whom the authenticators can see. Coroutine authenticators are not called. Raises
    an authenticator's error, unless it becomes a response below 500: an error may be gone when the view authenticates
    again, and the view would then run for an unknown caller.
    """
    with lend() as stream:
        twin = _copy(request, outer_user, stream)
        try:
            asked = _initialize(view, twin).request
            if any(iscoroutinefunction(one.authenticate) for one in asked.authenticators):
                return None
            return asked.user
        except (Http404, PermissionDenied):
            return None
        except sys.modules["rest_framework.exceptions"].APIException as error:
            if error.status_code >= 500:
                raise
            return None
        finally:
            if getattr(twin, "_files", None) is not getattr(request, "_files", None):
                twin.close()  # closes uploads that only the copy has parsed


def _copy(request: HttpRequest, user: Any, stream: Any) -> Any:
    """A copy of a request that takes what authentication sets: the user, CSRF attributes, parsed data."""
    twin: Any = object.__new__(type(request))
    vars(twin).update(vars(request), META=request.META.copy(), **{private.STREAM: stream})
    if user is not None:
        twin.user = user
    return twin


def _initialize(view: Any, request: Any) -> Any:
    """The view with its own request, made as ``APIView.dispatch`` and ``ViewSetMixin.as_view`` do."""
    instance = view.cls(**view.initkwargs)
    actions = getattr(view, "actions", None)
    if actions is not None:
        instance.action_map = actions
        for method, action in actions.items():
            setattr(instance, method, getattr(instance, action))
    match = request.resolver_match
    instance.request, instance.args, instance.kwargs = request, match.args, match.kwargs
    instance.request = instance.initialize_request(request, *match.args, **match.kwargs)
    return instance


# REST framework's responses (O-29)


def response_class() -> type[Any] | None:
    """REST framework's class of responses; None if nothing has imported it."""
    found: type[Any] | None = getattr(sys.modules.get("rest_framework.response"), "Response", None)
    return found


def is_response(response: Any) -> bool:
    """Whether a response is one of REST framework's."""
    base = response_class()
    return base is not None and isinstance(response, base)


def is_read_back(response: Any) -> bool:
    """Whether the body, read as JSON, is the response's data: it was made by REST framework's own JSON renderer."""
    renderers = sys.modules.get("rest_framework.renderers")
    renderer = type(getattr(response, "accepted_renderer", None))
    return renderers is not None and getattr(renderer, "render", None) is renderers.JSONRenderer.render


def encoder() -> Any:
    """REST framework's JSON encoder, which knows dates, decimals and lazy text."""
    return import_module("rest_framework.utils.encoders").JSONEncoder


def renderer_for(request: HttpRequest, content_type: str) -> tuple[Any, str, dict[str, Any]]:
    """The renderer of a response with this Content-Type, its media type, and what the view hands to it."""
    wanted = content_type.partition(";")[0].strip().lower()
    view = find_view(request)
    if view is None:
        json = import_module("rest_framework.renderers").JSONRenderer
        return json(), json.media_type, {"view": None, "args": (), "kwargs": {}, "request": request}
    instance = _initialize(view, request)
    renderer, media_type = instance.perform_content_negotiation(instance.request, force=True)
    if wanted and renderer.media_type != wanted:
        fitting = (each for each in instance.get_renderers() if each.media_type == wanted)
        renderer = next(fitting, renderer)
        media_type = renderer.media_type
    return renderer, media_type, instance.get_renderer_context()
