"""The conformance package without Hypothesis: the contract works, and the model test names what to install."""

from __future__ import annotations

import subprocess
import sys

_WITHOUT = """
import sys
sys.modules["hypothesis"] = None
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.conformance import BackendContract, ManualClock, check_against_model
from open_idempotency.exceptions import MissingExtra
try:
    check_against_model(lambda clock: MemoryBackend(clock=clock))
except MissingExtra as error:
    sys.stdout.write(str(error))
"""


def test_the_model_test_names_what_to_install() -> None:
    """B-12: only the model test needs Hypothesis."""
    done = subprocess.run([sys.executable, "-c", _WITHOUT], capture_output=True, text=True, timeout=60)
    assert done.stdout == "check_against_model needs Hypothesis: pip install hypothesis", done.stderr
