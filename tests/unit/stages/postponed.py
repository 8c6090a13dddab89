"""Declared types whose annotations are text, as ``from __future__ import annotations`` makes them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Line:
    """One line of an order."""

    sku: str
    count: int = 1


@dataclass
class Order:
    """An order that nests lists, dicts, tuples and optionals."""

    id: str
    lines: list[Line]
    first: Line | None
    by_sku: dict[str, Line]
    pair: tuple[Line, int]


def make_line() -> Line:
    """A function with a postponed return annotation."""
    return Line("a", 2)


async def make_order() -> Order | None:
    """A coroutine function with a postponed return annotation."""
    return None


ORDER = Order("o-1", [Line("a"), Line("b", 2)], Line("a"), {"b": Line("b", 2)}, (Line("c"), 3))
