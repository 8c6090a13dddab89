"""What a view says about itself: ``@idempotent(...)`` and ``@exempt``, the same for every framework.

The decorators only mark the view, and return it unchanged; the framework's middleware or extension reads the mark
when it has found the view. They also mark classes (class-based views).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, overload

from open_idempotency.policy import refuse_unknown

V = TypeVar("V", bound=Callable[..., Any])

_MARK = "_open_idempotency_rule"


class Rule:
    """A view's own policy fields, or that it is exempt. Compared by identity."""

    __slots__ = ("exempt", "fields")

    def __init__(self, fields: Mapping[str, Any], *, exempt: bool = False) -> None:
        self.fields = fields
        self.exempt = exempt


EXEMPT = Rule({}, exempt=True)


@overload
def idempotent(view: V, /) -> V: ...


@overload
def idempotent(**fields: Any) -> Callable[[V], V]: ...


def idempotent(view: V | None = None, /, **fields: Any) -> V | Callable[[V], V]:
    """Give a view its own policy fields, such as ``@idempotent(required=True, ttl=3600)``.

    Returns the view itself. Raises ``ConfigurationError`` for an unknown field, at once; values are checked when the
    view is first asked for, together with the application's policy.
    """
    refuse_unknown(fields)
    rule = Rule(fields)

    def mark(marked: V) -> V:
        setattr(marked, _MARK, rule)
        return marked

    return mark if view is None else mark(view)


def exempt(view: V) -> V:
    """Take a view out: its requests are not covered, whatever they carry. Returns the view itself."""
    setattr(view, _MARK, EXEMPT)
    return view


def rule_of(view: object) -> Rule | None:
    """The rule on a view, or on the class behind it (``view_class`` in Django and Flask, ``cls`` in DRF)."""
    for holder in (view, getattr(view, "view_class", None), getattr(view, "cls", None)):
        rule: Rule | None = getattr(holder, _MARK, None)
        if rule is not None:
            return rule
    return None
