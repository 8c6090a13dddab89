"""One class for each mode of calling, so that each behaviour is tested once: sync, on asyncio, on trio.

On an event loop the calls run in a portal's loop, which lives as long as its test; they may come from many threads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import anyio.lowlevel
import anyio.to_thread
from anyio.from_thread import BlockingPortal, start_blocking_portal

from open_idempotency import Once, OnceStatus, idem
from open_idempotency.backend import Backend

MODES = ("sync", "asyncio", "trio")
Function = Callable[..., Any]


class Sync:
    """The sync verbs."""

    name = "sync"

    def function(self, function: Function) -> Function:
        """The function in the form that this mode calls."""
        return function

    def staged(self, stages: Sequence[tuple[str, Function]], end: Function = lambda: "done", **terms: Any) -> Function:
        """A function without arguments that runs these stages in order, and then ends."""

        def work() -> Any:
            for name, function in stages:
                idem.run(name, function, **terms)
            return end()

        return work

    def run(self, once: Once, key: str, function: Function, *args: Any, **kwargs: Any) -> Any:
        return once.run(key, function, *args, **kwargs)

    def call(self, decorated: Function, *args: Any) -> Any:
        """Call a decorated function."""
        return decorated(*args)

    def begin(self, once: Once, key: str, work: Function, **terms: Any) -> tuple[bool, Any]:
        """Enter a block: whether the work was done before, and the result."""
        with once.begin(key, **{"payload": None, **terms}) as attempt:
            done = attempt.done
            if not done:
                attempt.complete(work())
        return done, attempt.result

    def status(self, once: Once, key: str) -> OnceStatus:
        return once.status(key)

    def forget(self, once: Once, key: str) -> bool:
        return once.forget(key)

    def close(self, once: Once) -> None:
        once.close()

    def close_backend(self, backend: Backend) -> None:
        """Close what this mode has opened of a backend that no ``Once`` owns."""
        backend.close()


class Looped(Sync):
    """The async verbs, on one event loop."""

    def __init__(self, portal: BlockingPortal, name: str) -> None:
        self._portal = portal
        self.name = name

    def _run(self, make: Function) -> Any:
        async def awaited() -> Any:
            return await make()

        return self._portal.call(awaited)

    def function(self, function: Function) -> Function:
        @functools.wraps(function)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            await anyio.lowlevel.checkpoint()
            # A function that waits for another thread waits in one, as the loop has to go on.
            return await anyio.to_thread.run_sync(lambda: function(*args, **kwargs))

        return awaited

    def staged(self, stages: Sequence[tuple[str, Function]], end: Function = lambda: "done", **terms: Any) -> Function:
        async def work() -> Any:
            for name, function in stages:
                await idem.arun(name, function, **terms)
            return end()

        return work

    def run(self, once: Once, key: str, function: Function, *args: Any, **kwargs: Any) -> Any:
        return self._run(lambda: once.arun(key, function, *args, **kwargs))

    def call(self, decorated: Function, *args: Any) -> Any:
        return self._run(lambda: decorated(*args))

    def begin(self, once: Once, key: str, work: Function, **terms: Any) -> tuple[bool, Any]:
        async def by_hand() -> tuple[bool, Any]:
            async with once.begin(key, **{"payload": None, **terms}) as attempt:
                done = attempt.done
                if not done:
                    attempt.complete(work())
            return done, attempt.result

        found: tuple[bool, Any] = self._run(by_hand)
        return found

    def status(self, once: Once, key: str) -> OnceStatus:
        found: OnceStatus = self._run(lambda: once.astatus(key))
        return found

    def forget(self, once: Once, key: str) -> bool:
        found: bool = self._run(lambda: once.aforget(key))
        return found

    def close(self, once: Once) -> None:
        self._run(once.aclose)

    def close_backend(self, backend: Backend) -> None:
        self._run(backend.to_async().close)
        backend.close()


Mode = Sync | Looped


@contextmanager
def in_mode(name: str) -> Iterator[Mode]:
    """The mode of this name, while its loop runs."""
    if name == "sync":
        yield Sync()
        return
    with start_blocking_portal(backend=name) as portal:
        yield Looped(portal, name)
