"""Functions behind a layer above Django: django-ninja's operations, one for each method of a path.

ninja is never imported here. A view of ninja stands for a ``PathView``, which no attribute names: in older releases the
view is a bound method of it, in newer ones a function whose closure holds it. If a later release keeps it elsewhere,
the rules of its functions are not found, and the check W007 names the functions. An operation authenticates in a
private method. If a release lacks that method, authentication runs only in the view.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from asgiref.sync import async_to_sync, iscoroutinefunction

from open_idempotency import rules
from open_idempotency.rules import Rule


def rules_on(view: Any, method: str) -> tuple[Rule, ...]:
    """All rules of a view for requests of this method, with those on functions behind a layer, the nearest last."""
    return tuple(rule for each in behind(view, method) for rule in rules.rules_on(each, method))


def own_rules_on(view: Any, method: str) -> tuple[Rule, ...]:
    """The rules of ``rules_on`` without exemptions, and without those that a class inherits."""
    return tuple(rule for each in behind(view, method) for rule in rules.own_rules_on(each, method))


def behind(view: Any, method: str) -> tuple[Any, ...]:
    """A view, and the callables of ninja's that it stands for with this method, the nearest to the code last."""
    operation = find_operation(view, method)
    return (view,) if operation is None else (view, operation.run, operation.view_func)


def find_operation(view: Any, method: str) -> Any:
    """The operation of django-ninja that a view calls for this method; None for any other view."""
    return next((each for each in operations(view) if method in each.methods), None)


def refusal(request: Any, operation: Any) -> Any:
    """The response with which an operation of ninja refuses a request before its function; None if it does not refuse.

    The authentication and the throttles of the operation are called as the operation calls them.
    """
    ask = getattr(operation, "_run_checks", None)
    if ask is None:
        return None
    return async_to_sync(ask)(request) if iscoroutinefunction(ask) else ask(request)


def operations(view: Any) -> list[Any]:
    """The operations of django-ninja that share the path of a view; none for any other view."""
    ninja: Any = sys.modules.get("ninja.operation")
    if ninja is None:
        return []
    for held in _held(view):
        # Not isinstance, which would load what is lazy.
        if issubclass(type(held), ninja.PathView):
            return list(held.operations)
    return []


def _held(view: Any) -> Iterator[Any]:
    """The object of a bound method and the values in its closure, then those of the view that it wraps."""
    seen: list[Any] = []
    while view is not None and view not in seen:
        seen.append(view)
        yield getattr(view, "__self__", None)
        for cell in getattr(view, "__closure__", None) or ():
            try:
                yield cell.cell_contents
            except ValueError:  # a name that has no value yet
                continue
        view = getattr(view, "__wrapped__", None)
