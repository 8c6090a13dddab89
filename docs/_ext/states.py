"""The state table and the state diagram, both drawn from the decision table that the backends run.

Where the boxes of the drawing stand is chosen here; which arrows there are, and what is written on them, comes from
``TRANSITIONS``. The arrows that time or a flag draws are the few in ``BESIDE_THE_TABLE``. A label stands on its arrow
at the point where it covers nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import svg

from open_idempotency.decisions import TRANSITIONS, State

# Not verbs that leave another state by themselves, so not in the table: the clock, and the flag of `fail`.
BESIDE_THE_TABLE = {
    (State.ALIVE, State.ABANDONED): ["the lease ends"],
    (State.ALIVE, State.FINAL): ["fail, final"],
    (State.ABANDONED, State.FINAL): ["fail, final"],
}
_VERBS = {"Claim": "claim", "Renew": "renew", "SaveStage": "save_stage", "Complete": "complete"}
_CENTRES = {
    State.ABSENT: (110, 60),
    State.COMPLETED: (790, 60),
    State.ALIVE: (450, 230),
    State.FAILED: (110, 400),
    State.ABANDONED: (790, 400),
    State.FINAL: (450, 560),
}
_WIDTH, _HEIGHT = 150, 44
_APART = 10  # half the distance between an arrow and the one that goes the other way
_LINE = 17  # pixels from one line of a label to the next

Edge = tuple[State, State]


def _verb(command: type) -> str:
    return _VERBS.get(command.__name__, command.__name__.lower())


def as_table() -> str:
    """A row for each verb, a column for each state that it may find; the cell is the state that it leaves."""
    head = ["Verb", *(state.value for state in State)]
    lines = [head, ["---"] * len(head)]
    for command, row in TRANSITIONS.items():
        cells = [_cell(state, row.get(state)) for state in State]
        lines.append([f"`{_verb(command)}`", *cells])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _cell(found: State, left: State | None) -> str:
    if left is None:
        return "refused"
    return "unchanged" if left is found else f"→ {left.value}"


def edges() -> dict[Edge, list[str]]:
    """The arrows from one state to another, with the verbs on them; verbs that change no state have none."""
    found: dict[Edge, list[str]] = {}
    for command, row in TRANSITIONS.items():
        for before, after in row.items():
            if before is not after:
                found.setdefault((before, after), []).append(_verb(command))
    for edge, labels in BESIDE_THE_TABLE.items():
        found.setdefault(edge, []).extend(labels)
    return found


class Rectangle(NamedTuple):
    """A part of the drawing that text or a box takes."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Rectangle) -> bool:
        """Whether both have a point in common."""
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom


class Arrow(NamedTuple):
    """An arrow between the borders of two boxes."""

    edge: Edge
    start: tuple[float, float]
    end: tuple[float, float]

    def at(self, part: float) -> tuple[float, float]:
        """The point at a part of its way."""
        return tuple(a + (b - a) * part for a, b in zip(self.start, self.end, strict=True))  # type: ignore[return-value]

    def crosses(self, area: Rectangle) -> bool:
        """Whether it passes through an area."""
        points = (self.at(step / 60) for step in range(61))
        return any(area.left < x < area.right and area.top < y < area.bottom for x, y in points)


class Label(NamedTuple):
    """What is written on an arrow, in lines, with the area that it takes."""

    edge: Edge
    lines: list[str]
    area: Rectangle


def as_svg() -> str:
    """The diagram, as a picture that needs neither script nor network."""
    arrows = [arrow(edge) for edge in edges()]
    labels = place_labels(arrows)
    body = [*map(_draw_arrow, arrows), *map(_draw_label, labels), *map(_draw_box, State)]
    return svg.document(900, 600, "States of a record, and the verbs that change them", body)


def box_of(state: State) -> Rectangle:
    """The area of a state's box."""
    x, y = _CENTRES[state]
    return Rectangle(x - _WIDTH / 2, y - _HEIGHT / 2, x + _WIDTH / 2, y + _HEIGHT / 2)


