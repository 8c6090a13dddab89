"""The cost of keeping 10,000 running requests alive: the heartbeat's CPU, its calls, and the lag of an event loop.

``python -m benchmarks.heartbeats [--quick]`` prints a line of JSON for each row. The leases are real, on a real server,
and are watched as requests are. The CPU is that of the heartbeat's thread, by the operating system's clock; the loop
wakes every millisecond in the main thread and notes its lag, first without any lease to renew.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from benchmarks.interface import BackendName
from benchmarks.servers import Servers
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.commands import KeepAlive
from open_idempotency._engine.engine import Engine, new_owner
from open_idempotency._engine.heartbeat import BEATS_A_LEASE
from open_idempotency.backend import Backend, Claim, Leased, Renew, Renewal

IN_FLIGHT, IN_FLIGHT_QUICK = 10_000, 2_000
#: seconds: the default lease, and one that is over sooner
LEASE, LEASE_QUICK = 30.0, 9.0
_BEATS = 2
_BEFORE = 3.0
_TICK = 0.001
#: the most that a run may show: per cent of a CPU, calls for 500 leases, milliseconds of lag
CPU_AT_MOST, CALLS_FOR_500, LAG_AT_MOST = 3.0, 1.0, 10.0
_BACKENDS: tuple[BackendName, ...] = ("redis", "sqlite-full", "postgres")


@dataclass
class Beats:
    """The renew calls of one backend: when each began (monotonic seconds), and for how many leases."""

    calls: list[tuple[float, int]] = field(default_factory=list)

    def each(self, lease: float) -> list[list[int]]:
        """The sizes of the calls of each heartbeat, which a pause separates."""
        beats: list[list[int]] = []
        last = -lease
        for at, leases in self.calls:
            if at - last > lease / BEATS_A_LEASE / 2:
                beats.append([])
            beats[-1].append(leases)
            last = at
        return beats


def count_calls(backend: Backend) -> Beats:
    """Note each renewal from now on."""
    beats, renew = Beats(), backend.renew

    def counted(c: Renew, /) -> Sequence[Renewal]:
        beats.calls.append((time.monotonic(), len(c.leases)))
        return renew(c)

    backend.renew = counted  # type: ignore[method-assign]
    return beats


@contextmanager
def in_flight(engine: Engine, count: int, lease: float) -> Iterator[None]:
    """Start this many requests, whose leases are renewed from now on, all in one heartbeat."""
    attempts: list[Attempt] = []
    for _ in range(count):
        claim = Claim(os.urandom(32), b"\x01" + bytes(32), new_owner(), lease, 60.0)
        leased = engine.backend.claim(claim)
        assert isinstance(leased, Leased)
        attempts.append(Attempt.of(leased.lease, (), engine.policy, "/charges"))
    for attempt in attempts:
        engine.heartbeat.keep(KeepAlive(attempt))
    try:
        yield
    finally:
        for attempt in attempts:
            engine.heartbeat.forget(attempt)


def cpu_of_heartbeat() -> float:
    """Seconds of CPU that the threads of the heartbeat have used."""
    threads = [each for each in threading.enumerate() if each.name == "open-idempotency-heartbeat"]
    return sum(time.clock_gettime(time.pthread_getcpuclockid(each.ident)) for each in threads if each.ident)


async def lags(seconds: float) -> list[float]:
    """The lags in milliseconds of a loop that wakes every millisecond, for this long."""
    late = []
    end = time.perf_counter() + seconds
    while (before := time.perf_counter()) < end:
        await asyncio.sleep(_TICK)
        late.append((time.perf_counter() - before - _TICK) * 1000)
    return sorted(late)


def measure(name: BackendName, url: str, count: int, lease: float) -> Iterator[dict[str, Any]]:
    """The rows of one backend."""
    engine = Engine(url, None, {"lease": lease, "max_run": 3600.0}, threads=True)
    engine.backend.migrate()
    before = asyncio.run(lags(_BEFORE))
    beats = count_calls(engine.backend)
    with in_flight(engine, count, lease):
        cpu, started = cpu_of_heartbeat(), time.monotonic()
        # And a half, so that none of them is cut off.
        during = asyncio.run(lags((_BEATS + 0.5) * lease / BEATS_A_LEASE))
        used, passed = cpu_of_heartbeat() - cpu, time.monotonic() - started
    engine.heartbeat.close()
    engine.backend.close()
    whole = [beat for beat in beats.each(lease) if sum(beat) >= count] or [[0]]
    calls = len(whole[-1])  # from the second beat on, leases of neighbouring looks are renewed together
    what = f"{name}, {count} in flight"
    yield row(f"{what}: CPU of the heartbeat", 100 * used / passed, "%", CPU_AT_MOST)
    yield row(f"{what}: calls a beat", calls, "calls", count / 500)
    yield row(f"{what}: calls for 500 leases a beat", calls * 500 / count, "calls", CALLS_FOR_500)
    yield row(f"{what}: loop lag, p99.9", at(during, 0.999), "ms", LAG_AT_MOST)
    yield row(f"{what}: loop lag, longest", during[-1], "ms", None)
    yield row(f"{name}, none in flight: loop lag, p99.9", at(before, 0.999), "ms", None)
    yield row(f"{name}, none in flight: loop lag, longest", before[-1], "ms", None)


def at(ordered: Sequence[float], part: float) -> float:
    """The value that this part of an ordered sample is not above."""
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def row(what: str, value: float, unit: str, target: float | None) -> dict[str, Any]:
    """One line of the results; a target is the most that is allowed."""
    return {"row": what, "value": round(value, 3), "unit": unit, "target": target}


def main() -> None:
    """Measure each backend in turn."""
    quick = "--quick" in sys.argv[1:]
    count, lease = (IN_FLIGHT_QUICK, LEASE_QUICK) if quick else (IN_FLIGHT, LEASE)
    with Servers() as servers:
        for name in _BACKENDS:
            for one in measure(name, servers.url(name), count, lease):
                print(json.dumps(one), flush=True)


if __name__ == "__main__":
    main()
