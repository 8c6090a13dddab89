"""Searches for a history that shows the mistake of a backend: ``python -m tests.property.search NAME``.

It runs in a separate process: what Hypothesis generates depends on the modules that are imported, and among hundreds of
tests it rarely finds a rare mistake.
"""

from __future__ import annotations

import sys

import hypothesis

from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.conformance import check_against_model
from open_idempotency.conformance.reference_model import Disagreement
from tests.property.wrong_backends import WRONG

#: One search finds the rarest mistake in four of five cases, so a search without result is repeated.
SEARCHES = 20
SEARCH = hypothesis.settings(
    max_examples=500,
    stateful_step_count=40,
    deadline=None,
    database=None,
    phases=[hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
    report_multiple_bugs=False,
)


def disagreement(backend: type[MemoryBackend]) -> Disagreement | None:
    """The first difference between a backend and the model that the searches find, or None."""
    for _ in range(SEARCHES):
        try:
            check_against_model(lambda clock: backend(clock=clock), settings=SEARCH)
        except Disagreement as found:
            return found
    return None


if __name__ == "__main__":
    found = disagreement({kind.__name__: kind for kind in WRONG}[sys.argv[1]])
    sys.stdout.write("" if found is None else str(found))
