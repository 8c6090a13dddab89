"""Rules of views: ``@idempotent(...)`` and ``@exempt``, the same for every framework.

The decorators only mark the view, and return it unchanged. The framework's middleware or extension reads the mark when
it has found the view. Classes (class-based views) can be marked as well.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from importlib import import_module
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, overload
from weakref import WeakSet

from open_idempotency.exceptions import ConfigurationError
from open_idempotency.policy import OF_APPLICATIONS, refuse_unknown

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from open_idempotency._core.models import Ledger, Request, Response, Sealer
    from open_idempotency._core.problems import Problem
    from open_idempotency.events import Listener
    from open_idempotency.policy import IdempotencyPolicy

__all__ = ["IdempotencyRule", "PolicyFields", "RulesByPath", "exempt", "idempotent"]

V = TypeVar("V", bound=Callable[..., Any])

_MARK = "_open_idempotency_rule"
_CALL = "__call__"
#: frameworks whose applications refuse requests to marked, unprotected views, once their adapter is loaded
_FRAMEWORKS = ("flask", "starlette")
#: adapters that read the rules of views; those for plain ASGI and WSGI read none
_ADAPTERS = tuple(f"open_idempotency.{name}" for name in ("django", "flask", "starlette"))
_STANDS_FOR = ("func", "cls", "view_class")
_BEHIND_API_VIEW = ("rest_framework.decorators", "api_view.<locals>.decorator.<locals>.handler")


class PolicyFields(TypedDict, total=False):
    """The fields of ``IdempotencyPolicy`` as keyword arguments: any iterable, seconds or a timedelta.

    For type checkers, which check ``add_middleware(...)`` by name. ``IdempotencyPolicy`` documents each field.
    """

    enabled: bool
    cover: Literal["methods", "marked"]
    methods: Iterable[str]
    required: bool
    header: str
    aliases: Iterable[str]
    profile: Literal["lenient", "strict"]
    validate: Callable[[str], object] | None
    key: Callable[[Request], str | None] | None
    echo_key: bool
    scope: Callable[[Request], str] | Literal["anonymous"] | None
    session_identity: str | Sequence[str]
    credential_headers: Iterable[str]
    scope_by_host: bool
    scope_by_route: bool
    application: str
    fingerprint: Literal["auto", "json", "jcs", "none"] | Callable[[Request], bytes]
    fingerprint_parts: Iterable[str]
    fingerprint_headers: Iterable[str]
    fingerprint_ignore: Iterable[str]
    secret: bytes | None
    max_live_keys: int | None
    lease: float | timedelta
    ttl: float | timedelta
    error_ttl: float | timedelta | None
    max_run: float | timedelta
    wait: float | timedelta
    max_wait: float | timedelta
    max_waiting: int | None
    respond_within: float | timedelta
    record_within: float | timedelta | None
    stream_grace: float | timedelta
    on_failed: Literal["resume", "replay", "reject"]
    on_abandoned: Literal["resume", "reject"]
    max_attempts: int | None
    ledger: Ledger | None
    fail_open: bool
    store: Callable[[Response], bool | None] | None
    drop_headers: Iterable[str]
    keep_headers: Iterable[str]
    redact: Callable[[Response], Response] | None
    on_replay: Callable[[Response, Request], Response] | None
    encryption: Sealer | None
    plain_records: Literal["refuse", "accept", "write"]
    max_request_bytes: int
    max_response_bytes: int
    max_stage_bytes: int
    spool_bytes: int
    strict_stages: bool
    docs_url: str | None
    problem_headers: Mapping[str, str] | Iterable[tuple[str, str]]
    compat: Literal["stripe"] | None
    render_problem: Callable[[Problem], Response] | None
    on_event: Listener | None


class RuleRegistry:
    """Facts about all rules of a process, which engines read for each request.

    ``in_use``: whether there is any rule; without one the view of a request need not be looked up. ``headers``: the
    headers that rules name for their keys, known before their views are reached. ``makes_keys``: whether a rule has
    ``key=``, so that a request without such a header may have a key. ``find_unread``: returns what is wrong with the
    rules of an application whose middleware reads none; None until an adapter of its framework is loaded.
    """

    __slots__ = ("find_unread", "headers", "in_use", "makes_keys")

    def __init__(self) -> None:
        self.in_use = self.makes_keys = False
        self.headers: set[str] = set()
        self.find_unread: Callable[[Any, Any], str | None] | None = None

    def note_fields(self, fields: Mapping[str, Any]) -> None:
        """Note the headers that the fields of a rule name. Wrong ones are reported when the policy is made."""
        self.makes_keys = self.makes_keys or fields.get("key") is not None
        aliases = fields.get("aliases")
        named = [fields.get("header"), *(aliases if isinstance(aliases, list | tuple | set | frozenset) else ())]
        self.headers.update(name for name in named if isinstance(name, str) and name.isascii())


#: the registry of this process: views are marked before any engine exists, and each engine reads it
registry = RuleRegistry()
#: the live functions and classes that carry a mark; checks look for those that no route leads to
marked: WeakSet[Any] = WeakSet()


class Rule:
    """The policy fields of a view, or its exemption. Compared by identity."""

    __slots__ = ("exempt", "fields")

    def __init__(self, fields: Mapping[str, Any], *, exempt: bool = False) -> None:
        self.fields = fields
        self.exempt = exempt


EXEMPT = Rule({}, exempt=True)

#: what a middleware's ``rules=`` takes: paths, each with policy fields, an ``IdempotencyRule``, or ``exempt``
RulesByPath = Mapping[str, "Mapping[str, Any] | IdempotencyRule | Callable[..., Any]"]


class IdempotencyRule:
    """A rule as a FastAPI dependency, for a route or all routes of a router: ``Depends(IdempotencyRule(ttl=60))``.

    It may also be a value of a middleware's ``rules=``. ``fields``: policy fields. ``exempt``: the routes are not
    covered. FastAPI's middleware finds it among the route's dependencies; calling it does nothing. Raises
    ``ConfigurationError`` for an unknown field, and for fields of an exempt route. Since 0.1.
    """

    __slots__ = ("rule",)

    def __init__(self, *, exempt: bool = False, **fields: Unpack[PolicyFields]) -> None:
        if exempt and fields:
            raise ConfigurationError(f"exempt: an exempt route cannot have {', '.join(fields)}; leave one of them out")
        self.rule = EXEMPT if exempt else _new_rule(fields)
        registry.in_use = True

    async def __call__(self) -> None:
        """Do nothing: the middleware reads the rule from the list of dependencies.

        Raises ``ConfigurationError`` if the module of FastAPI's middleware is not loaded, so that nothing reads the
        rule.
        """
        if "open_idempotency.fastapi" not in sys.modules and "open_idempotency.starlette" not in sys.modules:
            raise ConfigurationError(
                "IdempotencyRule is a dependency here, and nothing reads it, so a retry runs again; import it and "
                "IdempotencyMiddleware from open_idempotency.fastapi, and add the middleware to the application"
            )


@overload
def idempotent(view: V, /) -> V: ...


@overload
def idempotent(**fields: Any) -> Callable[[V], V]: ...


def idempotent(view: V | None = None, /, **fields: Any) -> V | Callable[[V], V]:
    """Give a view its own policy fields, such as ``@idempotent(required=True, ttl=3600)``.

    The fields of a class apply to all its methods, and to its subclasses. If several rules apply, the rule nearest to
    the code decides, and adds to the others.

    Returns the view itself. Raises ``ConfigurationError`` for an unknown field, at once; values are checked together
    with the application's policy, when the application starts or at its first request.
    """
    rule = _new_rule(fields)

    def mark(below: V) -> V:
        return _mark(below, rule)

    return mark if view is None else mark(view)


def exempt(view: V) -> V:
    """Exempt a view: its requests are not covered, even with a key. Returns the view itself.

    In a middleware's ``rules=`` the function itself exempts the paths.
    """
    return _mark(view, EXEMPT)


def read_rule(said: object) -> Rule:
    """The rule for a path in a middleware's ``rules=``: policy fields, an ``IdempotencyRule``, or ``exempt``.

    Raises ``ConfigurationError`` for anything else, and for an unknown field.
    """
    if said is exempt:
        return EXEMPT
    if isinstance(said, IdempotencyRule):
        return said.rule
    if isinstance(said, Mapping):
        return _new_rule(said)
    raise ConfigurationError(f"expected a dictionary of policy fields, an IdempotencyRule or exempt, got {said!r}")


def rules_on(view: Any, method: str, actions: Mapping[str, str] | None = None) -> tuple[Rule, ...]:
    """All rules of a view for requests of this HTTP method, the nearest to its code last.

    A view may stand for a class (``view_class`` in Django and Flask, ``cls`` in DRF, the class of a bound method), for
    the function of a ``functools.partial``, for its ``__wrapped__``, for the function below DRF's ``@api_view``, or for
    the ``__call__`` of its class. So rules are read from that object, from the view itself, and from the class's method
    or action for this HTTP method, in this order. ``actions``: those of a viewset, if the view is only its class.
    """
    return tuple([rule for rule, _ in _marks_on(view, method, actions)])


def own_rules_on(view: Any, method: str) -> tuple[Rule, ...]:
    """The rules of ``rules_on`` without exemptions, and without those that a class inherits."""
    return tuple(
        rule
        for rule, holder in _marks_on(view, method, None)
        if not rule.exempt and not (isinstance(holder, type) and marks(holder) is None)
    )


def _marks_on(view: Any, method: str, actions: Mapping[str, str] | None) -> list[tuple[Rule, Any]]:
    """The rules of a view, each with what carries it."""
    held = [getattr(view, name, None) for name in _STANDS_FOR]
    holder: Any = next((each for each in (view, *held) if isinstance(each, type)), None)
    if type(view) is MethodType:
        held.append(type(view.__self__))
    held.append(getattr(type(view), _CALL, None))
    found = [(_rule_below_api_view(view), view), *[(_own_rule(each), each) for each in held], (_nearest(view), view)]
    if holder is not None:
        verb = method.lower()
        handler = getattr(holder, (actions or getattr(view, "actions", None) or {}).get(verb, verb), None)
        found += [(_rule_below_api_view(handler), handler), (_nearest(handler), handler)]
    return [(rule, each) for rule, each in found if rule is not None]


def deciding(rule: Rule) -> dict[str, Any]:
    """The fields of a rule that decide which requests it covers."""
    return {
        name: rule.fields[name] for name in ("methods", "required", "header", "aliases", "key") if name in rule.fields
    }


def exempts(chain: Iterable[Rule]) -> bool:
    """Whether the nearest of these rules is an exemption."""
    rule = combine(chain)
    return rule is not None and rule.exempt


def changes(rule: Rule, policy: IdempotencyPolicy) -> bool:
    """Whether a rule exempts, or has a field that differs from this policy."""
    return rule.exempt or any(getattr(policy, name) != value for name, value in rule.fields.items())


def _nearest(view: Any) -> Rule | None:
    """The rule of a view, or of the function that decorators around it keep as ``__wrapped__``."""
    while view is not None:
        rule = _own_rule(view)
        if rule is not None:
            return rule
        view = getattr(view, "__wrapped__", None)
    return None


def _own_rule(holder: object) -> Rule | None:
    rule: Rule | None = getattr(holder, _MARK, None)
    return rule


def marks(holder: object) -> Rule | None:
    """The rule that a function or a class carries itself, exemptions included; None without one."""
    rule: Rule | None = getattr(holder, "__dict__", {}).get(_MARK)
    return rule


def combine(chain: Iterable[Rule]) -> Rule | None:
    """One rule made of all that apply to a route, the nearest last. Its fields override those of the others."""
    found = list(chain)
    if len(found) < 2:
        return found[0] if found else None
    if found[-1].exempt:
        return EXEMPT
    fields: dict[str, Any] = {}
    for rule in found:
        fields = {} if rule.exempt else {**fields, **rule.fields}
    return Rule(fields)


def _rule_below_api_view(view: Any) -> Rule | None:
    """The rule of a decorator below DRF's ``@api_view``, which copies only DRF's own attributes."""
    if (getattr(view, "__module__", None), getattr(view, "__qualname__", None)) != _BEHIND_API_VIEW:
        return None
    found = (_own_rule(cell.cell_contents) for cell in view.__closure__ or ())
    return next((rule for rule in found if rule is not None), None)


def _new_rule(fields: Mapping[str, Any]) -> Rule:
    refuse_unknown(fields)
    for name in OF_APPLICATIONS & fields.keys():
        raise ConfigurationError(
            f"{name}: belongs to the whole application, so a rule cannot set it; pass it to the middleware or the "
            "extension, and take single routes out with exempt"
        )
    registry.note_fields(fields)
    return Rule(fields)


def _have_it_checked() -> None:
    """Load the adapter of a loaded framework if no adapter is loaded, since only it reports unprotected views (O-25).

    An application that takes its decorators from this module may never load one.
    """
    if sys.modules.keys().isdisjoint(_ADAPTERS):
        for name in _FRAMEWORKS:
            if name in sys.modules:
                import_module(f"open_idempotency.{name}")


def refuse_unread(middleware: Any, scope: Any) -> None:
    """Raise ``ConfigurationError`` if endpoints inside a middleware for plain ASGI have rules: it reads none of them.

    ``scope``: that of the lifespan.
    """
    if not registry.in_use:
        return
    _have_it_checked()
    found = None if registry.find_unread is None else registry.find_unread(middleware, scope)
    if found is not None:
        raise ConfigurationError(found)


def _mark(view: V, rule: Rule) -> V:
    carrier: Any = view
    if isinstance(carrier, staticmethod | classmethod):  # reading the attribute of the class never returns this object
        _mark(carrier.__func__, rule)
        return view
    # An earlier mark is the rule of a base class, or of a decorator below: this rule adds to it.
    earlier = _own_rule(view)
    try:
        setattr(view, _MARK, rule if earlier is None else combine((earlier, rule)))
    except AttributeError:
        raise ConfigurationError(
            f"{view!r} cannot carry a rule; put the decorator on the function or class that it wraps"
        ) from None
    registry.in_use = True
    _have_it_checked()
    if isinstance(carrier, FunctionType | type):
        marked.add(carrier)
    return view
