"""``@idempotent`` on a view of Flask's: its rule, and the place in the view up to which a retry is let through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, overload

from flask import has_request_context

from open_idempotency import rules
from open_idempotency._flask.extension import current_request
from open_idempotency._routes.marks import placed

V = TypeVar("V", bound=Callable[..., Any])


@overload
def idempotent(view: V, /) -> V: ...


@overload
def idempotent(**fields: Any) -> Callable[[V], V]: ...


def idempotent(view: Any = None, /, **fields: Any) -> Any:
    """Give a view its own policy fields, such as ``@idempotent(required=True, ttl=3600)``.

    Put it below the decorators that refuse callers (``login_required``, ``roles_required``): those above it run for
    every try, also for one that gets the stored response, and what they refuse is refused. On a class the fields are
    those of all its methods; there nothing counts as above it. ``fields``: see ``open_idempotency.rules.idempotent``.

    Returns the view; a function as a function that calls it. Raises ``ConfigurationError``.
    """
    mark = rules.idempotent(**fields)

    def decorate(marked: Any) -> Any:
        return placed(mark(marked), _find_request)

    return decorate if view is None else decorate(view)


def _find_request() -> object:
    """The request of this context, which a decorator may have copied into a thread; None where there is none."""
    return current_request() if has_request_context() else None
