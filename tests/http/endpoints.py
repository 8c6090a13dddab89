"""The behaviours of endpoints that several tests use."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any

from open_idempotency import idem
from tests.http.behaviours import Behaviour, Call, Reply, Run, Wait

Steps = Generator[Any, Any, Reply]


class Declined(Exception):
    """The exception that handlers of this suite raise."""


def charge(call: Call) -> Steps:
    """Charge a card: each run makes another charge."""
    yield from ()
    number = len(call.script.runs)
    headers = [("Content-Type", "application/json"), ("Location", f"/charges/{number}"), ("X-Ledger", "main")]
    return Reply(201, headers, json.dumps({"charge": number}).encode())


def gated(call: Call) -> Steps:
    """Charge a card, and respond when the test opens the gate."""
    call.script.arrived.set()
    yield Wait(call.script.release)
    return (yield from charge(call))


def responding(status: int, body: bytes = b"said") -> Behaviour:
    """An endpoint that responds with this status."""

    def endpoint(call: Call) -> Steps:
        yield from ()
        return Reply(status, [("Content-Type", "text/plain")], b"" if status in (204, 304) else body)

    return endpoint


def failing_once(status: int | None = None) -> Behaviour:
    """Raises, or responds with ``status``, the first time; charges after that. Notes each attempt's number."""

    def endpoint(call: Call) -> Steps:
        call.script.notes.append(idem.attempt)
        if len(call.script.runs) > 1:
            return (yield from charge(call))
        if status is None:
            raise Declined("the first time")
        return Reply(status, [], b"not now")

    return endpoint


def always_raising(call: Call) -> Steps:
    """Raises each time."""
    yield from ()
    raise Declined("every time")


def staged(call: Call) -> Steps:
    """Reserves, then fails in the first attempt before it charges. Notes which stages ran."""
    script = call.script

    def effect(name: str) -> dict[str, Any]:
        script.notes.append(name)
        return {"name": name, "run": len(script.runs)}

    reserved = yield Run("reserve", lambda: effect("reserve"))
    if len(script.runs) == 1:
        raise Declined("between two stages")
    charged = yield Run("charge", lambda: effect("charge"))
    body = {"reserved": reserved, "charged": charged, "attempt": idem.attempt, "resumed": idem.resumed}
    return Reply(201, [("Content-Type", "application/json")], json.dumps(body).encode())
