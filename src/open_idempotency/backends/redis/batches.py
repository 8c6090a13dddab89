"""Scripts in batches, on asyncio: what is asked while a batch is on its way goes out with the next, as one write.

What every verb needs of a connection holds for a batch: it is sent once more where the connection broke, scripts that
the server forgot are sent again, and what replicas have to confirm they confirm for all of a batch at once.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Sequence
from typing import Any, NamedTuple

from redis.exceptions import NoScriptError

from open_idempotency.backends._shared.coalescing import Limits, LoopCoalescer
from open_idempotency.backends.redis.clients import ERRORS, may_retry, wrapped
from open_idempotency.backends.redis.line import Destination, Line
from open_idempotency.backends.redis.options import Options
from open_idempotency.backends.redis.replies import confirmed
from open_idempotency.backends.redis.scripts import Argument, Keyed, Script, evaluation
from open_idempotency.backends.redis.wire import packed
from open_idempotency.exceptions import BackendUnavailable


class _Question(NamedTuple):
    script: Script
    keyed: Keyed
    now: Argument
    command: bytes


class Batches:
    """Asks one server for one event loop. With ``replicas`` an answer counts only once as many have what it wrote.

    The server works on one batch while this process reads the answers to another and sends the next: under load
    that is half of the time.
    """

    def __init__(self, options: Options, destination: Destination, *, replicas: int = 0) -> None:
        self._options = options
        self._replicas = replicas
        self._wait = (packed(options.wait_command),) if replicas else ()
        self._line = Line(destination, options.timeout)
        first, second = (LoopCoalescer(self._carry_out, Limits(options.timeout)) for _ in range(2))
        self._next: LoopCoalescer[_Question, Any] = first
        self._other: LoopCoalescer[_Question, Any] = second

    def ask(self, script: Script, keyed: Keyed, now: Argument) -> Awaitable[Any]:
        """Run one script. Raises ``BackendUnavailable``."""
        (key,), arguments = keyed
        command = packed((*script.called, key, now, *arguments))
        if self._next.busy:
            # In turn, so that both have equal parts.
            self._next, self._other = self._other, self._next
        return self._next.ask(_Question(script, keyed, now, command), len(command))

    def close(self) -> None:
        """Close the connection; who waits for an answer is refused."""
        self._line.close()

    async def _carry_out(self, batch: Sequence[_Question]) -> list[Any]:
        started = time.monotonic()
        until = started + self._options.carried_out_within
        try:
            try:
                return await self._tried(batch, until)
            except ERRORS as error:
                if not may_retry(error, started, self._options):
                    raise
                return await self._tried(batch, until)
        except ERRORS as error:
            raise wrapped(error) from error

    async def _tried(self, batch: Sequence[_Question], until: float) -> list[Any]:
        answers = await self._sent([question.command for question in batch], until)
        forgotten = [place for place, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if forgotten:
            again = await self._sent([_in_full(batch[place]) for place in forgotten], until)
            for place, answer in zip(forgotten, again, strict=True):
                answers[place] = answer
        return [_ours(answer) if isinstance(answer, Exception) else answer for answer in answers]

    async def _sent(self, commands: Sequence[bytes], until: float) -> list[Any]:
        found = await self._line.exchange((*commands, *self._wait), until)
        if not self._replicas:
            return found
        # What comes last is how many have all that this connection wrote, so the whole batch.
        having = found.pop()
        return [self._confirmed(reply, having) for reply in found]

    def _confirmed(self, reply: Any, having: Any) -> Any:
        for refusal in (reply, having):
            if isinstance(refusal, Exception):
                return refusal
        try:
            return confirmed((reply, having), self._replicas)
        except BackendUnavailable as error:
            return error


def _in_full(question: _Question) -> bytes:
    return packed(evaluation(question.script, question.keyed, question.now, source=True))


def _ours(error: Exception) -> Exception:
    if isinstance(error, BackendUnavailable):
        return error
    refusal = wrapped(error)
    refusal.__cause__ = error
    return refusal
