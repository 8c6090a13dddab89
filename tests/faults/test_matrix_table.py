"""The crash matrix is complete: no combination is missing silently, and the short form covers every dimension."""

from __future__ import annotations

from collections import Counter

from tests.faults.matrix import (
    BACKENDS,
    CELLS,
    EXCEPTIONS,
    IMPOSSIBLE,
    MANNERS,
    OUTCOMES,
    POINTS,
    SERVERS,
    SHORT,
    Cell,
    combinations,
    reasons,
)


def test_each_combination_is_a_cell_or_has_a_reason() -> None:
    """I5, L-02: exactly one of both."""
    every = list(combinations())
    assert len(every) == len(POINTS) * len(MANNERS) * len(SERVERS) * len(BACKENDS)
    assert Counter(CELLS) == Counter(cell for cell in every if not reasons(cell))
    assert all(len(reasons(cell)) <= 1 for cell in every)


def test_each_reason_takes_something_away() -> None:
    """Each reason names servers and manners that exist."""
    for reason in IMPOSSIBLE:
        assert reason.manner in MANNERS
        assert reason.servers
        assert set(reason.servers) <= set(SERVERS)
        assert reason.why


def test_each_manner_says_what_holds_at_each_point() -> None:
    """L-02 to L-06: the table of outcomes is complete, and each exception applies to some cell."""
    assert {manner: set(outcomes) for manner, outcomes in OUTCOMES.items()} == {key: set(POINTS) for key in MANNERS}
    existing = {(cell.manner, cell.point, cell.server) for cell in CELLS}
    assert set(EXCEPTIONS) <= existing


def test_an_effect_happens_twice_only_in_the_gap_between_it_and_its_record() -> None:
    """I9: in every other cell it happens once."""
    twice = {cell.point for cell in CELLS if cell.outcome.twice}
    assert twice == {"after-effect"}
    assert {stage for cell in CELLS for stage in cell.outcome.twice} == {"charge"}


def test_the_short_form_has_each_point_manner_server_and_backend() -> None:
    """The ordinary tests run the short form."""
    assert set(SHORT) <= set(CELLS)
    for column, names in enumerate((POINTS, MANNERS, SERVERS, BACKENDS)):
        assert {cell[column] for cell in SHORT} == set(names)


def test_a_cell_of_the_gap_is_reported_as_a_documented_loss() -> None:
    """Row 1 of the table of faults: the gap is no success."""
    gap = Cell("after-effect", "kill", "uvicorn", "sqlite")
    assert gap.mark.mark.kwargs["kind"] == "documented"
    assert Cell("after-claim", "kill", "uvicorn", "sqlite").mark.mark.kwargs["kind"] == "held"
