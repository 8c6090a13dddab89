"""The handlers of the fault tests: stages whose effects the oracle sees, and points at which they wait."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any
from uuid import uuid4

from open_idempotency import idem
from tests.faults.effects import Effects
from tests.http.behaviours import Behaviour, Call, Reply, Run, Wait

Steps = Generator[Any, Any, Reply]
JSON = [("Content-Type", "application/json")]


class Failed(Exception):
    """The error that a handler of these tests raises."""


def _effect(effects: Effects, name: str) -> Callable[[], str]:
    def happen() -> str:
        effects.add(f"{name} {idem.attempt}")
        return uuid4().hex

    return happen


def charging(effects: Effects, *, hold: str | None = None, external: bool = False) -> Behaviour:
    """Stages "reserve" and "charge", each with an effect; the response differs each time that it is made.

    ``hold``: before the stage of that name, or before the "response", the first attempt waits to be released.
    ``external``: each stage is recorded before its effect too.
    """

    def handler(call: Call) -> Steps:
        for name in ("reserve", "charge", "response"):
            if hold == name and idem.attempt == 1:
                call.script.arrived.set()
                yield Wait(call.script.release)
            if name != "response":
                yield Run(name, _effect(effects, name), {"external": external})
        return Reply(201, JSON, uuid4().hex.encode())

    return handler


def failing_first(effects: Effects) -> Behaviour:
    """The stage "reserve", then an error at the first attempt and a charge at the next one."""

    def handler(call: Call) -> Steps:
        yield Run("reserve", _effect(effects, "reserve"))
        if idem.attempt == 1:
            raise Failed("after the first stage")
        yield Run("charge", _effect(effects, "charge"))
        return Reply(201, JSON, uuid4().hex.encode())

    return handler


def plain(effects: Effects, *, hold: bool = False, status: int = 201) -> Behaviour:
    """One effect outside of any stage, which shows a second run. ``hold``: wait in every attempt to be released."""

    def handler(call: Call) -> Steps:
        if hold:
            call.script.arrived.set()
            yield Wait(call.script.release)
        effects.add(f"run {idem.attempt}")
        return Reply(status, JSON, uuid4().hex.encode())

    return handler


def between(effects: Effects, function: Callable[[], object]) -> Behaviour:
    """Stages "reserve" and "charge"; between them call this function, and have an effect "mail" outside of stages."""

    def handler(call: Call) -> Steps:
        yield Run("reserve", _effect(effects, "reserve"))
        call.script.arrived.set()
        function()
        effects.add(f"mail {idem.attempt}")
        yield Run("charge", _effect(effects, "charge"))
        return Reply(201, JSON, uuid4().hex.encode())

    return handler
