"""How long the searching tests search: about a second by default, and much longer on request.

Hypothesis counts as one of them: ``conftest.py`` sets its number of examples.
"""

from __future__ import annotations

import os

#: a whole number; ``OI_TEST_EFFORT=50`` looks fifty times as long
EFFORT = max(1, int(os.environ.get("OI_TEST_EFFORT", "1")))


def times(default: int) -> int:
    """The number of cases to try where the default form tries ``default``."""
    return default * EFFORT
