"""Who is asking a Django REST framework view, by that view's own authenticators (SPEC section 5).

REST framework authenticates inside the view, after the claim. So its authenticators are asked before, with a copy of
the request, and once more by the view. REST framework is never imported here: where it was not, there is no such view.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest

#: Lends the request's body: whatever is read from it, the view finds it unread.
Lend = Callable[[], AbstractContextManager[Any]]


def find_view(request: HttpRequest) -> Any:
    """The REST framework view that is going to run; None for any other, and for one that authenticates nobody."""
    framework = sys.modules.get("rest_framework.views")
    view: Any = getattr(request.resolver_match, "func", None)
    holder = getattr(view, "cls", None)
    if framework is None or not isinstance(holder, type) or not issubclass(holder, framework.APIView):
        return None
    base: Any = framework.APIView
    listed = view.initkwargs.get("authentication_classes", getattr(holder, "authentication_classes", ()))
    return view if listed or getattr(holder, "get_authenticators", None) is not base.get_authenticators else None


def find_user(request: HttpRequest, view: Any, outer_user: Any, lend: Lend) -> Any:
    """The user whom the view's authenticators verify; None where they refuse or know nobody, as the view will say.

    ``outer_user`` is what they find as Django's own. Authenticators that are coroutines are not asked. Raises what an
    authenticator raises, unless it is an answer below 500: an error may be gone when the view asks again, which would
    then run for a caller that was not known.
    """
    with lend() as stream:
        twin = _copy(request, outer_user, stream)
        try:
            asked = _initialize(view, twin)
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
                twin.close()  # uploads that only the copy has parsed


def _copy(request: HttpRequest, user: Any, stream: Any) -> Any:
    """A request that takes all that authentication sets: the user, what CSRF protection notes, what a parser leaves."""
    twin: Any = object.__new__(type(request))
    vars(twin).update(vars(request), META=request.META.copy(), _stream=stream)
    if user is not None:
        twin.user = user
    return twin


def _initialize(view: Any, request: Any) -> Any:
    """The view's own request, made as ``APIView.dispatch`` and ``ViewSetMixin.as_view`` do."""
    instance = view.cls(**view.initkwargs)
    actions = getattr(view, "actions", None)
    if actions is not None:
        instance.action_map = actions
        for method, action in actions.items():
            setattr(instance, method, getattr(instance, action))
    match = request.resolver_match
    instance.request, instance.args, instance.kwargs = request, match.args, match.kwargs
    instance.request = instance.initialize_request(request, *match.args, **match.kwargs)
    return instance.request
