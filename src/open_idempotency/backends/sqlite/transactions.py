"""Group commit: requests that arrive while the last transaction is written share the next one.

No response leaves before its transaction is committed. A refusal, such as LeaseLost, is a response like others, since a
verb that raises one has written nothing. What SQLite cannot do for one request, as with a value too big for it, is
undone for all, and then each is tried alone. What it can do for none, as while the database is locked, fails them all.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

from open_idempotency._runtime.processes import PerProcess
from open_idempotency.backends._shared.coalescing import NOT_ALONE, Limits, ThreadCoalescer
from open_idempotency.backends.sqlite import verbs
from open_idempotency.backends.sqlite.connections import Connections, is_databases, transaction, wrapped
from open_idempotency.exceptions import BackendUnavailable, IdempotencyError

C = TypeVar("C")
R = TypeVar("R")

#: expired records that are deleted along with each claim, and with all claims of a transaction
_PURGED_PER_CLAIM = 4
_PURGED_AT_ONCE = 100
#: seconds after which expired records are looked for again, where there were few
_PURGE_PAUSE = 1.0


#: takes the responses of a batch, each an exception, or None where there is none yet
Report = Callable[[Sequence[Any]], object]


class Request(Generic[C, R]):
    """A verb with its command. ``size``: about how many bytes it writes. It must begin within ``seconds`` of ``now``.

    ``now``: the clock on which it waits; that of a task does not count time in which its loop stood still.
    """

    __slots__ = ("command", "looked", "now", "size", "until", "verb")

    def __init__(
        self, verb: verbs.Verb[C, R], command: C, seconds: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.verb = verb
        self.command = command
        self.size = 0 if verb.size is None else verb.size(command)
        self.now = now
        self.until = now() + seconds
        self.looked = verb.look is None

    @property
    def is_overdue(self) -> bool:
        """Whether it must not be written any more."""
        return self.until < self.now()


class Transactions:
    """Carries out verbs. ``timeout``: seconds within which each must begin to write. ``durable``: whether a commit
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
        self._coalescers: PerProcess[ThreadCoalescer[Request[Any, Any], Any]] = PerProcess(
            lambda: ThreadCoalescer(self._carry_out, Limits(timeout))
        )
        self._purge_from = 0.0

    def execute(self, verb: verbs.Verb[C, R], command: C) -> R:
        """The response to one command, once it is durable."""
        if verb.reads:
            return self._connections.read(verb.write, command, self._clock)
        response: Any = self._connections.read(self._look_and_write, verb, command)
        if response is NOT_ALONE:
            return self._write_with_others(verb, command)
        found: R = response
        return found

    def _look_and_write(self, connection: sqlite3.Connection, verb: verbs.Verb[C, R], command: C) -> Any:
        response = None if verb.look is None else verb.look(connection, command, self._clock)
        if response is not None:
            return response
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

    def _write_with_others(self, verb: verbs.Verb[C, R], command: C) -> R:
        if not self._coalesce_threads:
            return self._connections.take_turn(self._write_alone, verb, command)
        request = Request(verb, command, self.timeout)
        written: R = self._coalescers.get().ask(request, request.size)
        return written

    def execute_all(self, requests: Sequence[Request[Any, Any]], report: Report | None = None) -> Sequence[Any]:
        """The responses to several requests, each maybe an exception.

        Where some need no write, ``report`` gets them before the others are written, with None instead of these.
        """
        if len(requests) == 1:
            (alone,) = requests
            return (self.execute(alone.verb, alone.command),)
        responses = self.look(requests)
        left = [(request, request.size) for request, found in zip(requests, responses, strict=True) if found is None]
        if report is not None and 0 < len(left) < len(requests):
            report(responses)
        written = iter(self._coalescers.get().ask_all(left) if left else ())
        return [next(written) if found is None else found for found in responses]

    def look(self, requests: Sequence[Request[Any, Any]]) -> Sequence[Any]:
        """The responses that need no write; None for the other requests."""
        if all(request.looked for request in requests):
            return [None] * len(requests)
        return self._connections.read(self._look, requests)

    def _look(self, connection: sqlite3.Connection, requests: Sequence[Request[Any, Any]]) -> Sequence[Any]:
        self._pass_over_new(connection, [request for request in requests if request.verb is verbs.CLAIM])
        return [self._look_for(connection, request) for request in requests]

    def _pass_over_new(self, connection: sqlite3.Connection, claims: Sequence[Request[Any, Any]]) -> None:
        # Most claims are of new keys, and one statement shows that for all: each statement releases the interpreter.
        if len(claims) < 2:
            return
        # A value that cannot be an id is refused when it is looked for by itself.
        with suppress(sqlite3.InterfaceError, sqlite3.ProgrammingError):
            found = verbs.find(connection, [claim.command.record_id for claim in claims])
            for claim in claims:
                claim.looked = claim.looked or claim.command.record_id not in found

    def _look_for(self, connection: sqlite3.Connection, request: Request[Any, Any]) -> Any:
        look = request.verb.look
        if look is None or request.looked:
            return None
        request.looked = True
        try:
            return look(connection, request.command, self._clock)
        except sqlite3.OperationalError:
            raise
        except Exception as error:
            return _refused(error)

    def _carry_out(self, requests: Sequence[Request[Any, Any]]) -> Sequence[Any]:
        if len(requests) == 1:
            return (self._carry_out_alone(*requests),)
        overdue = [request.is_overdue for request in requests]
        in_time = [request for request, late in zip(requests, overdue, strict=True) if not late]
        written = iter(self._connections.take_turn(self._write, in_time) if in_time else ())
        return [self._too_late() if late else next(written) for late in overdue]

    def _carry_out_alone(self, request: Request[Any, Any]) -> Any:
        if request.is_overdue:
            return self._too_late()
        try:
            return self._connections.take_turn(self._write_alone, request.verb, request.command)
        except IdempotencyError as error:
            return error

    def _write_alone(self, connection: sqlite3.Connection, verb: verbs.Verb[C, R], command: C) -> R:
        response = None if verb.alone is None else verb.alone(connection, command, self._clock)
        if response is not None:
            return response
        with transaction(connection):
            written = verb.write(connection, command, self._clock)
            if verb is verbs.CLAIM:
                self._purge(connection, 1)
        return written

    def _too_late(self) -> BackendUnavailable:
        return BackendUnavailable(f"SQLite: no turn to write within {self.timeout} s")

    def _write(self, connection: sqlite3.Connection, requests: Sequence[Request[Any, Any]]) -> Sequence[Any]:
        started = time.monotonic()
        try:
            return self._transact(connection, requests)
        except sqlite3.OperationalError:
            # Locked, full, not to be read or written: it would be the same for each.
            raise
        except Exception:
            if len(requests) == 1:
                raise
        return [self._write_one(connection, request, started + self.timeout) for request in requests]

    def _write_one(self, connection: sqlite3.Connection, request: Request[Any, Any], until: float) -> Any:
        if time.monotonic() > until:
            return BackendUnavailable("SQLite: no time was left after another write failed")
        try:
            return self._transact(connection, (request,))[0]
        except Exception as error:
            return _refused(error)

    def _transact(self, connection: sqlite3.Connection, requests: Sequence[Request[Any, Any]]) -> Sequence[Any]:
        with transaction(connection):
            responses = [self._respond(connection, request) for request in requests]
            self._purge(connection, sum(request.verb is verbs.CLAIM for request in requests))
        return responses

    def _respond(self, connection: sqlite3.Connection, request: Request[Any, Any]) -> Any:
        try:
            return request.verb.write(connection, request.command, self._clock)
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
    """The error for the one request that SQLite or the verb did not accept."""
    if not is_databases(error):
        return error
    refused = wrapped(error)
    refused.__cause__ = error
    return refused
