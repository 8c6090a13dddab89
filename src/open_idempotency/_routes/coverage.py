"""Which policy applies to a request, and which views are marked.

The rules of the request's route and the rules for its path apply. Adapters that see no routes take rules by path:
``rules={"/payments/*": {"required": True}}``.

``@idempotent`` leaves a mark in a view. A decorator above the mark (``permission_required``, ``roles_required``)
refuses callers that have lost a permission. So before a stored response is sent again, the view is called up to the
mark. The code below the mark does not run.
"""

from __future__ import annotations

import functools
import inspect
import logging
import threading
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from itertools import combinations_with_replacement
from types import FunctionType
from typing import Any, NamedTuple, TypeVar

from open_idempotency._core.keys import find_key, key_names
from open_idempotency._core.models import Headers, Response
from open_idempotency._core.stored_response import REPLAYED
from open_idempotency._engine.engine import Covered, Engine
from open_idempotency._routes import path_patterns
from open_idempotency._routes.path_patterns import Pattern, Table
from open_idempotency.exceptions import ConfigurationError
from open_idempotency.policy import NEVER_COVERED, IdempotencyPolicy
from open_idempotency.rules import EXEMPT, Rule, combine, read_rule

# Marks of views

T = TypeVar("T")

_MARK = "_open_idempotency_mark"
_STOPS = "_open_idempotency_stops"
_REVEALING = (409, 422)
_logger = logging.getLogger("open_idempotency")
_stopping: ContextVar[bool] = ContextVar("open_idempotency_stopping", default=False)


class Reached(BaseException):
    """A view that was called up to its mark has let the request through. No application ever sees it.

    It is not an ``Exception``, so that the error handling of a framework or a view does not catch it.
    """


def mark_view(view: Any, find_request: Callable[[], object] | None = None) -> Any:
    """The view with a mark, at which ``call_to_mark`` stops. Classes and callable objects are returned as they are.

    ``find_request``: returns the current request, if that is neither the view's first argument nor a method's second.
    """
    if not inspect.isfunction(view) or hasattr(view, _MARK) or inspect.isasyncgenfunction(view):
        return view  # an async generator has no call that could raise
    wrapper = (_awaited if inspect.iscoroutinefunction(view) else _plain)(view, find_request)
    setattr(wrapper, _MARK, wrapper)
    return wrapper


def _stops(args: tuple[Any, ...], find_request: Callable[[], object] | None) -> bool:
    """Whether this call ends at the mark, also in a thread whose context a decorator has not copied."""
    if _stopping.get():
        return True
    requests = args[:2] if find_request is None else (find_request(),)
    return any(getattr(each, _STOPS, False) is True for each in requests)


def _plain(view: Callable[..., T], find_request: Callable[[], object] | None) -> Callable[..., T]:
    stops, reached = _stops, Reached

    def stop_here(*args: Any, **kwargs: Any) -> T:
        if stops(args, find_request):
            raise reached
        return view(*args, **kwargs)

    marked: Callable[..., T] = _like(view, stop_here)
    return marked


def _awaited(
    view: Callable[..., Awaitable[T]], find_request: Callable[[], object] | None
) -> Callable[..., Awaitable[T]]:
    stops, reached = _stops, Reached

    async def stop_here(*args: Any, **kwargs: Any) -> T:
        if stops(args, find_request):
            raise reached
        return await view(*args, **kwargs)

    marked: Callable[..., Awaitable[T]] = _like(view, stop_here)
    return marked


def _like(view: Callable[..., Any], wrapper: Any) -> Any:
    """The wrapper with the view's globals, since frameworks resolve annotations in the globals of a function.

    So the wrapper's own code must use no globals.
    """
    scope: dict[str, Any] = getattr(inspect.unwrap(view), "__globals__", wrapper.__globals__)
    made = FunctionType(wrapper.__code__, scope, wrapper.__name__, None, wrapper.__closure__)
    return functools.wraps(view)(made)


def has_decorators_above(view: Any) -> bool:
    """Whether a view is marked and wrapped in a decorator that copies attributes, as ``functools.wraps`` does."""
    return getattr(view, _MARK, view) is not view


def is_marked(view: Any) -> bool:
    """Whether a view, or a function that it wraps, is marked."""
    return hasattr(view, _MARK)


