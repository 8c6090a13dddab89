"""One attempt at one request: its lease, the stages known so far, its ledger, and what became of it.

The adapter that runs the request, the helper ``idem`` and the heartbeat share an ``Attempt``. It performs nothing. Its
attributes are read everywhere and changed by its methods alone.

A ledger is a table in the application's own database (S-05 to S-06c). Stages and the response are written in the
application's own transactions, so whether they count is known only when those have ended. The client library is asked
first. If it does not know, ``settlement`` asks the database through ``proof``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from math import inf
from types import MappingProxyType
from typing import NamedTuple, Protocol, TypeVar

from open_idempotency._core.keys import Caller
from open_idempotency._core.models import Headers, Lease, Request, Response, Stage
from open_idempotency.exceptions import (
    AlreadyCommitted,
    AlreadyCompleted,
    KeyReused,
    LeaseLost,
    OutcomeUnknown,
    StageConflict,
)
from open_idempotency.policy import IdempotencyPolicy

# What an attempt has written into a ledger (S-05 to S-06c)

StageId = tuple[str, str]


class End(Enum):
    """How a transaction of the application has ended, as far as its client library reports it."""

    #: neither committed nor rolled back, or closed without either
    OPEN = "open"
    COMMITTED = "committed"
    #: the rows and their ledger entries were discarded, or at least no COMMIT was seen
    ROLLED_BACK = "rolled back"
    #: the COMMIT raised, so it may have arrived or not
    DOUBTFUL = "doubtful"
    #: the library reports nothing
    UNREPORTED = "unreported"


Proof = Callable[[], bool | Awaitable[bool]]


class Watch(NamedTuple):
    """Reports the end of one transaction of the application. ``end``: returns what the client library knows.

    ``proof``: asks the database, on a connection of its own, whether the response was committed. It is sync or async,
    as the caller needs it; None where the database cannot be asked.
    """

    end: Callable[[], End]
    proof: Proof | None = None


class LedgerResponse(NamedTuple):
    """A response in the ledger."""

    #: in its stored form, without the headers that belong to one connection or one moment
    response: Response
    #: the stored bytes
    frame: bytes
    #: whether the stored bytes contain the body
    whole: bool
    #: the transaction that it was written in, as ``Transaction.entered`` identifies it
    transaction: object
    watch: Watch


class LedgerState:
    """The stages and the response that one attempt has put into ledgers."""

    __slots__ = ("_stages", "stored")

    def __init__(self) -> None:
        #: the response, once it was put into a ledger
        self.stored: LedgerResponse | None = None
        self._stages: dict[StageId, Watch] = {}

    def put_stage(self, stage: StageId, watch: Watch) -> None:
        """Note that a stage was written in a transaction. One attribute is replaced, so any thread may."""
        self._stages = {**self._stages, stage: watch}

    def put_response(self, stored: LedgerResponse) -> None:
        """Note that the response was written in a transaction."""
        self.stored = stored

    def prove_commit(self) -> None:
        """Note that the response was found from outside of its transaction, so its COMMIT has succeeded."""
        if self.stored is not None:
            self.stored = self.stored._replace(watch=Watch(lambda: End.COMMITTED))

    def end(self) -> End | None:
        """How the response's transaction has ended; None if there is no response."""
        return None if self.stored is None else self.stored.watch.end()

    def lacks_commit(self, response: Response) -> bool:
        """Whether one of its transactions was left open, or the transaction of this response was not committed."""
        own = self.end()
        if own is End.OPEN or any(watch.end() is End.OPEN for watch in self._stages.values()):
            return True
        return own in (End.ROLLED_BACK, End.DOUBTFUL) and self._is_stored(response)

    def counts(self, response: Response) -> bool:
        """Whether the view returned the response that it has committed, as far as that is known."""
        return self._is_stored(response) and self.end() in (End.COMMITTED, End.UNREPORTED)

    def committed_response(self) -> Response | None:
        """The response in the ledger, if its COMMIT is known to have succeeded."""
        return self.stored.response if self.stored is not None and self.end() is End.COMMITTED else None

    def missing_proof(self) -> Proof | None:
        """The function that asks the database for the response; None if the end is known or it cannot be asked."""
        if self.stored is None or self.end() not in (End.UNREPORTED, End.DOUBTFUL):
            return None
        return self.stored.watch.proof

    def _is_stored(self, response: Response) -> bool:
        """Whether this is the response in the ledger, whatever headers were added to it since.

        After a rollback a view may well return another one. A body that was encoded since cannot be compared.
        """
        if self.stored is None or response.status != self.stored.response.status:
            return False
        stored = self.stored.response
        if stored.body == response.body or None in (stored.body, response.body):
            return True
        return _is_encoded(response) != _is_encoded(stored)


