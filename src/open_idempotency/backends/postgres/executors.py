"""How requests reach the server: each in a statement of its own or, while others are on their way, in one batch.

The first few requests go alone, each on a connection of its own, as the server commits them together anyway. Further
requests go as batches, one at a time. Measured: with batches only, the throughput of 8 threads is halved; without
batches, that of 64 threads is two thirds (``benchmarks/tried/postgres_threads.py``).

A batch is many requests in one statement. ``Batch`` groups them, has their parameters, and finds the row of each
request in the reply. A request that the statement leaves out has the row ``APART``: its caller sends it alone, after
the batch.

A replay that shares a batch with writes waits for their commit, as it would wait for the batch before anyway. Sending
reads separately would take a second round trip for every claim of a new key. A batch of replays, 409 and 422 writes
nothing, and waits for no disk.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from open_idempotency._runtime.processes import PerProcess
from open_idempotency.backend import Claim, Complete, Fail, Lease, Release, SaveStage
from open_idempotency.backends._shared import sizes
from open_idempotency.backends._shared.coalescing import Limits, LoopCoalescer, ThreadCoalescer
from open_idempotency.backends.postgres.connections import Connections, LoopConnections, was_refused
from open_idempotency.backends.postgres.options import Options
from open_idempotency.backends.postgres.verbs import (
    CLAIM,
    COMPLETE,
    FAIL,
    RELEASE,
    SAVE_STAGE,
    Row,
    Statement,
    Verb,
    stage_key,
)
from open_idempotency.exceptions import BackendUnavailable, RecordTooLarge

# Batches

#: a verb and its command
Request = tuple[Verb[Any, Any], Any]
#: the row of a request that is to be sent alone
APART: Final[Row] = ()

_CLAIMS, _ENDS, _STAGES, _RELEASES = range(4)
_GROUPS: dict[Verb[Any, Any], int] = {
    CLAIM: _CLAIMS,
    COMPLETE: _ENDS,
    FAIL: _ENDS,
    SAVE_STAGE: _STAGES,
    RELEASE: _RELEASES,
}
# Claims come first: see the functions.
_CALLS = (
    "claims({now}, {bytea[]}, {bytea[]}, {bytea[]}, {double precision[]}, {double precision[]}, {bytea[]})",
    "ends({now}, {bytea[]}, {bytea[]}, {bigint[]}, {integer[]}, {boolean[]}, {bytea[]}, {double precision[]})",
    "save_stages({now}, {bytea[]}, {bytea[]}, {bigint[]}, {double precision[]}, {bytea[]}, {bytea[]}, {bytea[]})",
    "releases({now}, {bytea[]}, {bytea[]}, {bigint[]})",
)


def _statement(groups: int) -> Statement:
    """The statement for the groups whose bits are set."""
    calls = [call for group, call in enumerate(_CALLS) if groups >> group & 1]
    text = " UNION ALL ".join("".join(("SELECT * FROM open_idempotency.", call)) for call in calls)
    return Statement(text.replace("{now}", "{double precision}"))


_STATEMENTS = [_statement(groups) for groups in range(1 << len(_CALLS))]


def _owned(leases: Sequence[Lease]) -> list[list[Any]]:
    return [[lease.record_id for lease in leases], [lease.owner for lease in leases], [lease.token for lease in leases]]


def _claims(commands: Sequence[Claim]) -> list[list[Any]]:
    return [
        [c.record_id for c in commands],
        [c.owner for c in commands],
        [c.fingerprint for c in commands],
        [c.lease for c in commands],
        [c.ttl for c in commands],
        [c.about for c in commands],
    ]


def _ends(commands: Sequence[Complete | Fail]) -> list[list[Any]]:
    return [
        *_owned([c.lease for c in commands]),
        [3 if isinstance(c, Fail) else 2 for c in commands],
        [isinstance(c, Fail) and c.final for c in commands],
        [c.response for c in commands],
        [c.lease.ttl for c in commands],
    ]


def _stages(commands: Sequence[SaveStage]) -> list[list[Any]]:
    keys = [stage_key(c.stage) for c in commands]
    return [
        *_owned([c.lease for c in commands]),
        [c.lease.duration for c in commands],
        [name for name, _ in keys],
        [key for _, key in keys],
        [c.stage.frame for c in commands],
    ]


def _releases(commands: Sequence[Release]) -> list[list[Any]]:
    return _owned([c.lease for c in commands])


_COLUMNS: tuple[Callable[[Any], list[list[Any]]], ...] = (_claims, _ends, _stages, _releases)


class Batch:
    """The requests of one statement, by group; a record's requests stay in the order in which they were made."""

    __slots__ = ("_grouped", "_requests", "_rows", "statement")

    def __init__(self, requests: Sequence[Request]) -> None:
        self._requests = requests
        self._rows: list[Row] = [APART] * len(requests)
        #: by group, the indexes of its requests
        self._grouped: tuple[list[int], ...] = ([], [], [], [])
        first: dict[bytes, int] = {}
        for index, (verb, c) in enumerate(requests):
            group = _GROUPS[verb]
            record_id = c.record_id if group == _CLAIMS else c.lease.record_id
            # Groups are carried out one after the other, so one record's requests of two groups might change order.
            if first.setdefault(record_id, group) == group:
                self._grouped[group].append(index)
        self.statement = _STATEMENTS[sum(1 << group for group, indexes in enumerate(self._grouped) if indexes)]

    def parameters(self, now: float | None) -> list[Any]:
        """The parameters of the statement. ``now``: the time of a test's clock, or None."""
        parameters: list[Any] = []
        for columns, indexes in zip(_COLUMNS, self._grouped, strict=True):
            if indexes:
                parameters += (now, *columns([self._requests[index][1] for index in indexes]))
        return parameters

    def rows(self, replies: Sequence[Row]) -> Sequence[Row]:
        """The row for each request: the row that the function of its verb returned, or ``APART``."""
        for group, number, *reply in replies:
            indexes = self._grouped[group]
            for index in indexes[number - 1 : number] if number else indexes:
                self._rows[index] = self._row(group, index, reply)
        return self._rows

    def _row(self, group: int, index: int, reply: Sequence[Any]) -> Row:
        code, token, elapsed, remaining, response = reply
        if group == _CLAIMS:
            return (code, None, token, 1, elapsed, remaining, response, None, None, None)
        return (code, self._requests[index][1].stage.frame) if group == _STAGES else (code,)


