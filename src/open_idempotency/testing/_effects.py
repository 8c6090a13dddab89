"""The effects of a request, as the test counts them, and comparing those of two requests."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from decimal import Decimal
from typing import Any

from open_idempotency.testing._script import KitError

Effects = Any
_KINDS = (
    "a number, a list of rows, a set, or a dictionary of these; as effects= give a function that returns one, a list "
    "that the application appends to, or a unittest.mock.Mock that it calls"
)


def looked(effects: Effects) -> Any:
    """The present effects; an awaitable if the function is async."""
    calls = getattr(effects, "call_count", None)
    if isinstance(calls, int):  # a mock of unittest's, which is callable too
        return calls
    return effects() if callable(effects) else effects


def snapshot(value: Any) -> Any:
    """A copy that later changes do not affect. Raises ``KitError`` for a value that cannot be compared."""
    if inspect.isawaitable(value):
        if inspect.iscoroutine(value):
            value.close()
        raise KitError("effects=: the function is async; await aassert_idempotent(...) instead")
    if isinstance(value, bool) or value is None:
        raise KitError(f"effects=: {value!r} cannot distinguish one effect from two; return {_KINDS}")
    if isinstance(value, int | float | Decimal):
        return value
    if isinstance(value, Mapping):
        return {key: snapshot(each) if _counts(each) else repr(each) for key, each in value.items()}
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise KitError(f"effects=: {type(value).__name__} cannot be compared; return {_KINDS}")
    return Counter(_row(each) for each in value)


def _row(value: Any) -> str:
    """A row as text that is equal for equal rows. An object's default text contains its address."""
    kind: Any = type(value)
    if kind.__repr__ is not object.__repr__ or not hasattr(value, "__dict__"):
        return repr(value)
    shown = {name: each for name, each in sorted(vars(value).items()) if not name.startswith("_")}
    return f"{kind.__name__} {shown!r}"


def _counts(value: Any) -> bool:
    if isinstance(value, bool) or value is None or isinstance(value, str | bytes):
        return False
    return isinstance(value, int | float | Decimal | Mapping | list | tuple | Set)


def change(before: Any, after: Any) -> Any:
    """The change of the effects: a difference of numbers, or how many rows were added and removed."""
    if isinstance(before, Counter) and isinstance(after, Counter):
        came, went = sum((after - before).values()), sum((before - after).values())
        return Rows(came, went)
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        names = [*before, *(name for name in after if name not in before)]
        changes = {name: _change_of(name, before, after) for name in names}
        known = {name: changed for name, changed in changes.items() if name in before and name in after}
        new = sum(name not in before for name in after)
        gone = sum(name not in after for name in before)
        found = {name: changed for name, changed in known.items() if not is_nothing(changed)}
        return {**found, **({_NEW: new} if new else {}), **({_GONE: gone} if gone else {})}
    if isinstance(before, Counter | Mapping) or isinstance(after, Counter | Mapping):
        raise KitError("effects=: the function returned values of two kinds; return the same kind each time")
    return after - before


_NEW, _GONE = "new entries", "entries that are gone"


def _change_of(name: Any, before: Mapping[Any, Any], after: Mapping[Any, Any]) -> Any:
    if name not in before or name not in after:
        return 0
    old, new = before[name], after[name]
    if isinstance(old, str) or isinstance(new, str):  # a value that is compared as it is
        return 0 if old == new else 1
    return change(old, new)


class Rows(tuple[int, int]):
    """How many rows were added and how many removed; a changed row counts as both."""

    __slots__ = ()

    def __new__(cls, came: int, went: int) -> Rows:
        return super().__new__(cls, (came, went))

    def __repr__(self) -> str:
        came, went = self
        said = [f"{came} row{'s' * (came != 1)} added"] if came else []
        said += [f"{went} row{'s' * (went != 1)} removed"] if went else []
        return " and ".join(said) or "nothing"


def is_nothing(changed: Any) -> bool:
    """Whether nothing has changed."""
    return not any(changed) if isinstance(changed, Rows) else not changed


def is_within(changed: Any, whole: Any) -> bool:
    """Whether no more has changed than one whole request changes."""
    if isinstance(changed, Rows):
        return bool(changed[0] <= whole[0] and changed[1] <= whole[1])
    if isinstance(changed, Mapping):
        return all(name in whole and is_within(each, whole[name]) for name, each in changed.items())
    return bool(abs(changed) <= abs(whole))


def said(changed: Any) -> str:
    """A change in words."""
    if isinstance(changed, Mapping):
        return ", ".join(f"{name}: {said(each)}" for name, each in changed.items()) or "nothing"
    if isinstance(changed, Rows):
        return repr(changed)
    return "nothing" if not changed else f"{changed:+}"
