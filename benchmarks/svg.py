"""Small plots as SVG text, without a library: curves on logarithmic axes, and bars. The callers know what they plot."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 720, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 210, 56, 50
_PALETTE = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b")
_FONT = 'font-family="sans-serif" font-size="12"'


class Point(NamedTuple):
    """A median and its quartiles, at ``x``."""

    x: float
    y: float
    low: float
    high: float


class Curve(NamedTuple):
    """``shade`` and ``dash`` are numbers: of a palette, and 0 for a whole line."""

    name: str
    points: Sequence[Point]
    shade: int
    dash: int = 0


def curves(title: str, x_label: str, y_label: str, drawn: Sequence[Curve]) -> str:
    """Both axes are logarithmic, but x is linear where it begins with 0."""
    xs = sorted({point.x for curve in drawn for point in curve.points})
    across = _linear if xs[0] == 0 else _logarithmic
    to_x = across(xs[0], xs[-1], _LEFT, WIDTH - _RIGHT)
    ys = _decades(min(p.low for c in drawn for p in c.points), max(p.high for c in drawn for p in c.points))
    to_y = _logarithmic(ys[0], ys[-1], HEIGHT - _BOTTOM, _TOP)
    parts = [_text(10, 22, title, size=15)]
    parts += [_text(WIDTH - _RIGHT, HEIGHT - 10, x_label, "end"), _text(_LEFT - 70, _TOP - 12, y_label)]
    for y in ys:
        parts += [
            _line(_LEFT, to_y(y), WIDTH - _RIGHT, to_y(y), "#ddd"),
            _text(_LEFT - 6, to_y(y) + 4, _short(y), "end"),
        ]
    for x in xs:
        parts += [_text(to_x(x), HEIGHT - _BOTTOM + 18, _short(x), "middle")]
    for number, curve in enumerate(drawn):
        placed = [(to_x(p.x), to_y(p.y), to_y(p.low), to_y(p.high)) for p in curve.points]
        parts += [_curve(curve, placed), *_legend(curve, 60 + 18 * number)]
    return _document(HEIGHT, parts)


def bars(title: str, unit: str, lengths: Sequence[tuple[str, Point, int]]) -> str:
    """A bar for each name, in one of the shades of the palette; quartiles as a line across its end."""
    left, row = 250, 22
    height = _TOP + row * len(lengths) + 20
    longest = max(point.high for _, point, _ in lengths)
    to_x = _linear(0, longest, left, WIDTH - 80)
    parts = [_text(10, 22, f"{title} ({unit})", size=15)]
    for number, (name, point, shade) in enumerate(lengths):
        y = _TOP + row * number
        end, fill = to_x(point.y), _PALETTE[shade % len(_PALETTE)]
        parts += [
            _text(left - 8, y + 13, name, "end"),
            f'<rect x="{left}" y="{y}" width="{end - left:.1f}" height="{row - 6}" fill="{fill}"/>',
            _line(to_x(point.low), y + 8, to_x(point.high), y + 8, "#000"),
            _text(to_x(point.high) + 6, y + 13, _short(point.y)),
        ]
    return _document(height, parts)


def _logarithmic(first: float, last: float, start: float, end: float) -> Callable[[float], float]:
    low, span = math.log(first), math.log(last / first) or 1.0
    return lambda value: start + (math.log(value) - low) / span * (end - start)


def _linear(first: float, last: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - first) / ((last - first) or 1.0) * (end - start)


def _decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten, around what is drawn."""
    marks = [step * 10.0**power for power in range(-3, 9) for step in (1, 2, 5)]
    first = max(number for number, mark in enumerate(marks) if mark <= low or number == 0)
    last = min(number for number, mark in enumerate(marks) if mark >= high or number == len(marks) - 1)
    return marks[first : last + 1]


def _short(number: float) -> str:
    """A number as a label of an axis."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{float(f'{number / size:.3g}'):g}{letter}"
    return f"{float(f'{number:.3g}'):g}"


def _curve(curve: Curve, placed: Sequence[tuple[float, float, float, float]]) -> str:
    shade = _PALETTE[curve.shade % len(_PALETTE)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in placed)
    spreads = "".join(_line(x, low, x, high, shade) for x, _, low, high in placed)
    return f'<polyline points="{line}" fill="none" stroke="{shade}" stroke-width="2"{_dashes(curve)}/>{spreads}'


def _legend(curve: Curve, y: float) -> list[str]:
    x = WIDTH - _RIGHT + 15
    return [
        _line(x, y, x + 28, y, _PALETTE[curve.shade % len(_PALETTE)], _dashes(curve)),
        _text(x + 34, y + 4, curve.name),
    ]


def _dashes(curve: Curve) -> str:
    return f' stroke-dasharray="{(0, 6, 2)[curve.dash]} 4"' if curve.dash else ""


def _line(x1: float, y1: float, x2: float, y2: float, shade: str, more: str = "") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{shade}" stroke-width="1.5"{more}/>'


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'


def _document(height: float, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    paper = '<rect width="100%" height="100%" fill="#fff"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {_FONT}>\n{paper}\n{body}\n</svg>\n'
