"""What a ``BaseHTTPMiddleware`` that does nothing costs, beside all of this package on the memory backend:
``python -m benchmarks.tried.base_http_middleware``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from starlette.middleware.base import BaseHTTPMiddleware

from benchmarks.apps import starlette
from benchmarks.calls import AsgiCaller, Key
from benchmarks.interface import body_of
from benchmarks.loops import fresh_loop
from benchmarks.rows import SMALL
from benchmarks.ways import new_keys

ROUNDS, COUNT = 21, 300


class Nothing(BaseHTTPMiddleware):
    """Passes everything on."""

    async def dispatch(self, request: Any, call_next: Any) -> Any:
        return await call_next(request)


def main() -> None:
    """Print the least that a request took, in microseconds."""
    logging.getLogger().addHandler(logging.NullHandler())
    wrapped: Any = starlette.bare()
    wrapped.add_middleware(Nothing)
    with fresh_loop() as loop:
        ways = {
            "a layer in pure ASGI": (AsgiCaller(starlette.layer(), body_of(SMALL), loop), None),
            "a BaseHTTPMiddleware": (AsgiCaller(wrapped, body_of(SMALL), loop), None),
            "open-idempotency, a new key": (AsgiCaller(starlette.ours("memory://"), body_of(SMALL), loop), new_keys),
        }
        least = dict.fromkeys(ways, float("inf"))
        for _ in range(ROUNDS):
            for name, (caller, made) in ways.items():
                keys: Sequence[Key] = [None] * COUNT if made is None else made(COUNT)
                least[name] = min(least[name], caller.send(keys).seconds / COUNT * 1e6)
        for name, (caller, _) in ways.items():
            print(f"{name}: {least[name]:.0f} µs")
            caller.close()


if __name__ == "__main__":
    main()
