"""``@idempotent`` for Flask's views: it sets the view's rule, and marks the view for decorators above it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, overload

from flask import has_request_context

from open_idempotency import rules
from open_idempotency._flask.contexts import current_request
from open_idempotency._routes.marks import mark_view

V = TypeVar("V", bound=Callable[..., Any])


@overload
def idempotent(view: V, /) -> V: ...


@overload
def idempotent(**fields: Any) -> Callable[[V], V]: ...


def idempotent(view: Any = None, /, **fields: Any) -> Any:
    """Give a view its own policy fields, such as ``@idempotent(required=True, ttl=3600)``.

    Put it below the decorators that refuse callers (``login_required``, ``roles_required``). Decorators above it run
    for every try, also before a stored response is sent, and their refusal is sent instead. The fields of a class apply
    to all its methods; nothing counts as above the mark of a class. ``fields``: see
    ``open_idempotency.rules.idempotent``.

    Returns the view; a function is returned as a function that calls it. Raises ``ConfigurationError``. So does a
    request with a key, or that needs one, in an application without ``Idempotency``.
    """
    mark = rules.idempotent(**fields)

    def decorate(marked: Any) -> Any:
        return mark_view(mark(marked), _find_request)

    return decorate if view is None else decorate(view)


def _find_request() -> object:
    """The request of this context, which a decorator may have copied into a thread; None where there is none."""
    return current_request() if has_request_context() else None
