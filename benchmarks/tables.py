"""Plain tables for the terminal. Figures get as many digits as their spread justifies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, the first to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = (
        "  ".join(
            text.rjust(width) if i else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def figure(number: float) -> str:
    """A number with two or three significant digits."""
    if number >= 1_000:
        return f"{float(f'{number:.3g}'):,.0f}"
    return f"{number:.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def spread(one: dict[str, float] | None) -> str:
    """A median and its quartiles, from JSON."""
    return "" if one is None else f"{figure(one['median'])} ({figure(one['low'])} to {figure(one['high'])})"


def verdict(one: dict[str, Any]) -> str:
    """A target and whether it is met, from JSON."""
    sign = "≥" if one["at_least"] else "≤"
    met = "met" if one["met"] else "MISSED"
    return f"target {one['target']}: {one['what']} {one['value']:.2f} {sign} {one['limit']:g}, {met}"


def limit(one: Mapping[str, Any]) -> str:
    """The limit of a row's value, and whether it is met, from JSON; empty without a target."""
    most = one.get("target")
    return "" if most is None else f"≤ {most:g}, {'met' if one['value'] <= most else 'MISSED'}"


def indented(lines: Iterable[str]) -> str:
    """Lines under a heading."""
    return "\n".join(f"    {line}" for line in lines)
