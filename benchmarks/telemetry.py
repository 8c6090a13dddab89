"""The cost of telemetry for a request: the CPU time that each listener adds to an application without one.

``python -m benchmarks.telemetry [--quick]`` prints a line of JSON for each row. It uses the memory backend, where
nothing waits, under plain ASGI: a listener adds the same on every backend and adapter. It measures the CPU time of the
loop's thread, so other load on the machine hardly counts. OpenTelemetry is its SDK, with a reader of metrics in memory
and a server's span that is recorded and dropped; the application for comparison has such a span too.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry

from benchmarks.heartbeats import row
from benchmarks.request_calls import endpoint, post
from benchmarks.timing import Batch, Effort, interleaved
from open_idempotency.asgi import IdempotencyMiddleware
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.events import Event, Listener
from open_idempotency.telemetry import combine, opentelemetry, prometheus

Span = Callable[[], AbstractContextManager[Any]]
_EFFORT, _QUICK = Effort(rounds=41, seconds=0.05), Effort(rounds=3, seconds=0.005)
_PLAIN, _IN_SPAN = "no listener", "no listener, in a span"


def _ignore(event: Event) -> None:
    pass


def _ways() -> dict[str, tuple[Listener | None, Span, str]]:
    """By name: the listener, what is around a request, and the way for comparison."""
    tracers, meters = TracerProvider(), MeterProvider([InMemoryMetricReader()])
    tracer = tracers.get_tracer("server")

    def span() -> AbstractContextManager[Any]:
        return tracer.start_as_current_span("POST")

    otel = opentelemetry(meters, tracers)
    return {
        _PLAIN: (None, nullcontext, _PLAIN),
        _IN_SPAN: (None, span, _IN_SPAN),
        "a listener that does nothing": (_ignore, nullcontext, _PLAIN),
        "prometheus()": (prometheus(CollectorRegistry()), nullcontext, _PLAIN),
        "opentelemetry()": (otel, span, _IN_SPAN),
        "combine() of both": (combine(prometheus(CollectorRegistry()), otel), span, _IN_SPAN),
    }


def _batch(loop: asyncio.AbstractEventLoop, app: Any, span: Span, keys: Iterator[bytes]) -> Batch:
    async def run(count: int) -> float:
        began = time.thread_time()
        for _ in range(count):
            with span():
                await post(app, next(keys))
        return time.thread_time() - began

    return lambda count: loop.run_until_complete(run(count))


def measure(kind: str, effort: Effort) -> Iterator[dict[str, Any]]:
    """The rows of one kind of request."""
    ways, batches = _ways(), {}
    loop = asyncio.new_event_loop()
    try:
        for name, (listener, span, _) in ways.items():
            app = IdempotencyMiddleware(endpoint, MemoryBackend(), on_event=listener)
            new = (b"0123456789abcdef-%d" % number for number in itertools.count())
            keys = new if kind == "new key" else itertools.repeat(b"0123456789abcdef-again")
            batches[name] = _batch(loop, app, span, keys)
        taken = interleaved(batches, effort)
    finally:
        loop.close()
    yield row(f"{kind}, {_PLAIN}", statistics.median(taken[_PLAIN]), "µs", None)
    for name, (_, _, against) in ways.items():
        if name != against:
            yield row(f"{kind}, {name}: adds", _added(taken, name, against), "µs", None)


def _added(taken: Mapping[str, list[float]], name: str, against: str) -> float:
    return statistics.median(one - other for one, other in zip(taken[name], taken[against], strict=True))


def main() -> None:
    """Measure each kind of request in turn."""
    effort = _QUICK if "--quick" in sys.argv[1:] else _EFFORT
    for kind in ("new key", "replay"):
        for one in measure(kind, effort):
            print(json.dumps(one), flush=True)


if __name__ == "__main__":
    main()
