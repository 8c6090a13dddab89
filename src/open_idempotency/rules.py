"""What a view says about itself: ``@idempotent(...)`` and ``@exempt``, the same for every framework.

The decorators only mark the view, and return it unchanged; the framework's middleware or extension reads the mark
when it has found the view. They also mark classes (class-based views).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, overload

from open_idempotency.exceptions import ConfigurationError
from open_idempotency.policy import refuse_unknown

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from open_idempotency.policy_fields import PolicyFields

V = TypeVar("V", bound=Callable[..., Any])

_MARK = "_open_idempotency_rule"
_BEHIND_API_VIEW = ("rest_framework.decorators", "api_view.<locals>.decorator.<locals>.handler")

#: whether this process has made any rule; without one nobody needs to look which view a request will reach
in_use = False


class Rule:
    """A view's own policy fields, or that it is exempt. Compared by identity."""

    __slots__ = ("exempt", "fields")

    def __init__(self, fields: Mapping[str, Any], *, exempt: bool = False) -> None:
        self.fields = fields
        self.exempt = exempt


EXEMPT = Rule({}, exempt=True)


class IdempotencyRule:
    """A rule as a FastAPI dependency, for a route or all routes of a router: ``Depends(IdempotencyRule(ttl=60))``.

    ``fields``: policy fields. ``exempt``: the routes are not covered. It does nothing when it is called; the
    middleware finds it among the route's dependencies. Raises ``ConfigurationError`` for an unknown field, and for
    fields of an exempt route. Since 0.1.
    """

    __slots__ = ("rule",)

    def __init__(self, *, exempt: bool = False, **fields: Unpack[PolicyFields]) -> None:
        if exempt and fields:
            raise ConfigurationError(f"exempt: leaves no use for {', '.join(fields)}")
        self.rule = EXEMPT if exempt else _new_rule(fields)
        _note_use()

    async def __call__(self) -> None:
        """Nothing: all is done before dependencies run."""


@overload
def idempotent(view: V, /) -> V: ...


@overload
def idempotent(**fields: Any) -> Callable[[V], V]: ...


def idempotent(view: V | None = None, /, **fields: Any) -> V | Callable[[V], V]:
    """Give a view its own policy fields, such as ``@idempotent(required=True, ttl=3600)``.

    Returns the view itself. Raises ``ConfigurationError`` for an unknown field, at once; values are checked when the
    view is first asked for, together with the application's policy.
    """
    rule = _new_rule(fields)

    def mark(marked: V) -> V:
        return _mark(marked, rule)

    return mark if view is None else mark(view)


def exempt(view: V) -> V:
    """Take a view out: its requests are not covered, whatever they carry. Returns the view itself."""
    return _mark(view, EXEMPT)


def rule_of(view: object) -> Rule | None:
    """The rule on a view, or on what it stands for.

    That is the class behind it (``view_class`` in Django and Flask, ``cls`` in DRF), the function that a
    ``functools.partial`` calls, or the one below DRF's ``@api_view``.
    """
    for holder in (view, getattr(view, "view_class", None), getattr(view, "cls", None), getattr(view, "func", None)):
        rule: Rule | None = getattr(holder, _MARK, None)
        if rule is not None:
            return rule
    return _rule_below_api_view(view)


def combine(chain: Iterable[Rule]) -> Rule | None:
    """One rule out of those that apply to a route, the nearest last: it decides, and adds to the others' fields."""
    found = list(chain)
    if not found:
        return None
    if found[-1].exempt:
        return EXEMPT
    fields: dict[str, Any] = {}
    for rule in found:
        fields = {} if rule.exempt else {**fields, **rule.fields}
    return Rule(fields)


def _rule_below_api_view(view: Any) -> Rule | None:
    """DRF's decorators stand below ``@api_view``, so ours will too; it copies theirs by name, and drops ours."""
    if (getattr(view, "__module__", None), getattr(view, "__qualname__", None)) != _BEHIND_API_VIEW:
        return None
    for cell in view.__closure__ or ():
        rule: Rule | None = getattr(cell.cell_contents, _MARK, None)
        if rule is not None:
            return rule
    return None


def _new_rule(fields: Mapping[str, Any]) -> Rule:
    refuse_unknown(fields)
    return Rule(fields)


def _mark(view: V, rule: Rule) -> V:
    try:
        setattr(view, _MARK, rule)
    except AttributeError:
        raise ConfigurationError(
            f"{view!r} cannot carry a rule; put the decorator on the function or class that it is made of"
        ) from None
    _note_use()
    return view


def _note_use() -> None:
    global in_use
    in_use = True
