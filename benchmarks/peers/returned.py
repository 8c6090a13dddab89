"""The endpoint for peers that are decorators, and keep what a view returns: it answers with a dict, as theirs must."""

from __future__ import annotations

import functools

from fastapi import Request

from benchmarks.interface import HELD, HOLD, answer


@functools.cache
def _returned(size: int) -> dict[str, str]:
    return {"charged": "x" * (len(answer(size)) - len('{"charged":""}'))}


async def charge(request: Request) -> dict[str, str]:
    """Read the order, answer with as much."""
    body = await request.body()
    if HOLD in request.headers:
        await HELD.wait_async()
    return _returned(len(body))
