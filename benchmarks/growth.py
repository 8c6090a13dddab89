"""How cost grows: with the size of the body, with the number of stages, and with the requests in flight.

Each point is a comparison as the rows are, interleaved in itself; points of a curve are taken one after another.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from benchmarks import tables
from benchmarks.calls import AsgiCaller
from benchmarks.interface import PATH, STATUS, App, BackendName, body_of
from benchmarks.loops import fresh_loop
from benchmarks.rows import SMALL, Row
from benchmarks.run import Results, Run
from benchmarks.timing import Batch, Series, interleaved, spread
from benchmarks.ways import FLOOR, LAYER, OURS, Ways, new_keys
from open_idempotency import idem
from open_idempotency.starlette import IdempotencyMiddleware

SIZES = (16, 1_000, 10_000, 100_000, 300_000, 1_000_000)
STAGES = (0, 1, 2, 4, 8, 16)
FLIGHTS = (1, 4, 16, 64, 256)
_ROUNDS, _SECONDS = 7, 0.02
_SIZED: tuple[BackendName, ...] = ("memory", "redis")
_SERVED: tuple[BackendName, ...] = ("sqlite-full", "redis", "postgres")


def by_size(run: Run) -> Results:
    """A new key, by the bytes of the body, and of the response."""
    rows = (Row("starlette", backend, "new-key", size) for backend in run.backends(_SIZED) for size in SIZES)
    return _reported("size", run, rows)


def by_flight(run: Run) -> Results:
    """A new key, by the requests in flight."""
    rows = (
        Row("starlette", backend, "new-key", SMALL, flight) for backend in run.backends(_SERVED) for flight in FLIGHTS
    )
    return _reported("in_flight", run, rows)


def _reported(x: str, run: Run, rows: Iterator[Row]) -> Results:
    results = []
    for row in rows:
        gc.collect()
        effort = run.effort(row.size, _ROUNDS, _SECONDS)
        with fresh_loop() as loop, closing(Ways(row, run.servers, loop, against=())) as ways:
            compared = {name: ways.batches[name] for name in (LAYER, FLOOR, OURS)}
            taken = interleaved(compared, effort, least=row.in_flight)
        results += _points(row.backend, row._asdict()[x], taken)
    print(table(x.replace("_", " "), results), flush=True)
    return results


def by_stages(run: Run) -> Results:
    """A new key whose endpoint saves so many stages, by their number."""
    results = []
    for backend in run.backends():
        gc.collect()
        url = run.servers.url(backend)
        with fresh_loop() as loop:
            callers = {number: AsgiCaller(_staged(number, url), body_of(SMALL), loop) for number in STAGES}
            batches = {str(number): _batch(caller) for number, caller in callers.items()}
            taken = interleaved(batches, run.effort(SMALL, _ROUNDS, _SECONDS))
            for caller in callers.values():
                caller.close()
        for number in STAGES:
            results += _points(backend, number, {OURS: taken[str(number)]})
    print(table("stages", results), flush=True)
    return results


def _staged(number: int, url: str) -> App:
    async def charge(request: Request) -> Response:
        body = await request.body()
        for i in range(number):
            await idem.asave_stage(f"stage {i}", {"id": "ch_1"})
        return Response(body_of(len(body)), STATUS, media_type="application/json")

    app = Starlette(routes=[Route(PATH, charge, methods=["POST"])])
    app.add_middleware(IdempotencyMiddleware, backend=url)
    return app


def _batch(caller: AsgiCaller) -> Batch:
    def batch(count: int) -> float:
        sent = caller.send(new_keys(count))
        if sent.statuses != [STATUS] * count:
            raise RuntimeError(f"unexpected responses: {set(sent.statuses)}")
        return sent.seconds

    return batch


def _points(backend: BackendName, x: int, taken: Mapping[str, Series]) -> Results:
    return [{"backend": backend, "x": x, "way": way, "microseconds": asdict(spread(taken[way]))} for way in taken]


def table(x: str, results: Results) -> str:
    """A curve in each line."""
    xs = sorted({point["x"] for point in results})
    curves: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for point in results:
        curves.setdefault((point["backend"], point["way"]), {})[point["x"]] = point["microseconds"]
    lines = [["µs", "way", *(f"{number:,}" for number in xs)]]
    for (backend, way), points in curves.items():
        lines.append([backend, way, *(tables.figure(points[number]["median"]) for number in xs)])
    return f"\na new key, by {x}\n{tables.indented(tables.aligned(lines).splitlines())}"


CURVES: Mapping[str, Callable[[Run], Results]] = {"size": by_size, "stages": by_stages, "in-flight": by_flight}
