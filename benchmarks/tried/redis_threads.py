"""Whether threads should send commands to Redis in batches, as tasks do: one shared connection against the pool.

Claim and complete, one pair after the other in each thread, both ways in turn in one process; medians of rounds. Needs
a server: ``python benchmarks/tried/redis_threads.py redis://127.0.0.1:6379/0``. Its keys expire.
"""

from __future__ import annotations

import secrets
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import redis

from open_idempotency.backends._shared.coalescing import Limits, ThreadCoalescer
from open_idempotency.backends.redis import scripts

ROUNDS, PAIRS = 7, 2_000
THREADS = (1, 8, 64)
CLAIM = (b"", b"f" * 32, b"o" * 16, 30_000_000, 60_000_000, 1, 1, b"")
COMPLETE = (b"f" * 32, 30_000_000, 60_000_000, b"x" * 1000)
Ask = Callable[[tuple[Any, ...]], Any]


def pair(ask: Ask) -> None:
    """One request: a claim and its completion."""
    key = b"tried:" + secrets.token_hex(16).encode()
    _, token, attempt = ask(("EVALSHA", scripts.CLAIM.sha, 1, key, *CLAIM))
    ask(("EVALSHA", scripts.COMPLETE.sha, 1, key, b"", b"o" * 16, int(token), attempt, *COMPLETE))


def batched(connection: Any) -> Ask:
    """Commands of waiting threads are one write of the leading thread."""

    def carry_out(batch: Sequence[tuple[Any, ...]]) -> list[Any]:
        connection.send_packed_command(connection.pack_commands(batch))
        return [connection.read_response() for _ in batch]

    return ThreadCoalescer[tuple[Any, ...], Any](carry_out, Limits(5.0)).ask


def seconds_a_pair(ask: Ask, threads: int) -> float:
    """The time of one pair with this many threads."""

    def work() -> None:
        for _ in range(PAIRS // threads):
            pair(ask)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return (time.perf_counter() - started) / (PAIRS // threads * threads)


def main() -> None:
    """Print microseconds a pair, and the batched way as a multiple of the pool's pairs a second."""
    client: Any = redis.Redis.from_url(sys.argv[1], protocol=2, max_connections=max(THREADS) + 1)
    for script in (scripts.CLAIM, scripts.COMPLETE):
        client.script_load(script.source)
    ways = {
        "pool": lambda words: client.execute_command(*words),
        "batches": batched(client.connection_pool.get_connection()),
    }
    for threads in THREADS:
        took: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, ask in ways.items():
                took[name].append(seconds_a_pair(ask, threads))
        pool, batches = (statistics.median(took[name]) * 1e6 for name in ways)
        print(
            f"{threads:3} threads: pool {pool:7.1f} us, batches {batches:7.1f} us, {pool / batches:.2f} times the pairs"
        )


if __name__ == "__main__":
    main()
