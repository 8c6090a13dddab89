"""How the blocking colour asks: a statement of its own, or, with what other threads ask, as one batch.

The first few questions go alone, each on a connection of its own, as the server commits them together anyway; those
beyond go as batches, one at a time. Measured: batches alone would halve what 8 threads do, and without any, 64 threads
do two thirds of what they can (``benchmarks/tried/postgres_threads.py``).

A replay that shares a batch with what writes waits for its commit, as it would wait for the last batch anyway; to send
reads apart would take a second round trip for every claim that turns out to be new. A batch of replays, 409 and 422
writes nothing, and waits for no disk.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from open_idempotency._perform.processes import PerProcess
from open_idempotency.backends.coalescing import Limits, ThreadCoalescer
from open_idempotency.backends.postgres.batches import APART, Question, sent
from open_idempotency.backends.postgres.connections import Connections
from open_idempotency.backends.postgres.encoding import Row, Statement
from open_idempotency.backends.postgres.options import Options
from open_idempotency.backends.postgres.running import was_refused
from open_idempotency.backends.postgres.statements import Verb
from open_idempotency.exceptions import BackendUnavailable

#: how many questions go alone at the same time
ALONE = 8


class _Asking:
    """The connections of one process, and what waits for them."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self.connections = Connections(options)
        #: a place for each question that may go alone, where not all do
        self._alone: list[None] = [None] * options.alone(ALONE) if options.coalesce else []
        self._batches: ThreadCoalescer[Question, Row] = ThreadCoalescer(self._carry_out, Limits(options.timeout))

    def ask(self, verb: Verb, c: Any) -> Row:
        """The answer to one question."""
        until = time.monotonic() + self._options.call_timeout
        if not self._options.coalesce:
            return self._send(verb, c, until)
        try:
            place = self._alone.pop()
        except IndexError:
            pass
        else:
            try:
                return self._send(verb, c, until)
            finally:
                self._alone.append(place)
        row = self._batches.ask((verb, c), verb.size(c))
        return self._send(verb, c, until) if row is APART else row

    def _send(self, verb: Verb, c: Any, until: float) -> Row:
        return self.connections.rows(verb.statement, (self._options.now(), *verb.parameters(c)), until)[0]

    def _carry_out(self, questions: Sequence[Question]) -> Sequence[Row]:
        statement, values, read = sent(questions, self._options.now())
        try:
            return read(self.connections.rows(statement, values))
        except BackendUnavailable as error:
            if was_refused(error):
                return [APART] * len(questions)
            raise


class Asking:
    """What a backend asks with; safe to use from many threads, and after a fork."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._mine = PerProcess(lambda: _Asking(options))

    def rows(self, statement: Statement, *values: Any) -> list[Row]:
        """Run a statement whose first parameter is the time. Raises ``BackendUnavailable``."""
        return self._mine.get().connections.rows(statement, (self._options.now(), *values))

    def row(self, verb: Verb, c: Any) -> Row:
        """What the function of the verb answers. Raises ``BackendUnavailable``."""
        return self._mine.get().ask(verb, c)

    def close(self) -> None:
        """Close this process's connections; they open again if the backend is used again."""
        mine = self._mine.pop()
        if mine is not None:
            mine.connections.close()
