"""How requests reach the server: each in a statement of its own or, while others are on their way, in one batch.

The first few requests go alone, each on a connection of its own, as the server commits them together anyway; those
beyond go as batches, one at a time. Measured: batches alone would halve what 8 threads do, and without any, 64 threads
do two thirds of what they can (``benchmarks/tried/postgres_threads.py``).

A replay that shares a batch with writes waits for their commit, as it would wait for the last batch anyway; to send
reads apart would take a second round trip for every claim that turns out to be new. A batch of replays, 409 and 422
writes nothing, and waits for no disk.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TypeVar

from open_idempotency._runtime.processes import PerProcess
from open_idempotency.backends._shared import sizes
from open_idempotency.backends._shared.coalescing import Limits, LoopCoalescer, ThreadCoalescer
from open_idempotency.backends.postgres.batches import APART, Request, batched
from open_idempotency.backends.postgres.connections import Connections, LoopConnections
from open_idempotency.backends.postgres.encoding import Row
from open_idempotency.backends.postgres.options import Options
from open_idempotency.backends.postgres.running import was_refused
from open_idempotency.backends.postgres.verbs import Verb
from open_idempotency.exceptions import BackendUnavailable, RecordTooLarge

C = TypeVar("C")
R = TypeVar("R")

#: how many requests of threads go alone at the same time
ALONE = 8
#: the same for the tasks of a loop; fewer, since each one costs the loop's only thread more
ALONE_ON_LOOP = 3


class _OfProcess:
    """The connections of one process, and the requests that wait for them."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self.connections = Connections(options)
        #: a permit for each request that may go alone, where not all may
        self._permits: list[None] = [None] * options.alone(ALONE) if options.coalesce else []
        self._batches: ThreadCoalescer[Request, Row] = ThreadCoalescer(self._carry_out, Limits(options.timeout))

    def execute(self, verb: Verb[C, R], c: C) -> Row:
        """The row of one request. Raises ``RecordTooLarge``."""
        sizes.check(verb.size(c), sizes.POSTGRESQL, "what PostgreSQL takes")
        until = time.monotonic() + self._options.call_timeout
        if not self._options.coalesce:
            return self._send(verb, c, until)
        try:
            permit = self._permits.pop()
        except IndexError:
            pass
        else:
            try:
                return self._send(verb, c, until)
            finally:
                self._permits.append(permit)
        row = self._batches.ask((verb, c), verb.size(c))
        return self._send(verb, c, until) if row is APART else row

    def _send(self, verb: Verb[C, R], c: C, until: float) -> Row:
        return self.connections.rows(verb.statement, (self._options.now(), *verb.parameters(c)), until)[0]

    def _carry_out(self, requests: Sequence[Request]) -> Sequence[Row]:
        statement, values, read = batched(requests, self._options.now())
        try:
            return read(self.connections.rows(statement, values))
        except (BackendUnavailable, RecordTooLarge) as error:
            if was_refused(error):
                return [APART] * len(requests)
            raise


class Executor:
    """Carries out verbs for threads; safe to use from many of them, and after a fork."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._of_process = PerProcess(lambda: _OfProcess(options))

    def execute(self, verb: Verb[C, R], c: C) -> R:
        """The response to a command. Raises ``BackendUnavailable`` and what the response stands for."""
        mine = self._of_process.get()
        if verb.hurried is None:
            values = (self._options.now(), *verb.parameters(c))
            return verb.response(c, mine.connections.rows(verb.statement, values))
        return verb.response(c, (mine.execute(verb, c),))

    def close(self) -> None:
        """Close this process's connections; they open again if the backend is used again."""
        mine = self._of_process.pop()
        if mine is not None:
            mine.connections.close()


class _OfLoop:
    """The connections of one event loop, and the requests that wait for them."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self.connections = LoopConnections(options)
        self._permits = options.alone(ALONE_ON_LOOP)
        self._batches: LoopCoalescer[Request, Row] = LoopCoalescer(self._carry_out, Limits(options.timeout))

    async def execute(self, verb: Verb[C, R], c: C) -> Row:
        """The row of one request. Raises ``RecordTooLarge``."""
        sizes.check(verb.size(c), sizes.POSTGRESQL, "what PostgreSQL takes")
        until = time.monotonic() + self._options.call_timeout
        if self._permits:
            self._permits -= 1
            try:
                return await self._send(verb, c, until)
            finally:
                self._permits += 1
        row = await self._batches.ask((verb, c), verb.size(c))
        return await self._send(verb, c, until) if row is APART else row

    async def _send(self, verb: Verb[C, R], c: C, until: float) -> Row:
        return (await self.connections.rows(verb.statement, (self._options.now(), *verb.parameters(c)), until))[0]

    async def _carry_out(self, requests: Sequence[Request]) -> Sequence[Row]:
        statement, values, read = batched(requests, self._options.now())
        try:
            return read(await self.connections.rows(statement, values))
        except (BackendUnavailable, RecordTooLarge) as error:
            if was_refused(error):
                return [APART] * len(requests)
            raise


class AsyncExecutor:
    """Carries out verbs for tasks of asyncio, with connections for each event loop of each process."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._of_loops: PerProcess[dict[asyncio.AbstractEventLoop, _OfLoop]] = PerProcess(dict)

    def of_loop(self) -> _OfLoop:
        """What belongs to the running loop."""
        loops = self._of_loops.get()
        loop = asyncio.get_running_loop()
        mine = loops.get(loop)
        if mine is None:
            # Not a weak dictionary: what waits on a loop holds it, so an entry would keep itself alive.
            for other in [other for other in list(loops) if other.is_closed()]:
                ended = loops.pop(other, None)
                if ended is not None:
                    ended.connections.close()
            mine = loops[loop] = _OfLoop(self._options)
        return mine

    async def execute(self, verb: Verb[C, R], c: C) -> R:
        """See ``Executor.execute``."""
        mine = self.of_loop()
        if verb.hurried is None:
            values = (self._options.now(), *verb.parameters(c))
            return verb.response(c, await mine.connections.rows(verb.statement, values))
        return verb.response(c, (await mine.execute(verb, c),))

    def close(self) -> None:
        """Close the running loop's connections; those of other loops are closed once these have ended."""
        mine = self._of_loops.get().pop(asyncio.get_running_loop(), None)
        if mine is not None:
            mine.connections.close()
