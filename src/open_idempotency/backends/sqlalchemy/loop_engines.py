"""The asynchronous engines: one for each event loop of each process, since connections belong to a loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine

from open_idempotency._perform.processes import PerProcess
from open_idempotency.backends.sqlalchemy.engines import carried_out, levels, make_async_engine
from open_idempotency.backends.sqlalchemy.errors import Tries
from open_idempotency.backends.sqlalchemy.options import Options
from open_idempotency.backends.sqlalchemy.transactions import Settings
from open_idempotency.backends.sqlalchemy.verbs import Step

T = TypeVar("T")


class LoopEngines:
    """The asyncio engines of this process, by event loop."""

    def __init__(self, options: Options, settings: Settings) -> None:
        self._options = options
        self._settings = settings
        self._engines: PerProcess[dict[asyncio.AbstractEventLoop, AsyncEngine]] = PerProcess(dict)

    def engine(self) -> AsyncEngine:
        """The running loop's."""
        engines = self._engines.get()
        loop = asyncio.get_running_loop()
        engine = engines.get(loop)
        if engine is None:
            # Not a weak dictionary: connections hold their loop, so an entry would keep itself alive.
            for other in [other for other in list(engines) if other.is_closed()]:
                engines.pop(other, None)
            engine = engines[loop] = make_async_engine(self._options)
        return engine

    async def run(self, step: Step) -> Any:
        """Carry out one step of a verb. Raises ``BackendUnavailable``."""
        return await self.call(carried_out(step, self._settings), step.mode)

    async def call(self, function: Callable[..., T], mode: str) -> T:
        """Call a function with a blocking connection, which waits for the loop."""
        tries = Tries(self._options)
        while True:
            try:
                return await asyncio.wait_for(self._call(function, mode), self._options.try_timeout)
            except Exception as error:
                tries.check(error)

    async def _call(self, function: Callable[..., T], mode: str) -> T:
        engine = self.engine().execution_options(**levels(self._options, mode))
        async with engine.connect() as connection:
            return await connection.run_sync(function)

    async def close(self) -> None:
        """Close the running loop's connections; those of other loops can only be closed there."""
        engine = self._engines.get().pop(asyncio.get_running_loop(), None)
        if engine is not None:
            await engine.dispose()
