"""The benchmark suite runs and reports; no measured value is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_a_quick_run_of_one_row_prints_its_table_and_writes_its_results(tmp_path: Path) -> None:
    """One command prints the floor, the layer and this package side by side, with the circumstances."""
    command = ["-m", "benchmarks", "--quick", "--rows", "new-key", "--only", "memory", "--out", str(tmp_path)]
    ended = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "starlette, memory, new-key, 1 kB" in ended.stdout
    written = json.loads((tmp_path / "rows.json").read_text())
    assert written["circumstances"]["packages"]["open-idempotency"]
    for row in written["results"]:
        assert {"bare", "layer", "floor", "open-idempotency"} <= {way["name"] for way in row["ways"]}
        assert row["verdicts"][0]["target"] == 2


def test_expensive_bodies_have_a_table_of_their_own(tmp_path: Path) -> None:
    """R-10: the cost of a body is measured with everything else."""
    command = ["-m", "benchmarks", "--quick", "--rows", "expensive-bodies", "--out", str(tmp_path)]
    ended = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "longest hold: multipart, 2 million parts" in ended.stdout
    rows = json.loads((tmp_path / "expensive-bodies.json").read_text())["results"]
    assert {row["target"] for row in rows} == {20, 3}
