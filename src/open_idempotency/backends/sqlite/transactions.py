"""Group commit: what wants to write while the last transaction is written goes together into the next one.

No answer leaves before its transaction is committed. A refusal, such as LeaseLost, is an answer like others, since a
verb that raises one has written nothing. What SQLite cannot do for one question, as with a value too big for it, is
undone for all, and then each is tried alone; what it can do for none, as while the database is locked, fails them all.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

from open_idempotency._perform.processes import PerProcess
from open_idempotency.backends.coalescing import NOT_ALONE, Limits, ThreadCoalescer
from open_idempotency.backends.sqlite import verbs
from open_idempotency.backends.sqlite.connections import Connections, transaction, wrapped
from open_idempotency.exceptions import BackendUnavailable, IdempotencyError

C = TypeVar("C")
R = TypeVar("R")

#: expired records that are deleted along with each claim, and with all claims of a transaction
_PURGED_PER_CLAIM = 4
_PURGED_AT_ONCE = 100
#: seconds after which expired records are looked for again, where there were few
_PURGE_PAUSE = 1.0


#: is told answers, an exception or None in the place of one
Tell = Callable[[Sequence[Any]], object]


class Question(Generic[C, R]):
    """A verb with its command; ``size``: about how many bytes it writes; ``seconds``: until when it must have begun."""

    __slots__ = ("command", "looked", "size", "until", "verb")

    def __init__(self, verb: verbs.Verb[C, R], command: C, size: int, seconds: float) -> None:
        self.verb = verb
        self.command = command
        self.size = size
        self.until = time.monotonic() + seconds
        self.looked = verb.look is None


class Transactions:
    """Carries out verbs. ``timeout``: seconds within which one must have begun to write; ``durable``: whether a commit
    waits for the disk.
    """

    def __init__(
        self, connections: Connections, clock: verbs.Clock, timeout: float, coalesce: bool, durable: bool
    ) -> None:
        self.timeout = timeout
        self.coalesce = coalesce
        # Without the disk a commit costs less than to wake the threads that share one.
        self._coalesce_threads = coalesce and durable
        self._connections = connections
        self._clock = clock
        self._coalescers: PerProcess[ThreadCoalescer[Question[Any, Any], Any]] = PerProcess(
            lambda: ThreadCoalescer(self._carry_out, Limits(timeout))
        )
        self._purge_from = 0.0

    def ask(self, verb: verbs.Verb[C, R], command: C, size: int = 0) -> R:
        """The answer to one command, once it is durable."""
        answer: Any = self._connections.read(self._look_and_write, verb, command)
        if answer is NOT_ALONE:
            answer = self._write_with_others(verb, command, size)
        answered: R = answer
        return answered

    def _look_and_write(self, connection: sqlite3.Connection, verb: verbs.Verb[C, R], command: C) -> Any:
        answer = None if verb.look is None else verb.look(connection, command, self._clock)
        if answer is not None:
            return answer
        if self._coalesce_threads:
            return self._coalescers.get().alone(self._write_at_once, connection, verb, command)
        return self._write_at_once(connection, verb, command)

    def _write_at_once(self, connection: sqlite3.Connection, verb: verbs.Verb[C, R], command: C) -> Any:
        # Whoever waits for a turn must hold no connection: see Connections.pause.
        turn = self._connections.turn
        try:
            return self._write_alone(connection, verb, command) if turn.acquire(timeout=0) else NOT_ALONE
        finally:
            turn.release()

    def _write_with_others(self, verb: verbs.Verb[C, R], command: C, size: int) -> R:
        if not self._coalesce_threads:
            return self._connections.take_turn(self._write_alone, verb, command)
        written: R = self._coalescers.get().ask(Question(verb, command, size, self.timeout), size)
        return written

    def ask_all(self, questions: Sequence[Question[Any, Any]], tell: Tell | None = None) -> Sequence[Any]:
        """The answers to several, an exception in the place of one that has none. Where some need no write, ``tell``
        gets them before the others are written, None in the place of these.
        """
        if len(questions) == 1:
            (alone,) = questions
            return (self.ask(alone.verb, alone.command, alone.size),)
        answers = self.look(questions)
        left = [
            (question, question.size) for question, answer in zip(questions, answers, strict=True) if answer is None
        ]
        if tell is not None and 0 < len(left) < len(questions):
            tell(answers)
        written = iter(self._coalescers.get().ask_all(left) if left else ())
        return [next(written) if answer is None else answer for answer in answers]

    def look(self, questions: Sequence[Question[Any, Any]]) -> Sequence[Any]:
        """What can be answered without a write; None for the others."""
        if all(question.looked for question in questions):
            return [None] * len(questions)
        return self._connections.read(self._look, questions)

    def _look(self, connection: sqlite3.Connection, questions: Sequence[Question[Any, Any]]) -> Sequence[Any]:
        self._pass_over_new(connection, [question for question in questions if question.verb is verbs.CLAIM])
        return [self._look_for(connection, question) for question in questions]

    def _pass_over_new(self, connection: sqlite3.Connection, claims: Sequence[Question[Any, Any]]) -> None:
        # Most claims are of new keys, and one statement finds them all: each one more lets go of the interpreter.
        if len(claims) < 2:
            return
        # What is no id is told so when it is looked for by itself.
        with suppress(sqlite3.InterfaceError, sqlite3.ProgrammingError):
            found = verbs.find(connection, [claim.command.record_id for claim in claims])
            for claim in claims:
                claim.looked = claim.looked or claim.command.record_id not in found

    def _look_for(self, connection: sqlite3.Connection, question: Question[Any, Any]) -> Any:
        look = question.verb.look
        if look is None or question.looked:
            return None
        question.looked = True
        try:
            return look(connection, question.command, self._clock)
        except sqlite3.OperationalError:
            raise
        except Exception as error:
            return _refused(error)

    def _carry_out(self, questions: Sequence[Question[Any, Any]]) -> Sequence[Any]:
        if len(questions) == 1:
            return (self._carry_out_alone(*questions),)
        now = time.monotonic()
        in_time = [question for question in questions if question.until >= now]
        written = iter(self._connections.take_turn(self._write, in_time) if in_time else ())
        return [next(written) if question.until >= now else self._too_late() for question in questions]

    def _carry_out_alone(self, question: Question[Any, Any]) -> Any:
        if question.until < time.monotonic():
            return self._too_late()
        try:
            return self._connections.take_turn(self._write_alone, question.verb, question.command)
        except IdempotencyError as error:
            return error

    def _write_alone(self, connection: sqlite3.Connection, verb: verbs.Verb[C, R], command: C) -> R:
        answer = None if verb.alone is None else verb.alone(connection, command, self._clock)
        if answer is not None:
            return answer
        with transaction(connection):
            written = verb.write(connection, command, self._clock)
            if verb is verbs.CLAIM:
                self._purge(connection, 1)
        return written

    def _too_late(self) -> BackendUnavailable:
        return BackendUnavailable(f"SQLite: no turn to write within {self.timeout} s")

    def _write(self, connection: sqlite3.Connection, questions: Sequence[Question[Any, Any]]) -> Sequence[Any]:
        started = time.monotonic()
        try:
            return self._transact(connection, questions)
        except sqlite3.OperationalError:
            # Locked, full, not to be read or written: it would be the same for each.
            raise
        except Exception:
            if len(questions) == 1:
                raise
        return [self._write_one(connection, question, started + self.timeout) for question in questions]

    def _write_one(self, connection: sqlite3.Connection, question: Question[Any, Any], until: float) -> Any:
        if time.monotonic() > until:
            return BackendUnavailable("SQLite: no time was left after another write failed")
        try:
            return self._transact(connection, (question,))[0]
        except Exception as error:
            return _refused(error)

    def _transact(self, connection: sqlite3.Connection, questions: Sequence[Question[Any, Any]]) -> Sequence[Any]:
        with transaction(connection):
            answers = [self._answer(connection, question) for question in questions]
            self._purge(connection, sum(question.verb is verbs.CLAIM for question in questions))
        return answers

    def _answer(self, connection: sqlite3.Connection, question: Question[Any, Any]) -> Any:
        try:
            return question.verb.write(connection, question.command, self._clock)
        except IdempotencyError as error:
            return error

    def _purge(self, connection: sqlite3.Connection, claims: int) -> None:
        if not claims:
            return
        now = self._clock()
        # A clock that was put back must not end the purging.
        if self._purge_from - _PURGE_PAUSE <= now < self._purge_from:
            return
        most = min(claims * _PURGED_PER_CLAIM, _PURGED_AT_ONCE)
        purged = verbs.purge_some(connection, now, most)
        self._purge_from = now if purged == most else now + _PURGE_PAUSE


def _refused(error: Exception) -> Exception:
    """What the asker of the one question that SQLite, or the verb, did not take is told."""
    if not isinstance(error, sqlite3.Error):
        return error
    refused = wrapped(error)
    refused.__cause__ = error
    return refused
