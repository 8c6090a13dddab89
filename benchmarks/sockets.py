"""The headline: over real sockets, FastAPI under uvicorn in one process, 64 connections of another process.

All servers are up during the whole part and are loaded in turn, so that one has the machine while the others idle.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any, NamedTuple

from benchmarks import tables
from benchmarks.interface import STATUS, BackendName, Kind
from benchmarks.rows import SMALL, Row
from benchmarks.run import Results, Run
from benchmarks.served import FROZEN
from benchmarks.timing import ratio, spread
from benchmarks.ways import BARE, FLOOR, LAYER, OURS, peers_of

FRAMEWORK, CONNECTIONS, ROUNDS, SECONDS = "fastapi", 64, 5, 0.5
_BACKENDS: tuple[BackendName, ...] = ("redis", "postgres", "sqlite-full")
_AGAINST: tuple[BackendName, ...] = ("redis",)
_STARTS_WITHIN = 120.0  # seconds
_FIGURES = ("requests_a_second", "p50_ms", "p99_ms")


class Served(NamedTuple):
    """One way of handling one kind of request, and its process."""

    way: str
    backend: BackendName
    kind: Kind
    server: Uvicorn


class Uvicorn:
    """A server process. All are started before the first is waited for."""

    def __init__(self, way: str, backend: BackendName, url: str) -> None:
        self._what = f"{way} on {backend}"
        command = [sys.executable, "-m", "benchmarks.served", FRAMEWORK, way, backend, url]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)

    @functools.cached_property
    def port(self) -> int:
        """Its port, once it listens. Raises ``RuntimeError`` if it does not."""
        assert self._process.stdout is not None
        watchdog = threading.Timer(_STARTS_WITHIN, self._process.kill)
        watchdog.start()
        line = self._process.stdout.readline()
        watchdog.cancel()
        if not line:
            raise RuntimeError(f"{self._what} did not start: {self._process.wait(10)}")
        return int(line)

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate(timeout=10)


def measure(run: Run) -> Results:
    """Load all servers in turn."""
    rounds, seconds = (1, 0.2) if run.quick else (ROUNDS, SECONDS)
    with ExitStack() as ends:
        served = list(_serve(run, ends))
        taken: dict[Served, list[dict[str, Any]]] = {one: [] for one in served}
        for number in range(rounds):
            first = number % len(served)
            for one in served[first:] + served[:first]:
                taken[one].append(_load(one, seconds))
    results = [_result(one, taken) for one in served]
    print(table(results), flush=True)
    return results


def _serve(run: Run, ends: ExitStack) -> Iterator[Served]:
    def server(way: str, backend: BackendName, url: str) -> Uvicorn:
        started = Uvicorn(way, backend, url)
        ends.callback(started.stop)
        return started

    # Without a key the backend does not matter.
    for way in (BARE, LAYER, OURS):
        yield Served(way, "memory", "no-key", server(way, "memory", "memory://"))
    for backend in run.backends(_BACKENDS):
        url = run.servers.url(backend)
        peers = peers_of(Row(FRAMEWORK, backend, "new-key")) if backend in _AGAINST else []
        for way in (FLOOR, OURS, *(peer.NAME for peer in peers)):
            started = server(way, backend, url)
            yield Served(way, backend, "new-key", started)
            if way == OURS:
                yield Served(way, backend, "replay", started)
        if backend in _AGAINST:
            frozen = server(FROZEN, backend, url)
            yield Served(FROZEN, backend, "new-key", frozen)
            yield Served(FROZEN, backend, "replay", frozen)


def _load(one: Served, seconds: float) -> dict[str, Any]:
    words = (str(one.server.port), str(CONNECTIONS), str(seconds), str(SMALL), one.kind)
    command = [sys.executable, "-m", "benchmarks.load", *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    if ended.returncode:
        raise RuntimeError(f"{one.way}, {one.backend}, {one.kind}: {ended.stderr}")
    loaded: dict[str, Any] = json.loads(ended.stdout)
    return loaded


def _result(one: Served, taken: Mapping[Served, list[dict[str, Any]]]) -> dict[str, Any]:
    layer = next(other for other in taken if other.way == LAYER)
    rates = {of: [figures["requests_a_second"] for figures in taken[of]] for of in (one, layer)}
    spreads = {name: asdict(spread([figures[name] for figures in taken[one]])) for name in _FIGURES}
    return {
        "way": one.way,
        "backend": None if one.kind == "no-key" else one.backend,
        "kind": one.kind,
        **spreads,
        "statuses": sum((Counter(figures["statuses"]) for figures in taken[one]), Counter[str]()),
        "to_layer": asdict(ratio(rates[one], rates[layer])),
    }


def refused(one: Mapping[str, Any]) -> str:
    """The share of unexpected responses, with their statuses; empty for none."""
    others = {status: count for status, count in one["statuses"].items() if status != str(STATUS)}
    share = 100 * sum(others.values()) / sum(one["statuses"].values())
    return f"{share:.1f} % ({', '.join(sorted(others))})" if others else ""


def table(results: Results) -> str:
    """All ways, as text."""
    lines = [["way", "backend", "kind", "requests/s", "÷ layer", "p50 ms", "p99 ms", "refused"]]
    for one in results:
        figures = (one["requests_a_second"], one["to_layer"], one["p50_ms"], one["p99_ms"])
        lines.append([one["way"], one["backend"] or "", one["kind"], *map(tables.spread, figures), refused(one)])
    title = f"\nover sockets: {FRAMEWORK} under uvicorn, {CONNECTIONS} connections, {SMALL // 1000} kB"
    return f"{title}\n{tables.indented(tables.aligned(lines).splitlines())}"
