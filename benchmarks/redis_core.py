"""What one core of a Redis server carries: the processor time that the server spends on a request.

``python -m benchmarks.redis_core [--quick]`` prints a line of JSON for each row. Valkey executes commands on one
thread, so the processor time of its process for a request (``used_cpu_user`` and ``used_cpu_sys`` of ``INFO cpu``) says
how many requests one core carries, however slow the clients are. Rows: a new key (a claim and a completion) and a
replay (one claim), with responses of 1 kB and 10 kB, 64 in flight on one event loop, and one after the other without
``coalesce``, as many workers with little load each do.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from benchmarks.record_sizes import SIZES, text
from benchmarks.servers import Servers
from open_idempotency import open_backend
from open_idempotency._core.models import Response
from open_idempotency._core.stored_response import encode_response
from open_idempotency.backend import AsyncBackend, Claim, Complete, Finished, Leased

CALLS, CALLS_QUICK = 20_000, 500
IN_FLIGHT = 64
_FINGERPRINT = b"\x01" + b"f" * 32


def _cpu(servers: Servers) -> float:
    with servers.redis.connect() as client:
        found = client.info("cpu")
        return float(found["used_cpu_user"]) + float(found["used_cpu_sys"])


def _claim(record_id: bytes) -> Claim:
    return Claim(record_id, _FINGERPRINT, os.urandom(16), 30.0, 86_400.0)


async def _new_key(backend: AsyncBackend, response: bytes) -> bytes:
    record_id = os.urandom(32)
    leased = await backend.claim(_claim(record_id))
    assert isinstance(leased, Leased)
    await backend.complete(Complete(leased.lease, response))
    return record_id


async def _replay(backend: AsyncBackend, record_id: bytes) -> None:
    assert isinstance(await backend.claim(_claim(record_id)), Finished)


async def _measured(servers: Servers, url: str, size: int, count: int, in_flight: int) -> dict[str, float]:
    """Microseconds of the server's processor time for a new key, and for a replay."""
    response = encode_response(Response(201, [(b"content-type", b"application/json")], text(size)))
    async with open_backend(url).to_async() as backend:
        record_id = await _new_key(backend, response)
        share = count // in_flight

        async def in_turn(replay: bool) -> None:
            for _ in range(share):
                await (_replay(backend, record_id) if replay else _new_key(backend, response))

        spent: dict[str, float] = {}
        for name, replay in (("new-key", False), ("replay", True)):
            before = _cpu(servers)
            await asyncio.gather(*(in_turn(replay) for _ in range(in_flight)))
            spent[name] = (_cpu(servers) - before) / (share * in_flight) * 1e6
        return spent


def row(servers: Servers, size: int, count: int, in_flight: int) -> dict[str, Any]:
    """One line of the results."""
    url = servers.url("redis") + ("" if in_flight > 1 else "?coalesce=no")
    spent = asyncio.run(_measured(servers, url, size, count, in_flight))
    return {
        "response": size,
        "in_flight": in_flight,
        **{f"{name}_us": round(micros, 1) for name, micros in spent.items()},
        **{f"{name}_per_core": round(1e6 / micros) for name, micros in spent.items()},
    }


def main() -> None:
    """Print the rows."""
    count = CALLS_QUICK if "--quick" in sys.argv[1:] else CALLS
    with Servers() as servers:
        for in_flight in (IN_FLIGHT, 1):
            for size in SIZES:
                print(json.dumps(row(servers, size, count, in_flight)), flush=True)


if __name__ == "__main__":
    main()
