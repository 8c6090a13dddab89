"""An event loop for one comparison: remaining tasks are cancelled at the end, as ``asyncio.run`` does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


@contextmanager
def fresh_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that runs only while something is awaited on it, so that sync code can be timed in between."""
    loop = asyncio.new_event_loop()
    try:
        yield loop
    finally:
        loop.run_until_complete(_cancel_all(asyncio.all_tasks(loop)))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


async def _cancel_all(tasks: Iterable[asyncio.Task[object]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