def arrow(edge: Edge) -> Arrow:
    """From border to border, beside the arrow that goes the other way."""
    (x1, y1), (x2, y2) = _CENTRES[edge[0]], _CENTRES[edge[1]]
    length = math.hypot(x2 - x1, y2 - y1)
    along = (x2 - x1) / length, (y2 - y1) / length
    aside = _APART if (edge[1], edge[0]) in edges() else 0
    shift = -along[1] * aside, along[0] * aside
    gone, left = _to_border(shift, along), _to_border(shift, (-along[0], -along[1]))
    return Arrow(
        edge,
        (x1 + shift[0] + along[0] * gone, y1 + shift[1] + along[1] * gone),
        (x2 + shift[0] - along[0] * left, y2 + shift[1] - along[1] * left),
    )


def _to_border(start: tuple[float, float], along: tuple[float, float]) -> float:
    """How far it is from a point near a box's centre, in a direction, to the box's border."""
    halves = (_WIDTH / 2, _HEIGHT / 2)
    ways = [
        (half - at * (1 if by > 0 else -1)) / abs(by) for at, by, half in zip(start, along, halves, strict=True) if by
    ]
    return min(ways)


def place_labels(arrows: list[Arrow]) -> list[Label]:
    """A place for each label; raises ``ValueError`` where one would cover a box, an arrow or another label."""
    placed: list[Label] = []
    for one in sorted(arrows, key=lambda each: -len(edges()[each.edge])):
        lines = edges()[one.edge]
        taken = [*map(box_of, State), *(label.area for label in placed)]
        others = [other for other in arrows if other is not one]
        for area in _areas(one, lines):
            if not any(area.overlaps(each) for each in taken) and not any(other.crosses(area) for other in others):
                placed.append(Label(one.edge, lines, area))
                break
        else:
            raise ValueError(
                f"no free place for {', '.join(lines)} at the arrow from {one.edge[0].value} to {one.edge[1].value}"
            )
    return placed


def _areas(one: Arrow, lines: list[str]) -> Iterator[Rectangle]:
    """Where a label may stand: on the middle of its arrow if possible, else beside it or further along."""
    width, height = max(map(svg.width_of, lines)), len(lines) * _LINE
    (x1, y1), (x2, y2) = one.start, one.end
    length = math.hypot(x2 - x1, y2 - y1)
    across, down = -(y2 - y1) / length, (x2 - x1) / length
    beside = (width * abs(across) + height * abs(down)) / 2 + 2
    for aside in (0, -beside, beside):
        for step in (0, *(way * n for n in range(1, 13) for way in (1, -1))):
            x, y = one.at(0.5 + step * 0.025)
            left, top = x + across * aside - width / 2, y + down * aside - height / 2
            yield Rectangle(left, top, left + width, top + height)


def _draw_box(state: State) -> str:
    area = box_of(state)
    frame = (
        f'<rect x="{area.left:g}" y="{area.top:g}" width="{_WIDTH}" height="{_HEIGHT}" rx="8" class="box"/>'
        f'<rect x="{area.left:g}" y="{area.top:g}" width="{_WIDTH}" height="{_HEIGHT}" rx="8" class="faint-line"/>'
    )
    x, y = _CENTRES[state]
    return frame + svg.text(x, y + 5, state.value)


def _draw_arrow(one: Arrow) -> str:
    (x1, y1), (x2, y2) = one.start, one.end
    dashed = ' stroke-dasharray="5 4"' if one.edge in BESIDE_THE_TABLE else ""
    length = math.hypot(x2 - x1, y2 - y1)
    line = f'<line x1="{x1:.0f}" y1="{y1:.0f}" x2="{x2:.0f}" y2="{y2:.0f}" class="faint-line"{dashed}/>'
    return line + svg.tip(x2, y2, (x2 - x1) / length, (y2 - y1) / length, "faint")


def _draw_label(label: Label) -> str:
    area = label.area
    middle = (area.left + area.right) / 2
    ground = (
        f'<rect x="{area.left:.0f}" y="{area.top:.0f}" width="{area.right - area.left:.0f}" '
        f'height="{area.bottom - area.top:.0f}" class="ground"/>'
    )
    return ground + "".join(
        svg.text(middle, area.top + 13 + number * _LINE, line) for number, line in enumerate(label.lines)
    )