#: a statement, the values of its parameters, and what makes the rows of the requests from its rows
Sent = tuple[Statement, Sequence[Any], Callable[[Sequence[Row]], Sequence[Row]]]


def batched(requests: Sequence[Request], now: float | None) -> Sent:
    """The statement for one request or for a batch of several. ``now``: the time of a test's clock, or None."""
    if len(requests) == 1:
        ((verb, c),) = requests
        return verb.hurried or verb.statement, (now, *verb.parameters(c)), lambda rows: rows
    batch = Batch(requests)
    return batch.statement, batch.parameters(now), batch.rows


# Executors

C = TypeVar("C")
R = TypeVar("R")

#: how many requests of threads go alone at the same time
ALONE = 8
#: the same for the tasks of a loop; fewer, since each request takes time of the loop's only thread
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
        """The response to a command. Raises ``BackendUnavailable``, and the error that the response stands for."""
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
        """The connections of the running loop."""
        loops = self._of_loops.get()
        loop = asyncio.get_running_loop()
        mine = loops.get(loop)
        if mine is None:
            # Not a weak dictionary: what waits on a loop holds it, so an entry would keep itself alive.
            self.close_ended()
            mine = loops[loop] = _OfLoop(self._options)
        return mine

    async def execute(self, verb: Verb[C, R], c: C) -> R:
        """See ``Executor.execute``."""
        mine = self.of_loop()
        if verb.hurried is None:
            values = (self._options.now(), *verb.parameters(c))
            return verb.response(c, await mine.connections.rows(verb.statement, values))
        return verb.response(c, (await mine.execute(verb, c),))

    def close_ended(self) -> None:
        """Close the connections of event loops that have ended; from any thread."""
        loops = self._of_loops.get()
        for other in [other for other in list(loops) if other.is_closed()]:
            ended = loops.pop(other, None)
            if ended is not None:
                ended.connections.close()

    def close(self) -> None:
        """Close the running loop's connections; those of other loops are closed once these have ended."""
        mine = self._of_loops.get().pop(asyncio.get_running_loop(), None)
        if mine is not None:
            mine.connections.close()
