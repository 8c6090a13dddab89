"""A view whose response commits together with its own rows (S-06): ``@idempotent(atomic=True)``.

The view runs in ``transaction.atomic``, and its response goes into the ledger before that commits. Either both are
stored or neither. If the view marks its transaction for rollback, the response is not stored. If the response is a 503
or another one that is never stored, the rows are rolled back. Then a retry runs the view again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, overload

from asgiref.sync import iscoroutinefunction
from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.http import HttpResponse

from open_idempotency import rules
from open_idempotency._core.requests import Response as CoreResponse
from open_idempotency._engine.current import running
from open_idempotency._routes.marks import mark_view
from open_idempotency._stages.atomic import AtomicBlock
from open_idempotency.django.messages import stored_headers
from open_idempotency.exceptions import AlreadyCommitted, ConfigurationError, KeyReused
from open_idempotency.idem import idem

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
    awaited transactions. The database needs the ledger's tables: ``manage.py migrate open_idempotency``. The database
    is also the policy's ``ledger``, so that a policy which refuses retries looks there first. Decorators above it run
    for every try, also before a stored response is sent, and their refusal is sent instead. ``fields``: see
    ``open_idempotency.rules.idempotent``. Raises ``ConfigurationError``. Since 0.1.
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
        raise ConfigurationError("atomic: Django has no awaited transactions; make the view an ordinary function")
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
                # REST framework has made a response of the view's error, and rolls back under ATOMIC_REQUESTS alone.
                # Rolled back here as if the error had passed through: no rows, and only the record stores a 400.
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
    """The response as the ledger stores it; as it is, if it is no whole one, which ``respond`` refuses."""
    here = running.get()
    if here is None or not isinstance(response, HttpResponse):
        return response
    return CoreResponse(response.status_code, stored_headers(response, here[0].policy), response.content)


def _rendered(response: Any, args: tuple[Any, ...]) -> Any:
    """The response with its body, which Django and REST framework otherwise render after the transaction."""
    if not getattr(response, "is_rendered", True):
        for argument in args:
            # A request of REST framework knows its view, which negotiates the form of the response.
            context = getattr(argument, "parser_context", None)
            if context and not hasattr(response, "accepted_renderer"):
                response = context["view"].finalize_response(argument, response)
        response.render()
    return response
