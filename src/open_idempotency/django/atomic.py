"""A view whose answer commits with its own rows (S-06): ``@idempotent(atomic=True)``.

The view runs in ``transaction.atomic``, and its answer goes into the ledger before that commits. Either both are kept
or neither: the answer of a view that Django is told to roll back is not, nor are the rows of one whose answer is a 503
or another that is never kept. Then a retry runs it again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, overload

from asgiref.sync import iscoroutinefunction
from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.http import HttpResponse

from open_idempotency import rules
from open_idempotency._engine.current import running
from open_idempotency._routes.marks import mark_view
from open_idempotency._stages.atomic import AtomicBlock
from open_idempotency.exceptions import AlreadyCommitted, ConfigurationError, KeyReused
from open_idempotency.idem import idem

V = TypeVar("V", bound=Callable[..., Any])


@overload
def idempotent(view: V, /) -> V: ...


@overload
def idempotent(*, atomic: bool | str = False, **fields: Any) -> Callable[[V], V]: ...


def idempotent(view: Any = None, /, *, atomic: bool | str = False, **fields: Any) -> Any:
    """Give a view its own policy fields, and with ``atomic`` let its answer commit together with its rows.

    ``atomic``: true for the default database, or an alias. The view runs in ``transaction.atomic`` of that database,
    with ATOMIC_REQUESTS on or off, and a retry gets its answer even where the record was lost. Where the answer is not
    one that is kept (5xx, 401, 429 ...), the view's rows are rolled back, since a retry runs again. Put it on functions
    (below ``@api_view``), on class-based views, on their methods, or on actions; ``async def`` is refused, as Django
    has no awaited transactions. The database needs the ledger's tables: ``manage.py migrate open_idempotency``. It is
    also the policy's ``ledger``, so that a policy which refuses retries looks there first.
    Decorators above it run for every try, also for one that gets the stored response: what they refuse, is refused.
    ``fields``: see ``open_idempotency.rules.idempotent``. Raises ``ConfigurationError``. Since 0.1.
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
            return _answered(lambda: view(*args, **kwargs), alias, args)

    return in_transaction


def _answered(view: Callable[[], Any], alias: str, args: tuple[Any, ...]) -> Any:
    """Run the view, unless the ledger has its answer, and hand its answer over."""
    try:
        with AtomicBlock(alias, optional=True) as block:
            response = view()
            if getattr(response, "exception", False):
                # REST framework answers in here what the view raised, and takes the rows back under ATOMIC_REQUESTS
                # alone. As where the exception passes through: there are no rows, and only the record keeps a 400.
                transaction.set_rollback(True, alias)
            elif transaction.get_rollback(alias):
                idem.discard()
            else:
                block.respond(_rendered(response, args))
        if block.kept is False:  # a retry runs again, and would do everything twice
            transaction.set_rollback(True, alias)
        return response
    except (AlreadyCommitted, KeyReused):
        transaction.set_rollback(True, alias)
        # Not raised on: Django would log an error, and there is none. The middleware sends what stands in for this.
        return HttpResponse(status=500)


def _rendered(response: Any, args: tuple[Any, ...]) -> Any:
    """The response with its body, which Django and REST framework otherwise make when the transaction is over."""
    if not getattr(response, "is_rendered", True):
        for argument in args:
            # A request of REST framework's knows its view, which knows how the client wants its answer.
            context = getattr(argument, "parser_context", None)
            if context and not hasattr(response, "accepted_renderer"):
                response = context["view"].finalize_response(argument, response)
        response.render()
    return response
