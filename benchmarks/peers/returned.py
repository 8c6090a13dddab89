"""The endpoint for peers that are decorators and store what a view returns, which has to be a dict."""

from __future__ import annotations

import functools
import json
from typing import Any

from fastapi import HTTPException, Request

from benchmarks.interface import HELD, HOLD, Reply, body_of


@functools.cache
def _returned(size: int) -> dict[str, str]:
    return {"charged": "x" * (len(body_of(size)) - len('{"charged":""}'))}


def as_value(reply: Reply) -> Any:
    """What a view returns, or raises, for a script's reply."""
    if reply.status >= 400:
        raise HTTPException(reply.status)
    return json.loads(b"".join(reply.parts))


async def charge(request: Request) -> Any:
    """Read the order, respond with as much."""
    body = await request.body()
    if HOLD in request.headers:
        reply = await HELD.wait_async()
        if reply is not None:
            return as_value(reply)
    return _returned(len(body))


async def charge_order(request: Request, order: dict[str, Any]) -> Any:
    """The endpoint with the order as an argument, as in the documentation of peers that compare arguments."""
    return await charge(request)
