"""The simulation can fail: without any one guard some history violates an invariant."""

from __future__ import annotations

import pytest

from tests.simulation.guards import WITHOUT
from tests.simulation.history import History
from tests.simulation.loop import Failure
from tests.simulation.plans import plan

SEEDS = 1500

#: what the absence of each guard breaks
BREAKS = {
    "token-comparison": {"I3", "I4"},
    "re-entrancy": {"I6"},
    "mismatch-check": {"I7", "I10"},
    "backends-clock": {"I1", "I5", "B-02"},
    "stages": {"I5"},
    "memory-of-withdrawals": {"B-08c"},
    "shield": {"L-04"},
    "store-before-send": {"I4"},
    "heartbeat": {"I9", "I12", "I13"},
    "heeding-refusals": {"I4"},
    "intents": {"I9"},
    "failing-closed": {"I8"},
    "clock-after-lock": {"I1", "I5", "B-02"},
    "local-failures": {"B-10a"},
    "waiting-for-threads": {"I12"},
    "holding-back": {"I9"},
    "lease-before-handler": {"L-10"},
    "renewable-or-refused": {"I9", "I12", "I13"},
    "recording-goes-on": {"I13"},
    "renewed-while-recording": {"I13"},
}


def first_failure(guard: str) -> str:
    """The message of the first history that notices the missing guard."""
    for seed in range(SEEDS):
        try:
            History(plan(seed), WITHOUT[guard]).run()
        except Failure as failure:
            return str(failure)
    return f"{SEEDS} histories, and nothing was noticed"


@pytest.mark.parametrize("guard", sorted(WITHOUT))
def test_without_a_guard_some_history_fails(guard: str) -> None:
    """B-02, B-03, B-08, B-10a, L-01, L-03, L-04, L-07 to L-11, O-05, O-12, R-03, S-04: each guard is necessary."""
    assert first_failure(guard).partition(":")[0] in BREAKS[guard]
