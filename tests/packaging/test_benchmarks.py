"""The pages report the measured benchmark results, and the floor does the whole work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import report, results, svg
from benchmarks.floor import calls_for
from benchmarks.interface import BackendName
from tests.docs.pages import ROOT


@pytest.mark.parametrize("page", report.PAGES, ids=lambda page: page.stem)
def test_the_tables_of_a_page_are_what_the_results_say(page: Path) -> None:
    """The tables on the pages are generated: ``python -m benchmarks.report`` changes nothing."""
    text = page.read_text(encoding="utf-8")
    assert report.written(text, results.FOLDER) == text
    assert "Not measured yet" not in text


def test_a_curve_is_drawn_between_its_points() -> None:
    """On logarithmic axes: equal factors are equal distances."""
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
    """The floor does the work of the package, so that comparing with it is fair."""
    calls = calls_for(backend, f"sqlite:///{tmp_path}/floor.db?synchronous=full")
    record_id, first, other = b"r" * 32, b"f" * 32, b"g" * 32
    assert calls.claim(record_id, first, b"one") is None
    assert calls.claim(record_id, first, b"two") == 409
    assert calls.claim(record_id, other, b"two") == 422
    calls.complete(record_id, b"one", b"answer")
    assert calls.claim(record_id, first, b"two") == b"answer"
    assert calls.claim(record_id, other, b"two") == 422
    calls.close()


@pytest.mark.parametrize("word", [r"\b[Cc]olou?r(s|ed|less)?\b", r"(?i)answer", r"\btold\b|\btells?\b"])
def test_the_benchmarks_keep_away_from_the_words_that_were_taken_out_of_them(word: str) -> None:
    """The standard terms are sync and async, response, report and log, as in the package."""
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sorted((ROOT / "benchmarks").rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(word, line)
    ]
    assert not found, "\n".join(found)
