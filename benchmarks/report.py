"""Writes the pages' tables from the results, so that no figure is typed by hand: ``python -m benchmarks.report``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import results, sockets, tables
from benchmarks.comparison import tables as comparison
from benchmarks.rows import Row
from benchmarks.targets import NOT_PEERS
from benchmarks.ways import FLOOR, LAYER, OURS

_DOCS = Path(__file__).parent.parent / "docs"
PAGES = (Path(__file__).parent / "README.md", _DOCS / "performance.md", _DOCS / "comparison.md")
_MARKED = re.compile(r"(<!-- results: (?P<part>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
Lines = Iterator[Sequence[str]]


def written(text: str, folder: Path) -> str:
    """The page with the tables of the parts that have results."""

    def table(match: re.Match[str]) -> str:
        found = results.read(folder, _SHOWN_FROM.get(match["part"], match["part"]))
        return match[0] if found is None else f"{match[1]}{_TABLES[match['part']](found)}\n{match[3]}"

    return _MARKED.sub(table, text)


def _markdown(lines: Lines) -> str:
    head, *rows = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([head, re.sub(r"[^|]+", "---", head), *rows])


def _machine(found: Mapping[str, Any]) -> str:
    around = found["circumstances"]
    packages = ", ".join(f"{name} {version}" for name, version in around["packages"].items())
    return (
        f"Measured on {around['date']} with `{around['command']}`: {around['cores']} cores, {around['machine']}, "
        f"{around['python']}, SQLite {around['sqlite']}; {packages}."
    )


def _rows(found: Mapping[str, Any]) -> str:
    return _markdown(_row_lines(found["results"]))


def _row_lines(measured: Sequence[Mapping[str, Any]]) -> Lines:
    yield "row", "layer µs", "floor µs", "ours µs", "ours ÷ layer", "added ÷ floor's", "targets"
    for one in measured:
        ways = {way["name"]: way for way in one["ways"]}
        medians = (tables.figure(ways[name]["microseconds"]["median"]) for name in (LAYER, FLOOR, OURS))
        ratios = (tables.spread(ways[OURS].get(column)) for column in ("to_layer", "added_to_floor"))
        verdicts = [_verdict(verdict) for verdict in one["verdicts"] if verdict["target"] != 7]
        yield str(Row(**one["row"])), *medians, *ratios, "; ".join(verdicts)


def _verdict(one: Mapping[str, Any]) -> str:
    sign = "≥" if one["at_least"] else "≤"
    met = "met" if one["met"] else "**missed**"
    return f"{one['target']}: {one['value']:.2f} {sign} {one['limit']:g} {met}"


def _peers(found: Mapping[str, Any]) -> str:
    return _markdown(_peer_lines(found["results"]))


def _peer_lines(measured: Sequence[Mapping[str, Any]]) -> Lines:
    yield "row", "ours µs", "peers, µs (÷ ours)"
    for one in measured:
        ways = {way["name"]: way["microseconds"]["median"] for way in one["ways"]}
        peers = {name: median for name, median in ways.items() if name not in NOT_PEERS}
        taken = [
            f"{name} {tables.figure(peers[name])} ({tables.figure(peers[name] / ways[OURS])})"
            for name in sorted(peers, key=lambda name: peers[name])
        ]
        if taken:
            yield str(Row(**one["row"])), tables.figure(ways[OURS]), "; ".join(taken)


def _throughput(found: Mapping[str, Any]) -> str:
    return _markdown(_throughput_lines(found["results"]))


def _throughput_lines(measured: Sequence[Mapping[str, Any]]) -> Lines:
    yield "backend", "way", "pairs a second", "÷ pool", "p50 ms", "p99 ms", "targets"
    for one in measured:
        for way in one["ways"]:
            verdicts = "; ".join(map(_verdict, one["verdicts"])) if way is one["ways"][-1] else ""
            spreads = (tables.spread(way["pairs_a_second"]), tables.spread(way["to_pool"]))
            late = (tables.figure(way["p50_ms"]), tables.figure(way["p99_ms"]))
            yield f"{one['backend']}, {one['style']}", way["name"], *spreads, *late, verdicts


def _sockets(found: Mapping[str, Any]) -> str:
    return _markdown(_socket_lines(found["results"]))


def _socket_lines(measured: Sequence[Mapping[str, Any]]) -> Lines:
    yield "way", "backend", "kind", "requests/s", "÷ layer", "p50 ms", "p99 ms", "refused"
    for one in measured:
        figures = (tables.spread(one[name]) for name in ("requests_a_second", "to_layer", "p50_ms", "p99_ms"))
        yield one["way"], one["backend"] or "", one["kind"], *figures, sockets.refused(one)


def _live_records(found: Mapping[str, Any]) -> str:
    return _markdown(_live_lines(found["results"]))


def _live_lines(measured: Sequence[Mapping[str, Any]]) -> Lines:
    yield "backend", "live records", "claim µs", "replay µs", "bytes each"
    for one in measured:
        weight = "" if one["bytes_each"] is None else tables.figure(one["bytes_each"])
        yield one["backend"], f"{one['x']:,}", tables.spread(one["claim"]), tables.spread(one["replay"]), weight


def _program(found: Mapping[str, Any]) -> str:
    return _markdown(_program_lines(found["results"]))


def _program_lines(measured: Sequence[Mapping[str, Any]]) -> Lines:
    yield "row", "value", "unit", "target"
    for one in measured:
        yield one["row"], tables.figure(one["value"]), one["unit"], tables.limit(one)


def _comparison(part: str, found: Mapping[str, Any]) -> str:
    return _markdown(comparison.lines(part, found["results"]))


_TABLES: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "rows": _rows,
    "rows-machine": _machine,
    "rows-peers": _peers,
    "throughput": _throughput,
    "sockets": _sockets,
    "live-records": _live_records,
    "heartbeats": _program,
    "memory": _program,
    "expensive-bodies": _program,
    "request-calls": _program,
    "telemetry": _program,
    "comparison-machine": _machine,
    **{f"comparison-{part}": partial(_comparison, part) for part in comparison.PARTS},
}
#: the results that a part is made of, where they have another name
_SHOWN_FROM = {"rows-machine": "rows", "rows-peers": "rows"} | {
    part: "comparison" for part in _TABLES if part.startswith("comparison-")
}


def write() -> None:
    """Write the pages."""
    for page in PAGES:
        page.write_text(written(page.read_text(encoding="utf-8"), results.FOLDER), encoding="utf-8")


if __name__ == "__main__":
    write()
