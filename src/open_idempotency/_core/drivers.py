"""Carrying out a generator engine: the same steps, sync or async.

An engine yields commands and is resumed with their results; an error of a command is thrown into it where
it was yielded, so the order of operations and what happens on a failure are read in one function. Never ``close()``
a suspended engine: throw into it, so that its cleanup commands run.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Mapping
from functools import partial
from typing import Any, TypeVar

from open_idempotency._core.commands import AtOnce, Command

T = TypeVar("T")
R = TypeVar("R")

Steps = Generator[Command[Any], Any, T]
Handlers = Mapping[type[Command[Any]], Callable[[Any], Any]]


def ask(command: Command[R]) -> Generator[Command[Any], Any, R]:
    """Yield one command; ``yield from ask(...)`` has the command's result and its type."""
    result: R = yield command
    return result


class Driver:
    """Runs engines sync. ``handlers``: what carries each kind of command out."""

    def __init__(self, handlers: Handlers) -> None:
        self._handlers = handlers

    def run(self, steps: Steps[T]) -> T:
        """Run an engine to its end; returns or raises what it does."""
        handlers = self._handlers
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


class AsyncDriver:
    """The same, async. What the handlers return is awaited, except for commands that are ``AtOnce``."""

    def __init__(self, handlers: Handlers) -> None:
        self._handlers = handlers

    async def run(self, steps: Steps[T], *, guarded: bool = False) -> T:
        """Run an engine to its end. Once it was cancelled, the rest (its cleanup) is carried out under ``_shield``.

        ``guarded``: shield from the start, for the end of a request that is being cancelled already.
        """
        handlers = self._handlers
        try:
            command = next(steps)
            while True:
                try:
                    handler = handlers[type(command)]
                    if isinstance(command, AtOnce):
                        reply = handler(command)
                    elif guarded:
                        reply = await self._shield(partial(handler, command))
                    else:
                        reply = await handler(command)
                except BaseException as error:
                    guarded = guarded or not isinstance(error, Exception)
                    command = steps.throw(error)
                else:
                    command = steps.send(reply)
        except StopIteration as stop:
            result: T = stop.value
            return result

    async def _shield(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Carry a call out although this task is being cancelled. Here without any protection: a subclass has it."""
        return await call()
