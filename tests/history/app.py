"""The application under test: ``uvicorn tests.history.app:app``. Each run appends lines to an effect file.

The file is the oracle: outside of the system, append-only, one whole line for each event.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from typing import Any

from open_idempotency import idem
from open_idempotency._engine.engine import here
from open_idempotency.asgi import IdempotencyMiddleware

_LONGEST = 0.05


def _record(**line: Any) -> None:
    handle = os.open(os.environ["HISTORY_EFFECTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(handle, json.dumps(line).encode() + b"\n")
    finally:
        os.close(handle)


async def handle(scope: Any, receive: Any, send: Any) -> None:
    """Begin, have one effect, and respond with the token of this attempt."""
    if scope["type"] != "http":
        return
    headers = dict(scope["headers"])
    name = headers[b"x-operation"].decode()
    lease = here()[0].lease
    assert lease is not None
    _record(operation=name, token=lease.token, attempt=lease.attempt, at=time.monotonic())
    async with idem.stage("effect") as stage:
        if not stage.done:
            await asyncio.sleep(random.uniform(0, _LONGEST))
            _record(operation=name, effect=lease.token, downstream=idem.key_for("effect"))
            stage.save(lease.token)
    await asyncio.sleep(random.uniform(0, _LONGEST))
    status = 500 if random.random() < 0.1 else 201
    body = b"%d" % lease.token
    headers = [(b"x-token", body), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


app = IdempotencyMiddleware(
    handle,
    backend=os.environ.get("HISTORY_BACKEND", "memory://"),
    lease=float(os.environ.get("HISTORY_LEASE", "2.0")),
    scope=lambda request: "everybody",
)
