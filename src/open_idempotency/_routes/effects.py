"""What rules have an effect: found once, when an application starts, from its routes.

A rule on a route none of whose methods is covered does nothing. Nor does the mark of a function that no route leads to.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from open_idempotency.policy import NEVER_COVERED
from open_idempotency.rules import Rule, marks

#: how many layers of functions are inspected for marks
_DEEPEST = 5
_NEVER = NEVER_COVERED | {"WEBSOCKET"}
_VERBS = ("get", "post", "put", "patch", "delete")
#: attributes in which layers keep the callable below
_KEPT = ("__wrapped__", "__func__", "func", "view_class", "cls", "__self__")


class Effects:
    """The rules of one application's routes."""

    def __init__(self) -> None:
        self._effective: set[Rule] = set()
        self._named: dict[Rule, list[str]] = {}
        self._methods: dict[Rule, set[str]] = {}
        self._reached: set[int] = set()
        self._endpoints: dict[int, tuple[str, Any]] = {}

    def note(
        self, method: str, path: str, endpoint: Any, rules: Iterable[Rule], own: Iterable[Rule], covered: bool
    ) -> None:
        """One method of one route. ``rules``: all that apply; ``own``: those that belong to this route alone.

        ``covered``: whether requests of this method are covered.
        """
        name = f"{method} {path}"
        rules = tuple(rules)
        self._reached.update(map(id, (*rules, *_layers(endpoint))))
        self._endpoints.setdefault(id(endpoint), (name, endpoint))
        if covered:
            self._effective.update(rules)
        for rule in own:
            self._named.setdefault(rule, []).append(name)
            self._methods.setdefault(rule, set()).add(method)

    def complaint(self) -> str | None:
        """What is wrong with rules on routes of which no method is covered; None if each rule has an effect."""
        found: list[str] = []
        for rule, routes in self._named.items():
            if rule not in self._effective:
                coverable = sorted(self._methods[rule] - _NEVER)
                cure = (
                    f"add methods={coverable!r} to the rule, or remove it"
                    if coverable
                    else "such requests never are, whatever methods= says, so remove it"
                )
                found.append(f"{', '.join(routes)}: the rule has no effect, as no method here is covered; {cure}")
        return "; ".join(found) or None

    def reaches(self, marked: Any) -> bool:
        """Whether a route leads to a marked function or class, itself or by its rule."""
        rule = marks(marked)
        if {id(marked), *map(id, _layers(marked))} & self._reached:
            return True
        return rule is not None and not rule.exempt and id(rule) in self._reached

    def lost(self) -> Iterator[str]:
        """Warnings of marked functions that an endpoint calls or wraps, and that no route leads to."""
        warned: set[int] = set()
        for name, endpoint in self._endpoints.values():
            for marked in _marked_below(endpoint, {id(endpoint)}, _DEEPEST):
                if id(marked) in warned or self.reaches(marked):
                    continue
                warned.add(id(marked))
                yield (
                    f"{marked.__module__}.{marked.__qualname__} is marked, and no route leads to the mark, so it has "
                    f"no effect: the endpoint of {name} calls or wraps it. Mark the function that is given to the "
                    "route, and use functools.wraps in a decorator between them"
                )


def _layers(view: Any) -> Iterator[Any]:
    """A view, and what its layers keep, methods of classes included."""
    waiting, known = [view], set[int]()
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in known or isinstance(each, ModuleType):
            continue
        known.add(id(each))
        yield each
        if isinstance(each, type):
            waiting += [getattr(each, verb, None) for verb in _VERBS]
        else:
            waiting += [getattr(each, name, None) for name in _KEPT]


def _marked_below(view: Any, known: set[int], depth: int) -> Iterator[Any]:
    """The marked functions and classes that a view refers to: in its closure, by its globals, in its attributes."""
    if not depth:
        return
    for each in _referred(view):
        if id(each) in known or not _may_be_marked(each, view):
            continue
        known.add(id(each))
        function = getattr(each, "__func__", each)
        if marks(function) is not None and hasattr(function, "__qualname__"):
            yield function
        elif not issubclass(type(each), type) and _package(each) == _package(view):
            yield from _marked_below(each, known, depth - 1)


def _may_be_marked(each: Any, view: Any) -> bool:
    """Whether something that a view refers to is a function, a class, or an object of the application that is called.

    Only its type is looked at: a proxy, such as the current user, would be resolved by a look at its attributes.
    """
    kind = type(each)
    if issubclass(kind, FunctionType | MethodType | functools.partial | type):
        return True
    return callable(each) and _package(kind) == _package(view)


def _referred(view: Any) -> Iterator[Any]:
    if isinstance(view, functools.partial):
        yield view.func
        return
    if isinstance(view, type):
        for verb in _VERBS:
            yield from _referred(getattr(view, verb, None))
        return
    function = getattr(view, "__func__", view)
    if not isinstance(function, FunctionType):
        # An object that is called, such as a decorator written as a class.
        yield from getattr(function, "__dict__", {}).values()
        return
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not yet filled
            continue
    names = set(_names_in(function.__code__))
    for name in names:
        found = function.__globals__.get(name)
        yield found
        if issubclass(type(found), ModuleType):
            yield from (vars(found).get(other) for other in names)


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def _package(holder: Any) -> str:
    while isinstance(holder, functools.partial):
        holder = holder.func
    return str(getattr(holder, "__module__", "")).partition(".")[0]
