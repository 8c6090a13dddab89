"""The benchmark suite runs and tells; what it measures is asserted nowhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import report, results, svg
from benchmarks.floor import calls_for
from benchmarks.interface import BackendName

ROOT = Path(__file__).parent.parent.parent


def test_a_quick_run_of_one_row_prints_its_table_and_writes_its_results(tmp_path: Path) -> None:
    """One command: the floor, the layer and ours side by side, with the circumstances."""
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
    """R-10: what a body costs that was made for it is measured with everything else."""
    command = ["-m", "benchmarks", "--quick", "--rows", "expensive-bodies", "--out", str(tmp_path)]
    ended = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "longest hold: multipart, 2 million parts" in ended.stdout
    rows = json.loads((tmp_path / "expensive-bodies.json").read_text())["results"]
    assert {row["target"] for row in rows} == {20, 3}


@pytest.mark.parametrize("page", report.PAGES, ids=lambda page: page.stem)
def test_the_tables_of_a_page_are_what_the_results_say(page: Path) -> None:
    """No figure is typed by hand, and none is missing: ``python -m benchmarks.report`` changes nothing."""
    text = page.read_text(encoding="utf-8")
    assert report.written(text, results.FOLDER) == text
    assert "Not measured yet" not in text


def test_a_curve_is_drawn_between_its_points() -> None:
    """Logarithmic axes: equal factors are equal distances."""
    points = [svg.Point(x, y, y, y) for x, y in ((1, 10), (10, 100), (100, 1_000))]
    drawn = svg.curves("title", "x", "y", [svg.Curve("ours", points, 0)])
    line = drawn.split('polyline points="')[1].split('"')[0]
    (x1, y1), (x2, y2), (x3, y3) = (map(float, pair.split(",")) for pair in line.split())
    assert abs((x2 - x1) - (x3 - x2)) <= 0.2
    assert abs((y2 - y1) - (y3 - y2)) <= 0.2
    assert x1 < x2
    assert y1 > y2  # SVG counts downwards


@pytest.mark.parametrize("backend", ["memory", "sqlite-full"])
def test_the_floor_runs_a_request_once(backend: BackendName, tmp_path: Path) -> None:
    """A yardstick that did less than the work would flatter nobody but itself."""
    calls = calls_for(backend, f"sqlite:///{tmp_path}/floor.db?synchronous=full")
    record_id, first, other = b"r" * 32, b"f" * 32, b"g" * 32
    assert calls.claim(record_id, first, b"one") is None
    assert calls.claim(record_id, first, b"two") == 409
    assert calls.claim(record_id, other, b"two") == 422
    calls.complete(record_id, b"one", b"answer")
    assert calls.claim(record_id, first, b"two") == b"answer"
    assert calls.claim(record_id, other, b"two") == 422
    calls.close()