def reveals_a_record(response: Response) -> bool:
    """Whether one of the library's responses depends on an earlier request: a replay, 409 or 422."""
    return REPLAYED in response.headers or response.status in _REVEALING


@contextmanager
def _stopping_at_marks(request: object) -> Generator[None, None, None]:
    """Views that are called in this context, or with this request, stop at their mark and raise ``Reached``."""
    token = _stopping.set(True)
    setattr(request, _STOPS, True)
    try:
        yield
    finally:
        delattr(request, _STOPS)
        _stopping.reset(token)


def call_to_mark(request: object, view: Callable[[], T]) -> T | None:
    """The response of the code above a view's mark; None if it lets the request through. Raises its errors."""
    with _stopping_at_marks(request):
        try:
            return view()
        except Reached:
            return None


async def acall_to_mark(request: object, view: Callable[[], Awaitable[T]]) -> T | None:
    """``call_to_mark`` for coroutines."""
    with _stopping_at_marks(request):
        try:
            return await view()
        except Reached:
            return None


# Coverage, and rules by path

#: each header's name in a WSGI environ, with its lower-case name
EnvironNames = tuple[tuple[str, bytes], ...]
NOTHING_MARKED = (
    'cover: "marked" covers nothing here, as this adapter reads no decorators and was given no rules by path; pass '
    "rules=, or leave cover= out"
)


def environ_names(names: Iterable[bytes]) -> EnvironNames:
    """The names of headers in an environ; ``names`` are lower-case."""
    return tuple(("HTTP_" + name.decode("ascii").upper().replace("-", "_"), name) for name in sorted(names))


# Headers that clients send by mistake instead of Idempotency-Key, in lower case.
_SPELLINGS = frozenset(
    {b"idempotency-key", b"x-idempotency-key", b"idempotency_key", b"x_idempotency_key", b"idempotencykey"}
)


class Spelling:
    """The warning about a key in a header of another name, once in each process (O-36)."""

    __slots__ = ("reported",)

    def __init__(self) -> None:
        self.reported = False

    def warn(self, name: str, policy: IdempotencyPolicy) -> None:
        """Log that a header looks like a key and is not read. ``name``: the header, as it was sent or in an environ."""
        if self.reported:
            return
        self.reported = True
        _logger.warning(
            "a request without %s has the header %s, which is not read, so a retry runs again: let the client send "
            "%s, or name the header by aliases= or header=. This is logged once in each process",
            policy.header,
            name.removeprefix("HTTP_").replace("_", "-").title() if name.isupper() else name,
            policy.header,
        )


#: what this process has reported
spelling = Spelling()


class Route(NamedTuple):
    """How requests are covered: the policy, and the lower-case names of the headers that carry keys under it.

    ``environ_names``: the same headers, as WSGI and Django name them. ``spellings``, ``environ_spellings``: headers
    that are likely to carry a key but are not read. ``likely``: ``names`` and ``spellings``, to look for both at once;
    empty with ``key=``, which finds the key elsewhere. ``always``: whether requests without such a header are admitted
    too, since a key is required or ``key=`` may find one.
    """

    policy: IdempotencyPolicy
    names: frozenset[bytes]
    environ_names: EnvironNames
    spellings: frozenset[bytes]
    environ_spellings: tuple[str, ...]
    likely: frozenset[bytes]
    always: bool

    @classmethod
    def of(cls, policy: IdempotencyPolicy) -> Route:
        """The route with this policy."""
        names = key_names(policy)
        if policy.key is not None:
            return cls(policy, names, (), frozenset(), (), frozenset(), True)
        read = environ_names(names)
        known = {name for name, _ in read}
        unread = dict.fromkeys(name for name, _ in environ_names(_SPELLINGS) if name not in known)
        return cls(policy, names, read, _SPELLINGS - names, tuple(unread), _SPELLINGS | names, policy.required)


def key_among(likely: Headers, route: Route) -> list[tuple[bytes, bytes]]:
    """The headers that carry a key, among those that are likely to. Logs a warning if there are only others.

    If a key is required, nothing is logged: the client is refused, and the refusal names the header.
    """
    found = find_key(likely, route.names)
    if likely and not found and not route.policy.required:
        spelling.warn(likely[0][0].decode("ascii"), route.policy)
    return found


