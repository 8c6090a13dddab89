"""What an endpoint does, written once for every framework.

A behaviour is a generator: it yields steps that wait or are awaited (a gate, a stage) and returns a ``Reply``. Two
drivers carry it out, sync and async; an application of a framework only translates its request to a ``Call`` and a
``Reply`` to its response. This module imports no framework.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from open_idempotency import idem

PATIENCE = 10.0  # seconds; nothing in this suite waits longer, so a lost signal is a failure and not a hang


@dataclass
class Call:
    """A request, independent of its framework."""

    method: str
    path: str
    query: str
    body: bytes
    script: Script
    #: puts another user into the request, where the framework knows users
    become: Callable[[str], object] | None = None


@dataclass
class Reply:
    """A response, independent of its framework.

    A body other than bytes is a stream: bytes in order, and gates to wait for in between.
    """

    status: int = 201
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes | Iterable[bytes | threading.Event] = b""
    background: Callable[[], None] | None = None


@dataclass
class Wait:
    """Hold the handler until the gate opens."""

    gate: threading.Event


@dataclass
class Run:
    """``idem.run(name, function, **terms)`` or ``await idem.arun(name, function, **terms)``.

    ``gate``: the stage waits for it after the function and before its record.
    """

    name: str
    function: Callable[[], Any]
    terms: dict[str, Any] = field(default_factory=dict)
    gate: threading.Event | None = None


@dataclass
class Save:
    """``idem.save_stage(name, value)`` or ``await idem.asave_stage(name, value)``."""

    name: str
    value: Any = None


Behaviour = Callable[[Call], Generator[Wait | Run | Save, Any, Reply]]


@dataclass
class Script:
    """The endpoint's behaviour in one test, and what the endpoint reports to the test."""

    behaviour: Behaviour
    runs: list[Call] = field(default_factory=list)
    notes: list[Any] = field(default_factory=list)
    arrived: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)


#: by the value of the ``X-Script`` request header
SCRIPTS: dict[str, Script] = {}


def call_of(
    method: str, path: str, query: str, body: bytes, script: str, become: Callable[[str], object] | None = None
) -> Call:
    """The call that an application has received."""
    return Call(method, path, query, body, SCRIPTS[script], become)


def perform(call: Call) -> Reply:
    """Run the behaviour, sync."""
    call.script.runs.append(call)
    steps = call.script.behaviour(call)
    try:
        step = next(steps)
        while True:
            try:
                result = _BLOCKING[type(step)](step)
            except Exception as error:
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as stop:
        reply: Reply = stop.value
        return reply


async def perform_async(call: Call) -> Reply:
    """Run the behaviour, async."""
    call.script.runs.append(call)
    steps = call.script.behaviour(call)
    try:
        step = next(steps)
        while True:
            try:
                result = await _AWAITED[type(step)](step)
            except Exception as error:
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as stop:
        reply: Reply = stop.value
        return reply


def _pass(gate: threading.Event) -> None:
    if not gate.wait(PATIENCE):
        raise TimeoutError("the test did not open the gate")


async def _pass_async(gate: threading.Event) -> None:
    await asyncio.to_thread(_pass, gate)


def _run(step: Run) -> Any:
    if step.gate is None:
        return idem.run(step.name, step.function, **step.terms)
    return idem.run(step.name, _held, step, **step.terms)


def _held(step: Run) -> Any:
    value = step.function()
    assert step.gate is not None
    _pass(step.gate)
    return value


def _arun(step: Run) -> Any:
    if step.gate is None:
        return idem.arun(step.name, step.function, **step.terms)
    return idem.arun(step.name, _held_async, step, **step.terms)


async def _held_async(step: Run) -> Any:
    value = step.function()
    assert step.gate is not None
    await _pass_async(step.gate)
    return value


_BLOCKING: dict[type, Callable[[Any], Any]] = {
    Wait: lambda step: _pass(step.gate),
    Run: _run,
    Save: lambda step: idem.save_stage(step.name, step.value),
}
_AWAITED: dict[type, Callable[[Any], Any]] = {
    Wait: lambda step: _pass_async(step.gate),
    Run: _arun,
    Save: lambda step: idem.asave_stage(step.name, step.value),
}


def chunks(pieces: Iterable[bytes | threading.Event]) -> Iterator[bytes]:
    """A streamed body, sync."""
    with _closed(pieces):
        for piece in pieces:
            if isinstance(piece, bytes):
                yield piece
            else:
                _pass(piece)


async def achunks(pieces: Iterable[bytes | threading.Event]) -> AsyncIterator[bytes]:
    """A streamed body, async."""
    with _closed(pieces):
        for piece in pieces:
            if isinstance(piece, bytes):
                yield piece
            else:
                await _pass_async(piece)


@contextmanager
def _closed(pieces: Any) -> Iterator[None]:
    try:
        yield
    finally:
        getattr(pieces, "close", lambda: None)()


def header_pairs(reply: Reply) -> list[tuple[bytes, bytes]]:
    """The headers as bytes, with a Content-Length if the body is known and the status may have one."""
    pairs = [(name.lower().encode(), value.encode("latin-1")) for name, value in reply.headers]
    if isinstance(reply.body, bytes) and reply.status not in (204, 304):
        pairs.append((b"content-length", b"%d" % len(reply.body)))
    return pairs
