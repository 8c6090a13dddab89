"""Carrying out a generator engine: the same steps, sync or async.

An engine yields commands and is resumed with their results; an error of a command is thrown into it where
it was yielded, so the order of operations and what happens on a failure are read in one function. Never ``close()``
a suspended engine: throw into it, so that its cleanup commands run.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import Any, TypeVar

from open_idempotency._core.commands import Command

T = TypeVar("T")
R = TypeVar("R")

Steps = Generator[Command[Any], Any, T]
Handlers = Mapping[type[Command[Any]], Callable[[Any], Any]]
AsyncHandlers = Mapping[type[Command[Any]], Callable[[Any], Awaitable[Any]]]
Shield = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]


def ask(command: Command[R]) -> Generator[Command[Any], Any, R]:
    """Yield one command; ``yield from ask(...)`` has the command's result and its type."""
    result: R = yield command
    return result


def drive(steps: Steps[T], handlers: Handlers) -> T:
    """Run an engine to its end, sync; returns or raises what it does."""
    try:
        command = next(steps)
        while True:
            try:
                reply = handlers[type(command)](command)
            except BaseException as error:
                command = steps.throw(error)
            else:
                command = steps.send(reply)
    except StopIteration as stop:
        result: T = stop.value
        return result


async def drive_async(steps: Steps[T], handlers: AsyncHandlers, shield: Shield, *, guarded: bool = False) -> T:
    """The same, async. Once it was cancelled, the rest (its cleanup) is carried out under ``shield``.

    ``guarded``: shield from the start, for the end of a request that is being cancelled already.
    """
    try:
        command = next(steps)
        while True:
            try:
                if guarded:
                    handler, asked = handlers[type(command)], command
                    reply = await shield(lambda: handler(asked))  # noqa: B023 (awaited before they change)
                else:
                    reply = await handlers[type(command)](command)
            except BaseException as error:
                guarded = guarded or not isinstance(error, Exception)
                command = steps.throw(error)
            else:
                command = steps.send(reply)
    except StopIteration as stop:
        result: T = stop.value
        return result
