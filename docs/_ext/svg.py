"""Drawing for the docs: plain SVG in the colours of the page, without scripts, fonts or network.

Inside a page (``pictures.py``) the colours are those of the theme, in light and dark. As a file of its own, where the
theme's variables do not exist, a drawing follows the colours of the system.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

#: the role of a colour: the theme's variable, then what stands in for it in light and in dark
_COLOURS = {
    "ink": ("--color-foreground-primary", "#1f2328", "#d8dee4"),
    "faint": ("--color-foreground-secondary", "#5c6570", "#9aa4af"),
    "ground": ("--color-background-primary", "#ffffff", "#131416"),
    "box": ("--color-background-secondary", "#f3f5f8", "#1d2024"),
    "good": ("--drawing-good", "#146c43", "#5fd39b"),
    "bad": ("--drawing-bad", "#b02a37", "#ff8b94"),
}


def style() -> str:
    """The style element of a drawing; its rules reach nothing outside of drawings."""
    light = "".join(f"--{role}-alone:{found[1]};" for role, found in _COLOURS.items())
    dark = "".join(f"--{role}-alone:{found[2]};" for role, found in _COLOURS.items())
    rules = "".join(
        f".drawing .{role}{{fill:var({theme},var(--{role}-alone))}}"
        f".drawing .{role}-line{{stroke:var({theme},var(--{role}-alone));fill:none}}"
        for role, (theme, _, _) in _COLOURS.items()
    )
    return f"<style>.drawing{{{light}}}@media(prefers-color-scheme:dark){{.drawing{{{dark}}}}}{rules}</style>"


def document(width: int, height: int, title: str, body: Iterable[str]) -> str:
    """A whole drawing."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="drawing{" wide" if width > 600 else ""}" '
        f'viewBox="0 0 {width} {height}" '
        f'font-family="system-ui, sans-serif" font-size="13">'
    )
    ground = f'<rect width="{width}" height="{height}" class="ground"/>'
    return "\n".join([head, f"<title>{html.escape(title)}</title>", style(), ground, *body, "</svg>", ""])


def text(x: float, y: float, words: str, role: str = "ink", anchor: str = "middle", weight: str = "") -> str:
    """One line of text; ``y`` is its baseline."""
    bold = f' font-weight="{weight}"' if weight else ""
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" class="{role}"{bold}>{html.escape(words)}</text>'


def width_of(words: str) -> float:
    """About the pixels that a text takes at this size; rather too many than too few."""
    return 7.2 * len(words) + 6


def tip(x: float, y: float, dx: float, dy: float, role: str) -> str:
    """The head of an arrow that ends at a point and comes from a direction (of length 1)."""
    left, right = (x - 9 * dx - 4 * dy, y - 9 * dy + 4 * dx), (x - 9 * dx + 4 * dy, y - 9 * dy - 4 * dx)
    return f'<path d="M{x:.1f} {y:.1f} L{left[0]:.1f} {left[1]:.1f} L{right[0]:.1f} {right[1]:.1f} z" class="{role}"/>'