class Coverages:
    """The routes of one engine, each created once."""

    __slots__ = ("_adding", "_engine", "_known", "default", "environ_keys", "largest_request", "marked_only")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._adding = threading.Lock()
        self._known: dict[tuple[Rule, ...], Route | None] = {}
        #: where no rule applies
        self.default = Route.of(engine.policy)
        self.marked_only = engine.policy.cover == "marked"
        #: the largest ``max_request_bytes`` of these routes
        self.largest_request = engine.policy.max_request_bytes
        #: the names in an environ that may carry a key, under these routes and the headers that were added
        self.environ_keys = frozenset(name for name, _ in self.default.environ_names)

    def by(self, rules: tuple[Rule, ...]) -> Route | None:
        """The route under these rules, the nearest last; None if it is not covered.

        Not covered are an exempt route, and a route without rules if only marked routes are covered.

        Raises ``ConfigurationError`` for rules that contradict the policy.
        """
        if not rules:
            return None if self.marked_only else self.default
        if rules not in self._known:
            policy = self._engine.policy_for(combine(rules))
            route = self._known[rules] = None if policy is None else Route.of(policy)
            if route is not None:
                self.largest_request = max(self.largest_request, route.policy.max_request_bytes)
                self._add(route.environ_names)
        return self._known[rules]

    def add_headers(self, names: Iterable[str]) -> None:
        """Add headers of rules whose views no request has reached yet."""
        self._add(environ_names(name.lower().encode("ascii") for name in names))

    def _add(self, names: EnvironNames) -> None:
        with self._adding:  # two threads at once would lose the names of one
            self.environ_keys |= {name for name, _ in names}


# Most covered requests go to few paths. Long paths are not worth the memory.
_REMEMBERED, _LONGEST_REMEMBERED = 1024, 256
_PERCENT = ord("%")

# Stands for a parameter when rules are tried; no path contains it.
_SOMETHING = "\0"


class PathTable:
    """The rules of a middleware as they were given. Raises ``ConfigurationError`` that names the rule."""

    def __init__(self, said: Mapping[str, Any]) -> None:
        if not isinstance(said, Mapping):
            raise ConfigurationError(f"rules: expected a dictionary of paths, got {said!r}")
        self.read = {text: _read(text, value) for text, value in said.items()}
        self.table = Table(_distinct(self.read))

    def find(self, method: str, path: str) -> tuple[Rule, ...]:
        """The rules for a path as written in an application, the nearest last."""
        return self.table.find(method, path_patterns.as_it_stands(path))


class PathRules:
    """The rules of one middleware, for lookups by request. ``methods``: the methods that are covered on some path.

    Raises ``ConfigurationError`` that names the rule.
    """

    def __init__(self, said: Mapping[str, Any], coverages: Coverages) -> None:
        self._coverages = coverages
        given = PathTable(said)
        #: each rule by its text, with its pattern
        self.read = read = given.read
        self._table = given.table
        self._folded = Table((pattern.folded(), rule) for pattern, rule in read.values())
        self._may_fit = path_patterns.make_sieve(pattern for pattern, _ in read.values())
        self._check(read)
        unmarked = () if coverages.marked_only else coverages.default.policy.methods
        fields = [set(unmarked), *self._methods_said(read)]
        self.methods: frozenset[str] = frozenset().union(*fields)
        self._remembered = lru_cache(_REMEMBERED)(self._look_up)

    def find(self, method: str, path: str, raw: bytes | None = None, root: str = "") -> tuple[Rule, ...]:
        """The rules for a request, the nearest last. ``path``: decoded; ``raw``: as sent, if known."""
        if len(path) > _LONGEST_REMEMBERED or (raw is not None and _PERCENT in raw):
            return self._look_up(method, path, raw, root)
        return self._remembered(method, path, None, root)

    def _look_up(self, method: str, path: str, raw: bytes | None, root: str) -> tuple[Rule, ...]:
        if not root and not self._may_fit(path) and not path_patterns.is_odd(path, raw):
            return ()  # the fast way for nearly every request without a rule
        readings = [
            self._table.find(method, path_patterns.as_it_stands(path_patterns.below(path, root))),
            self._folded.find(method, path_patterns.tidied(path, root)),
        ]
        if raw is not None and b"%" in raw:
            readings.append(self._table.find(method, path_patterns.as_sent(raw, root)))
        # If several protect equally, the first counts: the path as it stands.
        return max(readings, key=lambda rules: _protection(self._coverages.by(rules), method))

    def _methods_said(self, read: Mapping[str, tuple[Pattern, Rule]]) -> Iterator[frozenset[str]]:
        for one, other in combinations_with_replacement(read.values(), 2):
            coverage = self._together(one[0], other[0])
            if coverage is not None:
                yield coverage.policy.methods

    def _check(self, read: Mapping[str, tuple[Pattern, Rule]]) -> None:
        """Try each rule with each rule that may apply together with it: two fields contradict, so two rules suffice."""
        for one, other in combinations_with_replacement(read, 2):
            try:
                coverage = self._together(read[one][0], read[other][0])
            except ConfigurationError as error:
                also = "" if one == other else f" with rules[{other!r}]"
                raise ConfigurationError(f"rules[{one!r}]{also}: {error}") from None
            if one == other:
                _check_method(one, read[one], coverage)

    def _together(self, one: Pattern, other: Pattern) -> Route | None:
        pattern = path_patterns.meet(one, other)
        if pattern is None:
            return None
        segments = [each or _SOMETHING for each in (*pattern.segments, *([None] * pattern.open))]
        return self._coverages.by(self._table.find(pattern.method or "", segments))


