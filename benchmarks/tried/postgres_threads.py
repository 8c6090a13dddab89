"""Whether coalescing pays for threads on PostgreSQL: pairs of claim and completion a second, with it and without.

Run ``python -m benchmarks.tried.postgres_threads`` with the test requirements installed; it starts its own server. The
two forms take turns, so that other load on the machine affects both.
"""

from __future__ import annotations

import os
import secrets
import statistics
import threading
import time

from open_idempotency.backend import Claim, Complete, Leased
from open_idempotency.backends.postgres import PostgresBackend
from tests.postgres_server import PostgresServer

THREADS = (1, 8, 64)
SECONDS = 1.0
ROUNDS = 5


def pair(backend: PostgresBackend) -> float:
    """Claim and complete a new record; the seconds that it took."""
    started = time.perf_counter()
    leased = backend.claim(Claim(secrets.token_bytes(32), bytes(33), os.urandom(16), 30.0, 86400.0))
    assert isinstance(leased, Leased), leased
    backend.complete(Complete(leased.lease, bytes(1024)))
    return time.perf_counter() - started


def measured(backend: PostgresBackend, threads: int) -> tuple[float, float]:
    """Pairs a second, and the 99th percentile of a pair in milliseconds, of threads that do nothing else."""
    until = time.monotonic() + SECONDS
    taken: list[float] = []

    def work() -> None:
        while time.monotonic() < until:
            taken.append(pair(backend))

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return len(taken) / SECONDS, statistics.quantiles(taken, n=100)[98] * 1000


def main() -> None:
    """Print a line for each number of threads."""
    server = PostgresServer(18).start()
    try:
        backends = {form: PostgresBackend(f"{server.url()}?coalesce={form}", timeout=30) for form in ("no", "yes")}
        backends["no"].migrate()
        for threads in THREADS:
            found: dict[str, list[tuple[float, float]]] = {"no": [], "yes": []}
            for _ in range(ROUNDS):
                for form, backend in backends.items():
                    found[form].append(measured(backend, threads))
            for form, rounds in found.items():
                rate, slowest = (statistics.median(column) for column in zip(*rounds, strict=True))
                print(f"{threads:3} threads, coalesce={form:3}: {rate:7.0f} pairs/s, p99 {slowest:6.1f} ms")
        for backend in backends.values():
            backend.close()
    finally:
        server.stop()


if __name__ == "__main__":
    main()
