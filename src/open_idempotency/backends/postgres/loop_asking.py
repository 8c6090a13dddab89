"""How the asynchronous colour asks on asyncio: see ``asking``; for each event loop of each process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from open_idempotency._perform.processes import PerProcess
from open_idempotency.backends.coalescing import Limits, LoopCoalescer
from open_idempotency.backends.postgres.batches import APART, Question, sent
from open_idempotency.backends.postgres.encoding import Row, Statement
from open_idempotency.backends.postgres.loop_connections import LoopConnections
from open_idempotency.backends.postgres.options import Options
from open_idempotency.backends.postgres.running import was_refused
from open_idempotency.backends.postgres.statements import Verb
from open_idempotency.exceptions import BackendUnavailable

#: how many questions go alone at the same time; fewer than with threads, since each costs the one thread more
ALONE = 3


class _Asking:
    """The connections of one loop, and what waits for them."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self.connections = LoopConnections(options)
        self._alone = options.alone(ALONE)
        self._batches: LoopCoalescer[Question, Row] = LoopCoalescer(self._carry_out, Limits(options.timeout))

    async def ask(self, verb: Verb, c: Any) -> Row:
        """The answer to one question."""
        until = time.monotonic() + self._options.call_timeout
        if self._alone:
            self._alone -= 1
            try:
                return await self._send(verb, c, until)
            finally:
                self._alone += 1
        row = await self._batches.ask((verb, c), verb.size(c))
        return await self._send(verb, c, until) if row is APART else row

    async def _send(self, verb: Verb, c: Any, until: float) -> Row:
        return (await self.connections.rows(verb.statement, (self._options.now(), *verb.parameters(c)), until))[0]

    async def _carry_out(self, questions: Sequence[Question]) -> Sequence[Row]:
        statement, values, read = sent(questions, self._options.now())
        try:
            return read(await self.connections.rows(statement, values))
        except BackendUnavailable as error:
            if was_refused(error):
                return [APART] * len(questions)
            raise


class LoopAsking:
    """What a backend asks with on asyncio."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._mine: PerProcess[dict[asyncio.AbstractEventLoop, _Asking]] = PerProcess(dict)

    def _get(self) -> _Asking:
        loops = self._mine.get()
        loop = asyncio.get_running_loop()
        mine = loops.get(loop)
        if mine is None:
            # Not a weak dictionary: what waits on a loop holds it, so an entry would keep itself alive.
            for other in [other for other in list(loops) if other.is_closed()]:
                ended = loops.pop(other, None)
                if ended is not None:
                    ended.connections.finish()
            mine = loops[loop] = _Asking(self._options)
        return mine

    async def rows(self, statement: Statement, *values: Any) -> list[Row]:
        """See ``Asking.rows``."""
        return await self._get().connections.rows(statement, (self._options.now(), *values))

    async def row(self, verb: Verb, c: Any) -> Row:
        """See ``Asking.row``."""
        return await self._get().ask(verb, c)

    def close(self) -> None:
        """Close the running loop's connections; those of other loops are closed once these have ended."""
        mine = self._mine.get().pop(asyncio.get_running_loop(), None)
        if mine is not None:
            mine.connections.finish()
