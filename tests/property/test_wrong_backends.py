"""The model test can fail: it refuses each backend with a mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from open_idempotency.backends.memory import MemoryBackend
from tests.property.wrong_backends import WRONG

SECONDS = 600
ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize("wrong", WRONG, ids=lambda kind: kind.__name__)
def test_a_backend_with_a_mistake_is_refused(wrong: type[MemoryBackend]) -> None:
    """B-12: each mistake is found."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.property.search", wrong.__name__],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout, "no search found the mistake"
