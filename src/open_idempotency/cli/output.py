"""How commands print: tables that fit the terminal, styles, and JSON."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from typing import Any, TextIO

from open_idempotency.backend import Level
from open_idempotency.decisions import State
from open_idempotency.operations import RecordView, StageView, duration

_GAP = "  "
_NARROWEST = 6
_RED, _YELLOW, _GREEN, _DIM, _PLAIN = "31", "33", "32", "2", ""
_LEVELS = {Level.OK: _GREEN, Level.UNKNOWN: _DIM, Level.WARNING: _YELLOW, Level.PROBLEM: _RED}


class Page:
    """Standard output: whether it is a terminal, its width, and whether it shows styles."""

    def __init__(self, out: TextIO) -> None:
        self._terminal = out.isatty()
        self._styles = self._terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._encoding = out.encoding or "ascii"

    @property
    def width(self) -> int | None:
        """Columns of the terminal; None if nothing is to be cut, as in a pipe."""
        return shutil.get_terminal_size().columns if self._terminal else None

    def styled(self, text: str, style: str) -> str:
        """The text in a style, which is an ANSI number; unchanged if styles are off."""
        return f"\x1b[{style}m{text}\x1b[0m" if style and self._styles else text

    def level(self, level: Level) -> str:
        """A level of a finding, styled."""
        return self.styled(level.value, _LEVELS[level])

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str] = ()) -> str:
        """A table with a head. On a narrow terminal the last columns are cut. ``styles``: of the rows."""
        cells = [head, *([printable(cell, self._encoding) for cell in row] for row in rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
        widths = fitted(widths, self.width)
        lines = [
            _GAP.join(cut(cell, width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in cells
        ]
        return "\n".join([lines[0], *map(self.styled, lines[1:], styles or [_PLAIN] * len(rows))])

    def facts(self, facts: Sequence[tuple[str, str]]) -> str:
        """Names and values, one line each."""
        width = max(len(name) for name, _ in facts)
        return "\n".join(f"{name:<{width}}{_GAP}{printable(value, self._encoding)}".rstrip() for name, value in facts)


def fitted(widths: Sequence[int], width: int | None) -> list[int]:
    """The widths of the columns that fit. The first one is never cut.

    The others are narrowed, beginning with the last, and then left out, beginning with the last.
    """
    left = list(widths)
    if width is None:
        return left
    while len(left) > 1 and left[0] + sum(min(each, _NARROWEST) + len(_GAP) for each in left[1:]) > width:
        left.pop()
    over = sum(left) + len(_GAP) * (len(left) - 1) - width
    for column in range(len(left) - 1, 0, -1):
        less = max(0, min(over, left[column] - _NARROWEST))
        left[column] -= less
        over -= less
    return left


def cut(text: str, width: int) -> str:
    """The text in at most ``width`` columns. If it is cut, it ends with a full stop."""
    return f"{text:<{width}}" if len(text) <= width else text[: width - 1] + "."


def printable(text: str, encoding: str) -> str:
    """The text without control characters, which could move the cursor, and without unencodable characters."""
    shown = "".join(map(_shown, text))
    return shown.encode(encoding, "backslashreplace").decode(encoding)


_STYLE = re.compile(r"(\x1b\[[0-9]{1,2}m)")


def harmless(text: str) -> str:
    """The text without control characters, except line breaks, tabs and this library's styles."""
    return "".join(
        part if _STYLE.fullmatch(part) else "".join(each if each in "\n\t" else _shown(each) for each in part)
        for part in _STYLE.split(text)
    )


def _shown(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


def state_text(view: RecordView) -> str:
    """The state in words; ``free`` for a failed record none of whose attempts counts."""
    free = view.state is State.FAILED and not view.attempt
    return ("free" if free else view.state.value) + (", in doubt" if view.in_doubt else "")


def lease_text(view: RecordView) -> str:
    """How long the lease lasts, or how long ago it ended; empty for an attempt that has ended."""
    if view.state is State.ALIVE:
        return f"{duration(view.lease_left)} left"
    return f"ended {duration(view.lease_left)} ago" if view.state is State.ABANDONED else "-"


def stage_line(stage: StageView) -> str:
    """A stage: its name, its key, and its state on record."""
    name = stage.name + (f" (key {stage.key})" if stage.key else "")
    size = f", {stage.size} bytes" if stage.size else ""
    return f"{name}: {stage.found}{size}"


def as_text(value: Any) -> str:
    """A value as JSON text. Raises ``TypeError`` for any other value, which would be a fault of this library."""
    return json.dumps(value, indent=2, ensure_ascii=True, allow_nan=False)
