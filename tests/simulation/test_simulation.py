"""Thousands of histories of the real middleware, helper and engine on virtual time, with many kinds of faults."""

from __future__ import annotations

import pytest

from tests.effort import times
from tests.simulation.history import History
from tests.simulation.loop import Failure
from tests.simulation.plans import KINDS, plan

PARTS = 4
HISTORIES = 100


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.timeout(3600)
def test_the_invariants_hold_in_every_history(part: int) -> None:
    """I1 to I13: with crashes, freezes, and messages that are lost, late, doubled, held or cancelled."""
    count = times(HISTORIES)
    for seed in range(part * count, (part + 1) * count):
        made = plan(seed)
        try:
            History(made).run()
        except Failure as failure:
            pytest.fail(f"{failure}\n{made}\nreplay: python -m tests.simulation {seed}", pytrace=False)


def test_a_seed_is_one_history() -> None:
    """A failing seed can be replayed: two runs have the same events at the same moments."""

    def reported() -> list[str]:
        lines: list[str] = []
        History(plan(1207), trace=lines.append).run()
        # Owners are random bytes, and stand for nothing else.
        return [line[:30] for line in lines]

    assert reported() == reported()


def test_the_histories_have_every_kind_of_trouble() -> None:
    """Every kind of fault occurs."""
    plans = [plan(seed) for seed in range(PARTS * HISTORIES)]
    assert {kind for made in plans for kind in made.rates} == set(KINDS)
    assert {made.stages for made in plans} == {0, 1, 2, 3}
    assert any(made.is_calm for made in plans)
    assert {made.holds for made in plans if made.threads and "cancel" in made.rates} == {True, False}
