"""How commands print: tables that fit the terminal, colours where they are wanted, and JSON."""

from __future__ import annotations

import json
import os
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
_STATES = {State.ABANDONED: _RED, State.FINAL: _RED, State.FAILED: _YELLOW, State.COMPLETED: _GREEN}


class Page:
    """What is known of standard output: whether it is a terminal, how wide, and whether colours are wanted."""

    def __init__(self, out: TextIO) -> None:
        self._terminal = out.isatty()
        self._colours = self._terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._encoding = out.encoding or "ascii"

    @property
    def width(self) -> int | None:
        """Columns of the terminal; None where nothing is to be cut, as in a pipe."""
        return shutil.get_terminal_size().columns if self._terminal else None

    def coloured(self, text: str, colour: str) -> str:
        """The text in a colour, as an ANSI number, where colours are wanted."""
        return f"\x1b[{colour}m{text}\x1b[0m" if colour and self._colours else text

    def level(self, level: Level) -> str:
        """A level of a finding, in its colour."""
        return self.coloured(level.value, _LEVELS[level])

    def state(self, view: RecordView) -> str:
        """The state of a record, in its colour, with ``!`` where it is stuck."""
        return self.coloured(state_text(view), _STATES.get(view.state, _RED if view.is_stuck() else _PLAIN))

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]], colours: Sequence[str] = ()) -> str:
        """A table with a head. The last columns are cut where the terminal is narrow. ``colours``: of the rows."""
        cells = [head, *([printable(cell, self._encoding) for cell in row] for row in rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
        widths = fitted(widths, self.width)
        lines = [
            _GAP.join(cut(cell, width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in cells
        ]
        return "\n".join([lines[0], *map(self.coloured, lines[1:], colours or [_PLAIN] * len(rows))])

    def facts(self, facts: Sequence[tuple[str, str]]) -> str:
        """Names and values, one line each."""
        width = max(len(name) for name, _ in facts)
        return "\n".join(f"{name:<{width}}{_GAP}{printable(value, self._encoding)}".rstrip() for name, value in facts)


def fitted(widths: Sequence[int], width: int | None) -> list[int]:
    """The widths of the columns that fit. The first one is never cut.

    The others are made smaller from the last one on, and left out from the last one on where that is not enough.
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
    """The text in so many columns; where it is cut, the last one is a full stop."""
    return f"{text:<{width}}" if len(text) <= width else text[: width - 1] + "."


def printable(text: str, encoding: str) -> str:
    """The text without control characters, which could move the cursor, and without what cannot be encoded."""
    shown = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def state_text(view: RecordView) -> str:
    """The state in words; ``free`` for a failed record of which no attempt counts."""
    free = view.state is State.FAILED and not view.attempt
    return ("free" if free else view.state.value) + (", in doubt" if view.in_doubt else "")


def lease_text(view: RecordView) -> str:
    """How long the lease lasts, or since when it has ended; only of an attempt that has not ended."""
    if view.state is State.ALIVE:
        return f"{duration(view.lease_left)} left"
    return f"ended {duration(view.lease_left)} ago" if view.state is State.ABANDONED else "-"


def stage_line(stage: StageView) -> str:
    """A stage: its name and key, and what is on record of it."""
    name = stage.name + (f" (key {stage.key})" if stage.key else "")
    size = f", {stage.size} bytes" if stage.size else ""
    return f"{name}: {stage.found}{size}"


def as_text(value: Any) -> str:
    """A value as JSON text. Anything that JSON does not have is an error of ours, and not hidden."""
    return json.dumps(value, indent=2, ensure_ascii=True, allow_nan=False)
