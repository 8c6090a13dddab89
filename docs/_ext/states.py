"""The state table and the state diagram, both drawn from the decision table that the backends run.

The places on the drawing are chosen here; which arrows there are, and what is written on them, comes from
``TRANSITIONS``. The arrows that time or a flag draws are the few in ``BESIDE_THE_TABLE``.
"""

from __future__ import annotations

import html
import math

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
    State.COMPLETED: (750, 60),
    State.ALIVE: (430, 190),
    State.FAILED: (110, 320),
    State.ABANDONED: (750, 320),
    State.FINAL: (430, 440),
}
# How far along its arrow a label stands, where the middle is taken by another.
_ALONG = {(State.ABANDONED, State.FAILED): 0.25}
_WIDTH, _HEIGHT = 150, 44
_APART = 9  # half the distance between an arrow and the one that goes the other way

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


def as_svg() -> str:
    """The diagram, as a picture that needs neither script nor network."""
    arrows = edges()
    lines = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 860 490" font-family="sans-serif" font-size="13">',
        "<title>States of a record, and the verbs that change them</title>",
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0 10 5 0 10z" fill="#555"/></marker></defs>',
        '<rect width="860" height="490" fill="#fff"/>',
    ]
    lines += [_line(edge, (edge[1], edge[0]) in arrows) for edge in arrows]
    lines += [_label(edge, labels, (edge[1], edge[0]) in arrows) for edge, labels in arrows.items()]
    lines += [_box(state) for state in State]
    return "\n".join([*lines, "</svg>", ""])


def _box(state: State) -> str:
    x, y = _CENTRES[state]
    return (
        f'<rect x="{x - _WIDTH / 2:g}" y="{y - _HEIGHT / 2:g}" width="{_WIDTH}" height="{_HEIGHT}" rx="8" '
        f'fill="#eef3fb" stroke="#335"/><text x="{x}" y="{y + 5}" text-anchor="middle" fill="#113">{state.value}</text>'
    )


def _ends(edge: Edge, paired: bool) -> tuple[float, float, float, float]:
    """Where an arrow begins and ends: on the boxes' borders, beside the arrow that goes the other way."""
    (x1, y1), (x2, y2) = _CENTRES[edge[0]], _CENTRES[edge[1]]
    length = math.hypot(x2 - x1, y2 - y1)
    aside = _APART if paired else 0
    dx, dy = -(y2 - y1) / length * aside, (x2 - x1) / length * aside
    part = _to_border(x2 - x1, y2 - y1)
    gone, left = (x2 - x1) * part, (y2 - y1) * part
    return x1 + gone + dx, y1 + left + dy, x2 - gone + dx, y2 - left + dy


def _to_border(dx: float, dy: float) -> float:
    """The part of the way from centre to centre that lies inside a box."""
    across = _WIDTH / 2 / abs(dx) if dx else math.inf
    down = _HEIGHT / 2 / abs(dy) if dy else math.inf
    return min(across, down)


def _line(edge: Edge, paired: bool) -> str:
    x1, y1, x2, y2 = _ends(edge, paired)
    dashed = ' stroke-dasharray="5 4"' if edge in BESIDE_THE_TABLE else ""
    return (
        f'<line x1="{x1:.0f}" y1="{y1:.0f}" x2="{x2:.0f}" y2="{y2:.0f}" stroke="#555"{dashed} marker-end="url(#tip)"/>'
    )


def _label(edge: Edge, labels: list[str], paired: bool) -> str:
    x1, y1, x2, y2 = _ends(edge, paired)
    # Labels of a pair keep to their own ends, or one would cover the other.
    along = 0.36 if paired else _ALONG.get(edge, 0.5)
    x, y = x1 + (x2 - x1) * along, y1 + (y2 - y1) * along
    text = html.escape(", ".join(labels))
    width = 7 * len(text) + 8
    return (
        f'<rect x="{x - width / 2:.0f}" y="{y - 10:.0f}" width="{width}" height="19" fill="#fff" opacity="0.9"/>'
        f'<text x="{x:.0f}" y="{y + 4:.0f}" text-anchor="middle" fill="#333">{text}</text>'
    )