def _is_encoded(response: Response) -> bool:
    return any(name.lower() == b"content-encoding" for name, _ in response.headers)


# The attempt

Interruption = TypeVar("Interruption", bound=OutcomeUnknown | KeyReused | AlreadyCommitted)

_NO_VALUES: Mapping[StageId, object] = MappingProxyType({})
_NO_STAGES: Mapping[StageId, bytes] = MappingProxyType({})


class Phase(Enum):
    """Where an attempt stands."""

    RUNNING = "running"
    ENDED = "ended"


class Threads(Protocol):
    """Code of a request that runs in threads of its process, where no cancellation reaches it (L-09)."""

    @property
    def running(self) -> bool:
        """Whether any of that code runs at this moment."""
        ...

    @property
    def left_behind(self) -> bool:
        """Whether any of that code still runs although the task that awaited it was cancelled."""
        ...

    def ran_within(self, seconds: float) -> bool:
        """Whether any of that code runs, or ended at most ``seconds`` ago."""
        ...


class Calls(Protocol):
    """Coroutines of stages, of which each has to begin before the attempt ends (O-36)."""

    def end(self) -> tuple[str, ...]:
        """The names of stages whose coroutines have not begun and can no longer be awaited."""
        ...


class NotRenewable(Exception):
    """No thread can be started that renews the lease of an attempt, so its claim was released.

    ``first``: whether this was the first attempt, so that the record is gone.
    """

    def __init__(self, first: bool) -> None:
        self.first = first


