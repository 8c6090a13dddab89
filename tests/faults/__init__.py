"""Fault injection on real servers, files and processes: which guarantees hold, and what is lost.

Each test is marked with the row of ``docs/faults.md`` that it shows; ``tox -e faults`` ends with the table of them.
"""

from __future__ import annotations

import os

#: whether the long form was asked for; the short one runs with the ordinary tests
FULL = os.environ.get("OI_TEST_FAULTS") == "full"
#: for backends without coalescing
ONE_BY_ONE = os.environ.get("OI_TEST_COALESCE") == "no"
