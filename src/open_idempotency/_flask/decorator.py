"""``@idempotent`` for Flask's views: it sets the view's rule, and marks the view for decorators above it.

A marked view that is called in an application without the extension refuses the requests that it should protect.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, overload

from flask import current_app, has_request_context
from flask.views import View

from open_idempotency import rules
from open_idempotency._core.keys import key_names
from open_idempotency._engine.engine import say_off
from open_idempotency._flask.extension import KEY, PREFIX, current_request
from open_idempotency._routes.marks import mark_view
from open_idempotency._wsgi.environ import MARK, environ_names
from open_idempotency.exceptions import ConfigurationError
from open_idempotency.policy import IdempotencyPolicy

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
        if isinstance(marked, type) and issubclass(marked, View):
            marked.decorators = [*marked.decorators, _guarded]
        return mark_view(mark(marked), _find_request)

    return decorate if view is None else decorate(view)


def _guarded(view: Callable[..., Any]) -> Callable[..., Any]:
    """The view function of a marked class."""

    @functools.wraps(view)
    def look_and_call(*args: Any, **kwargs: Any) -> Any:
        _find_request()
        return view(*args, **kwargs)

    return look_and_call


def _find_request() -> object:
    """The request of this context, which a decorator may have copied into a thread; None where there is none."""
    if not has_request_context():
        return None
    here = current_request()
    # A request that is protected, or covered and without a key, has the mark.
    if MARK not in here.environ and KEY not in current_app.extensions:
        _refuse_unprotected(here)
    return here


def _refuse_unprotected(here: Any) -> None:
    """Raise ``ConfigurationError`` for a request that the rules of its view cover, as no extension reads them."""
    view = current_app.view_functions.get(here.endpoint or "")
    rule = rules.combine(rules.rules_on(view, here.method))
    if rule is None or rule.exempt:
        return
    if current_app.config.get(f"{PREFIX}ENABLED") is False:
        say_off()
        return
    policy = IdempotencyPolicy(**rules.deciding(rule))
    keyed = any(name in here.environ for name, _ in environ_names(key_names(policy)))
    if here.method in policy.methods and (keyed or policy.required):
        raise ConfigurationError(
            f"{here.method} {here.url_rule}: the view is marked with @idempotent, and the application has no "
            'extension that reads it, so a retry runs again; add Idempotency(app, backend="...") from '
            "open_idempotency.flask, with enabled=False in tests that need no protection"
        )