class Attempt:
    """A running request. Without a lease it is a covered request without a key: its stages run unrecorded.

    Not slotted: requests without a key make one too, and the defaults on the class save them setting each attribute.
    """

    lease: Lease | None = None
    #: frames by (name, key), in the order in which they were saved
    stages: Mapping[StageId, bytes] = _NO_STAGES
    _recorded: dict[StageId, bytes]
    #: the seed of downstream keys; without a lease it is random, and made on first use
    seed: bytes = b""
    #: the caller whose quota the key counts towards, where there is one
    scope_id: bytes | None = None
    #: the request's path, for problems and the log
    instance: str = ""
    #: the request's method, for events and the log
    method: str = ""
    #: the template of the request's route, as ``Request.route``
    route_template: str | None = None
    #: the trace that its response is stored with, as ``traceparent``; empty without telemetry
    trace: str = ""
    phase: Phase = Phase.RUNNING
    #: another attempt owns the record, as the heartbeat or a refused verb has found
    lost: bool = False
    #: the error that interrupted the view: a stage is in doubt, or the ledger has the response already, or another
    #: request under this key
    interrupted: OutcomeUnknown | KeyReused | AlreadyCommitted | None = None
    #: the stages and the response that it has put into a ledger; None while there are none
    ledger: LedgerState | None = None
    #: the values of this attempt's own stages that could not be stored
    live: Mapping[StageId, object] = _NO_VALUES
    #: a response and the result of ``store=`` for it, so that the hook is called once
    stored: tuple[Response, bool | None] | None = None
    #: seconds on the clock of ``Now`` until which the lease is known to last
    sure_until: float = inf
    #: its response is on record, or was sent unrecorded: a retry will, or may, get it
    recorded: bool = False
    #: the headers of the request, whose origin is read if a layer inside sets CORS headers
    request_headers: Headers = ()
    #: the server handles no other request in this process meanwhile
    alone: bool = False
    #: seconds on the monotonic clock at which the server ends the request, where that is known
    ends_at: float = inf
    #: its code that runs in threads; None if there is none
    threads: Threads | None = None
    #: who sent the request, if the adapter knows sessions that may lead to another caller (O-14)
    caller: Caller | None = None
    #: the view has changed its caller's session, whose cookie the framework sets around the middleware
    session_changed: bool = False
    #: the view's wish: True to store the response, False to discard it, None for the policy's rule
    keep: bool | None = None
    #: the attempt in whose code this one was begun, where it is a call of ``Once``
    outer: Attempt | None = None
    #: makes a response of the result that is given to ``idem.atomic``; None if the result is a response itself
    as_response: Callable[[object], Response] | None = None
    _used: set[StageId] | None = None
    #: the coroutines of its stages; None where it has none
    calls: Calls | None = None
    #: at its end, the names of stages that were called but never awaited
    unawaited: tuple[str, ...] = ()
    #: ``key=`` has found no key, so the request runs as one without protection
    passes: bool = False
    #: the header that sends the key back with each response; None without ``echo_key``
    echo: tuple[bytes, bytes] | None = None
    #: the request, for ``on_replay=``; None without that hook, and from the end of the attempt on
    hook_request: Request | None = None

    def __init__(self, policy: IdempotencyPolicy) -> None:
        self.policy = policy

    @classmethod
    def without_key(cls, policy: IdempotencyPolicy) -> Attempt:
        """The attempt of a request in which ``key=`` has found no key."""
        attempt = cls(policy)
        attempt.passes = True
        return attempt

    @classmethod
    def of(
        cls,
        lease: Lease,
        stages: tuple[Stage, ...],
        policy: IdempotencyPolicy,
        instance: str,
        *,
        method: str = "",
        route: str | None = None,
        alone: bool = False,
        asked: float = inf,
        request_headers: Headers = (),
    ) -> Attempt:
        """The attempt that a claim has led to.

        ``stages``: those of earlier attempts. ``asked``: when the claim was asked for, on the monotonic clock.
        The others: as the attributes.
        """
        attempt = cls(policy)
        attempt.lease = lease
        attempt.stages = attempt._recorded = {(s.name, s.key): s.frame for s in stages} if stages else {}
        attempt.seed = lease.record_id + lease.fingerprint
        attempt.instance, attempt.method, attempt.route_template, attempt.alone = instance, method, route, alone
        attempt.request_headers = request_headers
        attempt.sure_until = asked + lease.duration
        return attempt

    # Who sent the request, and the limits of its server

    def send_back(self, echo: tuple[bytes, bytes]) -> None:
        """Note the header that sends the key back with each response."""
        self.echo = echo

    def know_request(self, request: Request) -> None:
        """Note the request for ``on_replay=``. It is forgotten at the end, as it may refer to the attempt."""
        self.hook_request = request

    def forget_request(self) -> None:
        """Break the cycle that ``know_request`` may have made."""
        self.hook_request = None

    def sent_by(self, caller: Caller) -> None:
        """Note who sent the request, for an adapter that knows sessions which may lead to another caller (O-14)."""
        self.caller = caller

    def take_caller(self) -> Caller | None:
        """Return who sent the request, and forget it. The caller refers to the request, which may refer to the attempt:
        no cycle is left to the garbage collector.
        """
        caller, self.caller = self.caller, None
        return caller

    def trace_by(self, trace: str) -> None:
        """Note the trace that it was claimed in, as ``traceparent``; its response is stored with it (P-31)."""
        self.trace = trace

    def count_towards(self, scope_id: bytes) -> None:
        """Note the caller whose quota the key counts towards."""
        self.scope_id = scope_id

    def change_session(self) -> None:
        """Note that the view has changed its caller's session, whose cookie is set around the middleware."""
        self.session_changed = True

    def end_by(self, seconds: float) -> None:
        """Note when the server ends the request, in seconds on the monotonic clock."""
        self.ends_at = seconds

    def run_in_threads(self, threads: Threads) -> None:
        """Note the attempt's code that runs in threads. Replaces what was noted before."""
        self.threads = threads

    # A call of ``Once``

    def begin_call(self, outer: Attempt | None, as_response: Callable[[object], Response]) -> None:
        """Note that this is a call of ``Once``: where it was begun, and how a result of it becomes a response."""
        self.outer, self.as_response = outer, as_response

    def runs(self, record_id: bytes) -> bool:
        """Whether this attempt, or one in whose code it was begun, runs for that record."""
        attempt: Attempt | None = self
        while attempt is not None:
            lease = attempt.lease
            if lease is not None and lease.record_id == record_id and attempt.phase is Phase.RUNNING:
                if not attempt.lost:
                    return True
            attempt = attempt.outer
        return False

    # What it does

    def saved(self, stage: Stage) -> None:
        """Note that a stage is on record. The mapping changes in place, since several threads may call this at once."""
        self._recorded[stage.name, stage.key] = stage.frame

    def kept_live(self, stage: StageId, value: object) -> None:
        """Remember a value that cannot be stored while this attempt runs. Several threads may call this at once."""
        vars(self).setdefault("live", {})[stage] = value

    def seeded(self, make: Callable[[], bytes]) -> bytes:
        """The seed of downstream keys. ``make``: makes one if there is no lease to derive it from."""
        if not self.seed:
            self.seed = make()
        return self.seed

    def in_ledger(self) -> LedgerState:
        """The state of its ledgers, made on first use, to add a stage or a response to."""
        if self.ledger is None:
            self.ledger = LedgerState()
        return self.ledger

    def leave_ledger(self) -> None:
        """Forget the state of its ledgers: the transactions belong to the request, which is over."""
        self.ledger = None

    def expect(self, calls: Calls) -> None:
        """Note the coroutines of its stages."""
        self.calls = calls

    # What became of it

    def lose(self) -> bool:
        """Note that another attempt owns the record. True for the first time, when it has to be reported."""
        first, self.lost = not self.lost, True
        return first

    def interrupt(self, error: Interruption) -> Interruption:
        """Note the error that interrupts the view, even if the view catches it. Returns the error, to be raised."""
        self.interrupted = error
        return error

    def end(self) -> None:
        """Note that the handler has returned or raised: no stage belongs to this attempt any more."""
        self.phase = Phase.ENDED
        if self.calls is not None:
            self.unawaited = self.calls.end()

    def wish(self, keep: bool | None) -> None:
        """Note the view's wish for its response: True to store it, False to discard it, None for the policy's rule."""
        self.keep = keep

    def hear_store(self, response: Response, wish: bool | None) -> None:
        """Note the result of ``store=`` for a response, so that the hook is called once."""
        self.stored = response, wish

    def record(self, recorded: bool = True) -> None:
        """Note that its response is on record or is sent unrecorded. False takes that back."""
        self.recorded = recorded

    def confirmed(self, asked: float) -> None:
        """Note that the backend has granted or renewed the lease. ``asked``: monotonic seconds before that call."""
        assert self.lease is not None
        self.sure_until = asked + self.lease.duration

    def check_running(self) -> None:
        """Check the attempt at a stage boundary (S-07). Raises ``AlreadyCompleted`` at its end, and ``LeaseLost``."""
        if self.phase is Phase.ENDED:
            raise AlreadyCompleted("the response is recorded already; stages belong before it")
        if self.lost:
            raise LeaseLost("another attempt has taken this request over; stop here")

    def enter(self, stage: StageId) -> None:
        """Note that this attempt runs a stage. Raises ``StageConflict`` for a second use: a retry could mean either."""
        if self._used is None:
            self._used = set()
        if stage in self._used:
            name, key = stage
            where = f"stage {name!r} with key {key!r}" if key else f"stage {name!r}"
            raise StageConflict(f"{where} was used already in this attempt; give each use its own key=")
        self._used.add(stage)

    def leave(self, stage: StageId) -> None:
        """Take ``enter`` back: the stage failed and may be run again within this attempt."""
        if self._used is not None:
            self._used.discard(stage)
