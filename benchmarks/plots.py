"""The plots for the docs, from the results' JSON: ``python -m benchmarks.plots [FOLDER]`` draws them again."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import results, svg
from benchmarks.interface import BACKENDS
from benchmarks.served import FROZEN
from benchmarks.svg import Curve, Point
from benchmarks.ways import FLOOR, LAYER, OURS

_DASHES = {OURS: 0, FLOOR: 1, LAYER: 2}
#: where the name of a way is too long to stand beside its bar
_LABELS = {FROZEN: "with gc.freeze()"}
_GROWTH = {
    "size": ("What a new key costs, by the size of the body", "bytes of the body, and of the response"),
    "stages": ("What a new key costs, by the stages that it saves", "stages"),
    "in-flight": ("What a new key costs, by the requests in flight", "in flight"),
}


def draw(folder: Path) -> list[Path]:
    """Draw a plot for each part that has results; the files that were written."""
    return [*_growth(folder), *_live_records(folder), *_sockets(folder)]


def _growth(folder: Path) -> Iterator[Path]:
    for part, (title, x_label) in _GROWTH.items():
        found = results.read(folder, part)
        if found is not None:
            curves = _curves(found["results"], lambda point: (point["backend"], point["way"]), "microseconds")
            yield _write(folder, part, svg.curves(title, x_label, "µs a request", curves))


def _live_records(folder: Path) -> Iterator[Path]:
    found = results.read(folder, "live-records")
    if found is not None:
        title = "A claim and a replay, by the completed records that are alive"
        curves = [
            curve._replace(name=f"{curve.name}: {verb}", dash=dash)
            for dash, verb in enumerate(("claim", "replay"))
            for curve in _curves(found["results"], lambda point: (point["backend"], OURS), verb)
        ]
        yield _write(folder, "live-records", svg.curves(title, "live records", "µs a call", curves))


def _sockets(folder: Path) -> Iterator[Path]:
    found = results.read(folder, "sockets")
    if found is not None:
        lengths = [
            (
                f"{_LABELS.get(one['way'], one['way'])}, {one['backend'] or 'no key'}{_replayed(one)}",
                _point(0, one["requests_a_second"]),
                _hue(one),
            )
            for one in found["results"]
        ]
        yield _write(folder, "sockets", svg.bars("FastAPI under uvicorn, 64 connections", "requests/s", lengths))


def _replayed(one: Mapping[str, Any]) -> str:
    return ", replay" if one["kind"] == "replay" else ""


def _hue(one: Mapping[str, Any]) -> int:
    return {OURS: 1, FROZEN: 1, FLOOR: 2}.get(one["way"], 0)


def _curves(points: Iterable[Mapping[str, Any]], of: Any, figure: str) -> list[Curve]:
    found: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        found.setdefault(of(point), []).append(_point(point["x"], point[figure]))
    shades = {backend: number for number, backend in enumerate(BACKENDS)}
    return [
        Curve(backend if way == OURS else f"{backend}: {way}", drawn, shades[backend], _DASHES[way])  # type: ignore[index]
        for (backend, way), drawn in found.items()
    ]


def _point(x: float, taken: Mapping[str, float]) -> Point:
    return Point(x, taken["median"], taken["low"], taken["high"])


def _write(folder: Path, name: str, text: str) -> Path:
    file = folder / f"{name}.svg"
    file.write_text(text, encoding="utf-8")
    return file


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else results.FOLDER)
