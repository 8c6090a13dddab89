"""Permissions of a view before a replay, and responses that commit with the view's rows.

Before a stored response is sent again, the view's permissions are checked, since a caller may have lost one since the
first try (O-23). The view itself does not run for a retry. Only the checks in front of its code run: the decorators
above ``@idempotent``, the checks of a REST framework view before its handler (authentication, permissions, throttles),
those of an operation of ninja, and Django's own access mixins. Their refusal is sent, and is not stored.

With ``@idempotent(atomic=True)`` the response commits together with the view's own rows (S-06). The view runs in
``transaction.atomic``, and its response goes into the ledger before that commits. Either both are stored or neither. If
the view marks its transaction for rollback, the response is not stored. If the response is a 503 or another one that is
never stored, the rows are rolled back. Then a retry runs the view again.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar, overload

from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async
from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from open_idempotency import rules
from open_idempotency._core.models import Response as CoreResponse
from open_idempotency._engine.engine import running
from open_idempotency._routes import coverage
from open_idempotency._routes.coverage import mark_view
from open_idempotency._stages.blocks import AtomicBlock
from open_idempotency.django import layers, rest
from open_idempotency.django.messages import note_of, response_headers
from open_idempotency.exceptions import AlreadyCommitted, ConfigurationError, KeyReused
from open_idempotency.idem import idem

# Permissions before a replay (O-23)

Ask = Callable[[], Any]


def refusal(request: HttpRequest, view: Any) -> HttpResponseBase | None:
    """The response with which the view refuses this request, or None. Raises what the view raises."""
    call = _call(request, view)
    if call is not None and iscoroutinefunction(view):
        response: HttpResponseBase | None = async_to_sync(coverage.acall_to_mark)(request, call)
        return response
    ask = call or _question(request, view)
    return None if ask is None else coverage.call_to_mark(request, ask)


async def arefusal(request: HttpRequest, view: Any) -> HttpResponseBase | None:
    """``refusal``, awaited: sync views are called in Django's own thread."""
    call = _call(request, view)
    if call is not None and iscoroutinefunction(view):
        return await coverage.acall_to_mark(request, call)
    ask = call or _question(request, view)
    return None if ask is None else await sync_to_async(coverage.call_to_mark)(request, ask)


def _call(request: HttpRequest, view: Any) -> Ask | None:
    """A call of the view that stops at its mark; None without a mark, or without decorators above the mark."""
    if not coverage.has_decorators_above(view) and not coverage.is_marked(_handler(request, view)):
        return None
    match: Any = request.resolver_match
    return lambda: view(request, *match.args, **match.kwargs)


def _question(request: HttpRequest, view: Any) -> Ask | None:
    """A call of the checks in front of a class-based view or an operation of ninja; None if they are unknown."""
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
    """The method or action of a class-based view that will run, or ninja's function; None for any other view."""
    operation = layers.find_operation(view, str(request.method))
    if operation is not None:
        return operation.view_func
    holder = getattr(view, "cls", None) or getattr(view, "view_class", None)
    verb = str(request.method).lower()
    return getattr(holder, (getattr(view, "actions", None) or {}).get(verb, verb), None)


def _refusal_by_mixins(request: HttpRequest, view: Any, mixins: Any) -> HttpResponseBase | None:
    """The refusal of Django's access mixins. ``dispatch`` is not called, since a class may do its work in it."""
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


# Responses that commit with the rows of the view (S-06)

V = TypeVar("V", bound=Callable[..., Any])


@overload
def idempotent(view: V, /) -> V: ...


@overload
def idempotent(*, atomic: bool | str = False, **fields: Any) -> Callable[[V], V]: ...


def idempotent(view: Any = None, /, *, atomic: bool | str = False, **fields: Any) -> Any:
    """Give a view its own policy fields; with ``atomic`` its response commits together with its rows.

    ``atomic``: true for the default database, or an alias. The view runs in ``transaction.atomic`` of that database,
    with ATOMIC_REQUESTS on or off, and a retry gets its response even if the record was lost. If the response is not
    stored (5xx, 401, 429 ...), the view's rows are rolled back, since a retry runs again. Put it on functions (below
    ``@api_view``), on class-based views, on their methods, or on actions; ``async def`` is refused, as Django has no
    async transactions. The database needs the ledger's tables: ``manage.py migrate open_idempotency``. The database is
    also the policy's ``ledger``, so that a policy which refuses retries looks there first. Decorators above it run for
    every try, also before a stored response is sent, and their refusal is sent instead. ``fields``: policy fields, as
    ``open_idempotency.rules.idempotent`` takes them. Raises ``ConfigurationError``. Since 0.1.
    """
    name = DEFAULT_DB_ALIAS if atomic is True else atomic
    if name:
        fields.setdefault("ledger", name)
    mark = rules.idempotent(**fields)

    def decorate(marked: Any) -> Any:
        return mark_view(mark(_atomic(marked, name) if name else marked))

    return decorate if view is None else decorate(view)


def _atomic(view: Any, alias: str) -> Any:
    if iscoroutinefunction(view) or getattr(view, "view_is_async", False):
        raise ConfigurationError("atomic: Django has no async transactions; make the view an ordinary function")
    if isinstance(view, type):
        held: Any = view
        held.dispatch = _atomic(held.dispatch, alias)
        return held

    @functools.wraps(view)
    def in_transaction(*args: Any, **kwargs: Any) -> Any:
        if alias not in connections:
            raise ConfigurationError(f"atomic: DATABASES has no {alias!r}; it has {', '.join(connections)}")
        with transaction.atomic(alias):
            if running.get() is None:  # a method that is not covered
                return view(*args, **kwargs)
            return _run_in_block(lambda: view(*args, **kwargs), alias, args)

    return in_transaction


def _run_in_block(view: Callable[[], Any], alias: str, args: tuple[Any, ...]) -> Any:
    """Run the view and store its response in the ledger, unless the ledger has its response."""
    try:
        with AtomicBlock(alias, optional=True) as block:
            response = view()
            if getattr(response, "exception", False):
                # REST framework has turned the view's error into a response, and rolls back only under ATOMIC_REQUESTS.
                # So it is rolled back here, as if the error had passed through: there are no rows, and only the record
                # stores a 400.
                transaction.set_rollback(True, alias)
            elif transaction.get_rollback(alias):
                idem.discard()
            else:
                block.respond(_stored(_rendered(response, args)))
        if block.kept is False:  # a retry runs again, and would repeat the rows
            transaction.set_rollback(True, alias)
        return response
    except (AlreadyCommitted, KeyReused):
        transaction.set_rollback(True, alias)
        # Not re-raised: Django would log an error, and there is none. The middleware replaces this response.
        return HttpResponse(status=500)


def _stored(response: Any) -> Any:
    """The response as the ledger stores it. A stream is returned as it is; ``respond`` refuses it."""
    here = running.get()
    if here is None or not isinstance(response, HttpResponse):
        return response
    note = note_of(response, here[0].policy)
    return CoreResponse(response.status_code, response_headers(response), response.content, note=note)


def _rendered(response: Any, args: tuple[Any, ...]) -> Any:
    """The rendered response. Django and REST framework would render it only after the transaction."""
    if not getattr(response, "is_rendered", True):
        for argument in args:
            # A request of REST framework knows its view, which negotiates the form of the response.
            context = getattr(argument, "parser_context", None)
            if context and not hasattr(response, "accepted_renderer"):
                response = context["view"].finalize_response(argument, response)
        response.render()
    return response
