"""Claim and complete, in pairs, 64 concurrently: a client's pool one call at a time, and this package's backends.

The pool's calls are the floor's. This package's backends are measured with their defaults and, where they have the
option ``coalesce=no``, with each call sent by itself.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any, NamedTuple

from benchmarks import floor, tables
from benchmarks.interface import BackendName, body_of
from benchmarks.loops import fresh_loop
from benchmarks.run import Results, Run
from benchmarks.targets import PAIRS_TO_POOL, Verdict
from benchmarks.timing import ratio, spread
from open_idempotency import open_backend
from open_idempotency.backend import Claim, Complete, Leased

IN_FLIGHT, ROUNDS, SECONDS = 64, 7, 0.2
POOL, ALONE, TOGETHER = "pool", "coalesce=no", "coalesce=yes"
_BACKENDS: tuple[BackendName, ...] = ("redis", "sqlite-normal", "sqlite-full", "postgres")
_FINGERPRINT, _RESPONSE = b"\x01" + b"f" * 32, body_of(1_000)


class Pairs(NamedTuple):
    """A number of pairs: the seconds that all took, and each."""

    all: float
    each: list[float]


Way = Callable[[int], Pairs]


def measure(run: Run) -> Results:
    """Measure each backend in both styles; print each when it is done."""
    results = []
    for backend in run.backends(_BACKENDS):
        for style, ways in _STYLES.items():
            with ExitStack() as ends:
                taken = _interleaved(ways(backend, run.servers.url(backend), ends), run.quick)
            results.append(_result(backend, style, taken))
            print(table(results[-1]), flush=True)
    return results


def _interleaved(ways: Mapping[str, Way], quick: bool) -> dict[str, list[Pairs]]:
    rounds, seconds = (2, 0.01) if quick else (ROUNDS, SECONDS)
    names = list(ways)
    sizes = {name: _size(ways[name], seconds) for name in names}
    taken: dict[str, list[Pairs]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            taken[name].append(ways[name](sizes[name]))
    return taken


def _size(way: Way, seconds: float) -> int:
    way(1)  # tables are made
    way(IN_FLIGHT)  # connections are opened
    return max(2 * IN_FLIGHT, int(seconds / way(2 * IN_FLIGHT).all * 2 * IN_FLIGHT))


def _awaited(backend: BackendName, url: str, ends: ExitStack) -> dict[str, Way]:
    loop = ends.enter_context(fresh_loop())
    calls = floor.async_calls_for(backend, url)
    ends.callback(lambda: loop.run_until_complete(calls.close()))

    async def one_by_one(record_id: bytes, owner: bytes) -> None:
        assert await calls.claim(record_id, _FINGERPRINT, owner) is None
        await calls.complete(record_id, owner, _RESPONSE)

    def ours(option: str) -> Callable[[bytes, bytes], Any]:
        ready = open_backend(_with(url, option)).to_async()
        ends.callback(lambda: loop.run_until_complete(ready.close()))

        async def pair(record_id: bytes, owner: bytes) -> None:
            leased = await ready.claim(_claim(record_id, owner))
            assert isinstance(leased, Leased)
            await ready.complete(Complete(leased.lease, _RESPONSE))

        return pair

    async def together(pair: Callable[[bytes, bytes], Any], count: int) -> Pairs:
        waiting, each = _ids(count), list[float]()

        async def work() -> None:
            for record_id, owner in waiting:
                start = time.perf_counter()
                await pair(record_id, owner)
                each.append(time.perf_counter() - start)

        start = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
        return Pairs(time.perf_counter() - start, each)

    def way(pair: Callable[[bytes, bytes], Any]) -> Way:
        return lambda count: loop.run_until_complete(together(pair, count))

    return {POOL: way(one_by_one), ALONE: way(ours(ALONE)), TOGETHER: way(ours(TOGETHER))}


def _blocking(backend: BackendName, url: str, ends: ExitStack) -> dict[str, Way]:
    threads = ends.enter_context(ThreadPoolExecutor(IN_FLIGHT))
    calls = floor.calls_for(backend, url)
    ends.callback(calls.close)

    def one_by_one(record_id: bytes, owner: bytes) -> None:
        assert calls.claim(record_id, _FINGERPRINT, owner) is None
        calls.complete(record_id, owner, _RESPONSE)

    def ours(option: str) -> Callable[[bytes, bytes], None]:
        ready = open_backend(_with(url, option))
        ends.callback(ready.close)

        def pair(record_id: bytes, owner: bytes) -> None:
            leased = ready.claim(_claim(record_id, owner))
            assert isinstance(leased, Leased)
            ready.complete(Complete(leased.lease, _RESPONSE))

        return pair

    def way(pair: Callable[[bytes, bytes], None]) -> Way:
        return lambda count: _in_threads(threads, pair, count)

    return {POOL: way(one_by_one), ALONE: way(ours(ALONE)), TOGETHER: way(ours(TOGETHER))}


def _in_threads(threads: ThreadPoolExecutor, pair: Callable[[bytes, bytes], None], count: int) -> Pairs:
    waiting, lock, each = _ids(count), threading.Lock(), list[float]()

    def work() -> None:
        while True:
            with lock:
                ids = next(waiting, None)
            if ids is None:
                return
            start = time.perf_counter()
            pair(*ids)
            each.append(time.perf_counter() - start)

    start = time.perf_counter()
    for thread in [threads.submit(work) for _ in range(IN_FLIGHT)]:
        thread.result(60)
    return Pairs(time.perf_counter() - start, each)


_STYLES: dict[str, Callable[[BackendName, str, ExitStack], dict[str, Way]]] = {
    "asyncio": _awaited,
    "threads": _blocking,
}


def _with(url: str, option: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{option}"


def _claim(record_id: bytes, owner: bytes) -> Claim:
    return Claim(record_id, _FINGERPRINT, owner, 30.0, 86_400.0)


def _ids(count: int) -> Iterator[tuple[bytes, bytes]]:
    return iter([(os.urandom(32), os.urandom(16)) for _ in range(count)])


def _result(backend: BackendName, style: str, taken: Mapping[str, list[Pairs]]) -> dict[str, Any]:
    rates = {name: [len(one.each) / one.all for one in rounds] for name, rounds in taken.items()}
    late = {name: _milliseconds(rounds) for name, rounds in taken.items()}
    ways = [
        {
            "name": name,
            "pairs_a_second": asdict(spread(rates[name])),
            "to_pool": asdict(ratio(rates[name], rates[POOL])),
            "p50_ms": late[name][49],
            "p99_ms": late[name][98],
        }
        for name in taken
    ]
    verdicts = []
    if backend in PAIRS_TO_POOL and style == "asyncio":
        more = ratio(rates[TOGETHER], rates[POOL]).median
        verdicts = [
            Verdict(5, "pairs a second ÷ the pool's", more, PAIRS_TO_POOL[backend], at_least=True),
            Verdict(5, "p99 ÷ the pool's", late[TOGETHER][98] / late[POOL][98], 1.0),
        ]
    judged = [{**verdict._asdict(), "met": verdict.met} for verdict in verdicts]
    return {"backend": backend, "style": style, "ways": ways, "verdicts": judged}


def _milliseconds(rounds: list[Pairs]) -> list[float]:
    """The percentiles of all rounds' pairs."""
    return statistics.quantiles((seconds * 1e3 for one in rounds for seconds in one.each), n=100)


def table(result: Mapping[str, Any]) -> str:
    """A backend in one style, as text."""
    lines = [["way", "pairs/s", "÷ pool", "p50 ms", "p99 ms"]]
    for way in result["ways"]:
        spreads = (tables.spread(way["pairs_a_second"]), tables.spread(way["to_pool"]))
        lines.append([way["name"], *spreads, tables.figure(way["p50_ms"]), tables.figure(way["p99_ms"])])
    verdicts = map(tables.verdict, result["verdicts"])
    title = f"\n{IN_FLIGHT} in flight, {result['backend']}, {result['style']}"
    return f"{title}\n{tables.indented([*tables.aligned(lines).splitlines(), *verdicts])}"
