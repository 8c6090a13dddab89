"""The rows in process: each row's ways, interleaved, as ratios to the do-nothing layer and to the floor."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from typing import Any

from benchmarks import tables
from benchmarks.interface import Kind
from benchmarks.loops import fresh_loop
from benchmarks.rows import Row, chosen
from benchmarks.run import Results, Run
from benchmarks.targets import verdicts
from benchmarks.timing import Series, added, interleaved, ratio, spread
from benchmarks.ways import CLAIM, FLOOR, LAYER, Ways

_COLUMNS = {
    "microseconds": "µs",
    "to_layer": "÷ layer",
    "to_floor": "÷ floor",
    "added_to_floor": "added ÷ floor's",
}


def measure(run: Run) -> Results:
    """All rows that were chosen; each is printed when it is done."""
    results = []
    for row in chosen(run.kinds, run.only):
        taken = _taken(row, run)
        results.append(_result(row, taken))
        print(table(results[-1]), flush=True)
    return results


def _taken(row: Row, run: Run) -> dict[str, list[float]]:
    gc.collect()
    with fresh_loop() as loop, closing(Ways(row, run.servers, loop)) as ways:
        return interleaved(ways.batches, run.effort(row.size), least=row.in_flight)


def _result(row: Row, taken: Mapping[str, Series]) -> dict[str, Any]:
    return {
        "row": row._asdict(),
        "ways": [_way(name, row.kind, taken) for name in taken],
        "verdicts": [{**verdict._asdict(), "met": verdict.met} for verdict in verdicts(row, taken)],
    }


def _way(name: str, kind: Kind, taken: Mapping[str, Series]) -> dict[str, Any]:
    way: dict[str, Any] = {"name": name, "microseconds": asdict(spread(taken[name]))}
    if name != CLAIM:  # which handles no request
        way["to_layer"] = asdict(ratio(taken[name], taken[LAYER]))
        way["to_floor"] = asdict(ratio(taken[name], taken[FLOOR]))
    if kind == "new-key":  # otherwise the floor adds nothing, or takes the place of the application
        way["added_to_floor"] = asdict(added(taken[name], taken[FLOOR], taken[LAYER]))
    return way


def table(result: Mapping[str, Any]) -> str:
    """A row as text: each way's time, its ratios, what it adds as a multiple of what the floor adds."""
    row = Row(**result["row"])
    columns = {column: title for column, title in _COLUMNS.items() if column in result["ways"][0]}
    lines = [["way", *columns.values()]]
    for way in result["ways"]:
        lines.append([way["name"], *(tables.spread(way.get(column)) for column in columns)])
    verdicts = map(tables.verdict, result["verdicts"])
    return f"\n{row}\n{tables.indented([*tables.aligned(lines).splitlines(), *verdicts])}"