class CoveredPaths:
    """The paths that an adapter without routes covers. The base class for adapters with routes."""

    def __init__(self, coverages: Coverages, paths: PathRules | None) -> None:
        self._coverages = coverages
        self._paths = paths

    def every(self) -> Iterator[Covered]:
        """See ``Covering``. The default, and each rule by path."""
        if not self._coverages.marked_only:
            yield from _each_method("", self._coverages.default)
        for text, (_, rule) in {} if self._paths is None else self._paths.read.items():
            yield from _each_method(text, self._coverages.by((rule,)))

    def at(self, method: str, path: str) -> IdempotencyPolicy | None:
        """See ``Covering``."""
        rules = () if self._paths is None else self._paths.find(method, path)
        return self.policy_of(method, rules)

    def policy_of(self, method: str, rules: tuple[Rule, ...]) -> IdempotencyPolicy | None:
        """The policy under these rules; None if the method is not covered."""
        route = self._coverages.by(rules)
        return route.policy if route is not None and method in route.policy.methods else None

    def by_path(self, method: str, path: str) -> tuple[Rule, ...]:
        """The rules for a path, or for a route's template."""
        return () if self._paths is None else self._paths.find(method, path)


def _each_method(text: str, route: Route | None) -> Iterator[Covered]:
    if route is not None:
        for method in sorted(route.policy.methods):
            yield Covered(method, text, route.policy)


def _read(text: object, said: object) -> tuple[Pattern, Rule]:
    if not isinstance(text, str):
        raise ConfigurationError(f"rules[{text!r}]: expected a path such as '/payments/*'")
    try:
        return path_patterns.parse(text), read_rule(said)
    except (ValueError, ConfigurationError) as error:
        raise ConfigurationError(f"rules[{text!r}]: {error}") from None


def _distinct(read: Mapping[str, tuple[Pattern, Rule]]) -> Iterator[tuple[Pattern, Rule]]:
    """Refuse two patterns that some application could not distinguish."""
    known: dict[Pattern, str] = {}
    for text, (pattern, rule) in read.items():
        earlier = known.setdefault(pattern.folded(), text)
        if earlier != text:
            raise ConfigurationError(f"rules[{text!r}]: fits the same paths as rules[{earlier!r}]")
        yield pattern, rule


def _check_method(text: str, read: tuple[Pattern, Rule], coverage: Route | None) -> None:
    """Refuse a rule for a method that is not covered, since it would have no effect."""
    method, rule = read[0].method, read[1]
    if method in NEVER_COVERED:
        raise ConfigurationError(f"rules[{text!r}]: {method} can never be covered")
    if method is not None and rule is not EXEMPT and coverage is not None and method not in coverage.policy.methods:
        raise ConfigurationError(f"rules[{text!r}]: {method} is not covered; add methods=[{method!r}] to it")


def _protection(coverage: Route | None, method: str) -> int:
    """Required before optional, optional before not at all."""
    if coverage is None or method not in coverage.policy.methods:
        return 0
    return 2 if coverage.policy.required else 1
