"""From an object of an application to its engine and to the policies of its routes, without a request.

An adapter's application has ``covering``, which lists the routes that it covers. No request looks at it: operators do,
to find the record of a key by the rules that a request would have met.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from open_idempotency._engine.engine import Engine
from open_idempotency.policy import IdempotencyPolicy

#: how many layers around an application are looked through
_DEEPEST = 100
# Where frameworks and layers keep what they wrap.
_WRAPPED = ("app", "wsgi_app", "application", "__wrapped__")
#: where an extension of Flask keeps its engine, and its ``Covering``
EXTENSION, COVERING = "open_idempotency", "open_idempotency.covering"


class Covered(NamedTuple):
    """One covered route: its method and its template ("" for all that have no rule of their own), and its policy."""

    method: str
    path: str
    policy: IdempotencyPolicy


class Covering(Protocol):
    """The routes that an adapter covers."""

    def every(self) -> Iterable[Covered]:
        """Every route that is covered; where routes are not known, what the policy and each rule by path cover."""
        ...

    def at(self, method: str, path: str) -> IdempotencyPolicy | None:
        """The policy of a request with this path; None where it is not covered, or no route leads there."""
        ...


class Protected(NamedTuple):
    """What protects an application: its engine, and the routes that are covered, where they are known."""

    engine: Engine
    covering: Covering | None


#: of adapters whose application is no layer around another one: what protects an object of theirs, or None
finders: list[Callable[[object], Protected | None]] = []


def protected_in(application: object) -> list[Protected]:
    """What protects an application, the outermost first; opens and calls nothing.

    An application whose layers are not built yet, such as Starlette's before its first request, has them built once
    more, for this look alone.
    """
    found: list[Protected] = []
    for each in _layers(application, set(), _DEEPEST):
        protected = _protected_by(each)
        if protected is not None and all(protected.engine is not known.engine for known in found):
            found.append(protected)
    return found


def _protected_by(layer: object) -> Protected | None:
    if isinstance(layer, Engine):
        return Protected(layer, None)
    extensions = getattr(layer, "extensions", None)
    held: dict[str, Any] = extensions if isinstance(extensions, dict) else {}
    for engine in (getattr(layer, "engine", None), getattr(layer, "_engine", None), held.get(EXTENSION)):
        if isinstance(engine, Engine):
            covering: Covering | None = getattr(layer, "covering", None) or held.get(COVERING)
            return Protected(engine, covering)
    return next((protected for find in finders if (protected := find(layer)) is not None), None)


def _layers(application: object, seen: set[int], depth: int) -> Iterator[object]:
    """An application, the layers around it from the outermost on, and the applications that its routes lead to."""
    layer: Any = application
    for _ in range(depth):
        # What a framework calls its application may be a method of it.
        layer = getattr(layer, "__self__", layer)
        if layer is None or id(layer) in seen:
            return
        seen.add(id(layer))
        yield layer
        build = getattr(layer, "build_middleware_stack", None)
        if callable(build):
            yield from _layers(getattr(layer, "middleware_stack", None) or build(), seen, depth - 1)
        routes = getattr(layer, "routes", None)
        for route in routes if isinstance(routes, list | tuple) else ():
            yield from _layers(getattr(route, "app", None), seen, depth - 1)
        layer = next((inner for name in _WRAPPED if (inner := getattr(layer, name, None)) is not None), None)
