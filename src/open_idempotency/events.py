"""Events for metrics and logs: one frozen event for each decision.

A listener is any callable that takes an event; pass it as ``on_event=``. It is called on the request's own thread or
event loop, so it should return quickly. Events of the heartbeat are reported on a thread of their own, so that a slow
listener delays no renewal; a listener should be thread-safe. Events hold short digests, never keys, credentials or
bodies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from open_idempotency.exceptions import first_line

__all__ = [
    "BackendFailed",
    "CallerChanged",
    "CallerUnidentified",
    "Claimed",
    "Completed",
    "Conflicted",
    "CredentialScoped",
    "Event",
    "Failed",
    "FailedOpen",
    "HookFailed",
    "InDoubt",
    "KeyReused",
    "KeyUnreadable",
    "Listener",
    "NameShared",
    "NotAwaited",
    "NotRenewable",
    "OwnershipLost",
    "ProblemSent",
    "QuotaReached",
    "RaisedAfterResponse",
    "RecordedLate",
    "RecordingLost",
    "Recreated",
    "RefusedByScope",
    "Rejected",
    "Released",
    "Replayed",
    "ReplayedWithoutCredentials",
    "RequestContext",
    "ResultNotKept",
    "StageValueNotKept",
    "StillRunning",
    "Telemetry",
    "Uncommitted",
    "Unrecorded",
]

_LONGEST_DETAIL = 300
_LONGEST_NAME = 40


class RequestContext(NamedTuple):
    """The request of an event. Unknown members are empty.

    ``method``: its HTTP method. ``route``: the framework's template of its path, such as ``/orders/{id}``, never the
    path itself. ``traceparent``: its trace, in the form of W3C Trace Context: the trace of the server's span with
    telemetry on, otherwise the request's header ``traceparent``.
    """

    method: str = ""
    route: str = ""
    traceparent: str = ""


#: the context of an event without a request, or whose request is unknown
NO_REQUEST = RequestContext()


@dataclass(frozen=True, slots=True)
class Event:
    """``record``: the first 12 hex digits of the record id. ``request``: the request that the event is about."""

    record: str
    request: RequestContext = field(default=NO_REQUEST, kw_only=True, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Claimed(Event):
    """A request owns its record and runs. ``attempt`` above 1 resumes an earlier attempt."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Replayed(Event):
    """A stored response was sent again; the handler did not run.

    ``first``: the trace of the request that made the response, as ``traceparent``; empty if the response was stored
    without telemetry.
    """

    status: int
    first: str = field(default="", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ReplayedWithoutCredentials(Event):
    """A stored response was sent again without the credentials that the first client got in it.

    ``headers``: the names of the missing headers, ``set-cookie``, ``authorization`` or both. Emitted beside
    ``Replayed``.
    """

    status: int
    headers: str


@dataclass(frozen=True, slots=True)
class Conflicted(Event):
    """A duplicate arrived while the first request was running: 409."""

    remaining: float
    status: int = 409


@dataclass(frozen=True, slots=True)
class KeyReused(Event):
    """The key was used with another request: 422."""

    status: int = 422


@dataclass(frozen=True, slots=True)
class KeyUnreadable(Event):
    """A request ran without protection, since ``key=`` found no key in it. ``reason``: why, in words.

    The body was unreadable for ``key=``, or the key was in the header, which such a route does not read. ``record`` is
    empty: the request has no record.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class ProblemSent(Event):
    """A request got a problem of this library. Emitted for each problem, beside the event of the decision.

    ``record``: empty if the request was refused before its record was known, as without a valid key. ``reference``:
    the random id that the problem contains. ``problem``: its name, such as ``in-progress``. ``attempt``: the number of
    the attempt in question, the request's own or the last recorded one; None if no attempt is known.
    """

    reference: str
    problem: str
    status: int
    attempt: int | None = None


@dataclass(frozen=True, slots=True)
class Rejected(Event):
    """No further attempt is admitted: 409 ``outcome-unknown``. ``reason``: failed, abandoned or attempts."""

    reason: str
    status: int = 409


@dataclass(frozen=True, slots=True)
class RefusedByScope(Event):
    """``scope=`` refused a request with the framework's own exception, which the framework renders. No claim was made.

    ``record`` is empty: the request has no record.
    """

    status: int


@dataclass(frozen=True, slots=True)
class Completed(Event):
    """The response is recorded. ``stored``: false for a tombstone, whose body was not stored."""

    status: int
    stored: bool


@dataclass(frozen=True, slots=True)
class Failed(Event):
    """The attempt ended without a result; a retry resumes from its stages."""

    status: int | None


@dataclass(frozen=True, slots=True)
class Released(Event):
    """The claim was released: the response has a status that is not stored."""

    status: int | None


@dataclass(frozen=True, slots=True)
class OwnershipLost(Event):
    """The attempt outlived its lease, and another attempt took over the record."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Recreated(Event):
    """The record vanished while its owner ran (evicted, flushed), and was written again."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Unrecorded(Event):
    """A response is sent before it is recorded: the backend did not accept it within ``respond_within`` seconds.

    The recording goes on in the background, and ends with ``RecordedLate`` or ``RecordingLost``.
    """

    status: int | None


@dataclass(frozen=True, slots=True)
class RecordedLate(Event):
    """A response that the client already has, or that was cancelled, is recorded now. ``status``: None if cancelled."""

    status: int | None


@dataclass(frozen=True, slots=True)
class RecordingLost(Event):
    """The outcome of an attempt will not be recorded, so a retry may run again, or already runs. ``reason``:
    ``superseded``, a later attempt owns the record; ``time``, ``record_within`` is over; ``room``, too many responses
    wait to be recorded or no thread can be started; ``unreadable``, the record is damaged or of a newer version;
    ``size``, the backend refuses the smallest record for its size; ``exit``, the process ended first.
    """

    status: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class NotRenewable(Event):
    """A request was refused because no thread can be started to renew the lease.

    ``error``: the class name of the cause; ``detail``: its message, shortened.
    """

    error: str
    detail: str

    @classmethod
    def of(cls, record: str, error: BaseException) -> NotRenewable:
        """The event of an error; ``record`` as ``short`` makes it."""
        why = error.__cause__ or error
        return cls(record, type(why).__name__, printable(first_line(why), _LONGEST_DETAIL))


@dataclass(frozen=True, slots=True)
class StillRunning(Event):
    """A handler has been running for four leases, or for a further quarter of ``max_run``.

    ``method`` and ``path``: of its request, shortened; ``seconds``: since the handler started; ``renewed``: whether its
    lease is still renewed.
    """

    attempt: int
    method: str
    path: str
    seconds: float
    renewed: bool

    @classmethod
    def of(cls, record: str, attempt: int, method: str, path: str, seconds: float, renewed: bool) -> StillRunning:
        """The event; ``record`` as ``short`` makes it."""
        return cls(record, attempt, printable(method, 20), printable(path, _LONGEST_DETAIL), round(seconds, 1), renewed)

    def __str__(self) -> str:
        return (
            f"{self.method} {self.path} is still running after {self.seconds:.0f} s (record {self.record}, attempt "
            f"{self.attempt}); "
            + (
                "its key is held, and retries get 409"
                if self.renewed
                else "max_run is over, so its lease is no longer renewed, and a retry may run beside it"
            )
        )


@dataclass(frozen=True, slots=True)
class BackendFailed(Event):
    """A backend call failed during ``verb``.

    ``error``: the class name of the cause; ``detail``: its message, shortened. It may contain a host, a user or a
    table, but no data of a request.
    """

    verb: str
    error: str
    detail: str = ""

    @classmethod
    def of(cls, record: str, verb: str, error: BaseException) -> BackendFailed:
        """The event of an error; ``record`` as ``short`` makes it."""
        detail = printable(first_line(error), _LONGEST_DETAIL)
        return cls(record, verb, type(error.__cause__ or error).__name__, detail)


@dataclass(frozen=True, slots=True)
class HookFailed(Event):
    """A callable of the policy raised after the handler had run, so its default applied. ``hook``: the policy field."""

    hook: str
    error: str


@dataclass(frozen=True, slots=True)
class Uncommitted(Event):
    """A view returned a response and left the transaction of ``tx=`` or ``idem.atomic`` open, or rolled it back."""

    status: int = 500


@dataclass(frozen=True, slots=True)
class NotAwaited(Event):
    """A view returned a success, but never awaited a stage that it had called, so the stage has not run.

    The client got a 500, and nothing is stored. ``stage``: the name of the first such stage.
    """

    stage: str
    status: int = 500


@dataclass(frozen=True, slots=True)
class RaisedAfterResponse(Event):
    """The application raised after its response had been recorded, so a retry replays that response.

    The response is replayed even if the error undid an effect. ``error``: the class name of the exception.
    """

    error: str


@dataclass(frozen=True, slots=True)
class InDoubt(Event):
    """A stage has no recorded value: its end is not recorded, or its value was not stored. ``finding``: the decision.

    It is ``found``, ``not_done`` or ``unknown`` from ``reconcile=``, ``default`` from ``default=``, otherwise ``rerun``
    or ``raise`` from ``on_doubt=``.
    """

    stage: str
    finding: str


@dataclass(frozen=True, slots=True)
class StageValueNotKept(Event):
    """A stage is recorded as done without its value, which cannot be stored. Later attempts do not run it.

    Later attempts get 409 ``outcome-unknown``. With ``reconcile=`` or ``default=`` this event is not emitted.
    ``kind``: the type of the value, or of the error of ``memo_errors=``. ``cure``: what to change. ``record`` is
    empty for a request without a key, since nothing is stored for it.
    """

    stage: str
    kind: str
    cure: str


@dataclass(frozen=True, slots=True)
class ResultNotKept(Event):
    """A call of ``Once`` is recorded as done without its result, which cannot be stored. Later calls do not run it.

    Later calls get ``OutcomeUnknown``. ``name``: the scope of the ``Once``. ``kind``: the type of the result, or of the
    error of ``memo_errors=``. ``cure``: what to change.
    """

    name: str
    kind: str
    cure: str


@dataclass(frozen=True, slots=True)
class QuotaReached(Event):
    """A new key was refused, since its caller has ``limit`` live keys already: 429 ``too-many-keys``."""

    limit: int
    status: int = 429


@dataclass(frozen=True, slots=True)
class FailedOpen(Event):
    """The backend was down, and the route's policy let the request run unprotected."""


@dataclass(frozen=True, slots=True)
class CallerChanged(Event):
    """A view has changed its caller: a login, a logout, a new password.

    ``followed``: whether a retry with the changed session still finds this record. If not, the retry runs again.
    """

    followed: bool


@dataclass(frozen=True, slots=True)
class CredentialScoped(Event):
    """A caller was identified only by the credentials in its headers, so a new token is a new caller. Reported once."""


@dataclass(frozen=True, slots=True)
class CallerUnidentified(Event):
    """An anonymous request has a session or cookies, so it may belong to a known caller. It shares the scope of all
    anonymous callers.

    ``cookies`` and ``entries``: the names of its cookies and of its session's entries, the first five of each,
    shortened, never their values. Reported once.
    """

    cookies: tuple[str, ...]
    entries: tuple[str, ...]

    @classmethod
    def of(cls, record: str, cookies: Iterable[str], entries: Iterable[str]) -> CallerUnidentified:
        """The event; ``record`` as ``short`` makes it."""
        return cls(record, _names(cookies), _names(entries))


@dataclass(frozen=True, slots=True)
class NameShared(Event):
    """A request was refused, 409 or 422, because a request to another host holds its key.

    If the other host is another service, each of the two needs an ``application=`` of its own. ``method`` and ``path``
    are those of the refused request, shortened. Reported once.
    """

    method: str
    path: str

    @classmethod
    def of(cls, record: str, method: str, path: str) -> NameShared:
        """The event; ``record`` as ``short`` makes it."""
        return cls(record, printable(method, 20), printable(path, _LONGEST_DETAIL))


#: what ``on_event=`` accepts
Listener = Callable[[Event], None]


class Telemetry:
    """A listener that also measures. ``open_idempotency.telemetry`` creates them; a subclass can feed another system.

    Pass it to the middleware as ``on_event=``; a route cannot have its own. An error of any method is logged and
    harms no request. The methods are called from many threads, and must be quick. Since 0.1.
    """

    def __call__(self, event: Event) -> None:
        """Take an event, as any listener does."""
        raise NotImplementedError

    def backend_called(self, verb: str, seconds: float) -> None:
        """A backend call has ended or failed. ``verb``: its name, such as ``claim``; ``seconds``: its duration."""

    def attempts_changed(self, by: int) -> None:
        """An attempt has begun in this process (1), or ended (-1)."""

    def traceparent(self) -> str:
        """The caller's current trace, in the form of W3C Trace Context; empty outside of a trace.

        A response is stored with the trace of its request, and ``Replayed.first`` is that trace.
        """
        return ""


def printable(text: str, longest: int) -> str:
    """A text that fits into a line of a log."""
    text = text[:longest]
    return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)


def _names(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(printable(name, _LONGEST_NAME) for name in names)


def short(record_id: bytes) -> str:
    """The short digest of a record id in events and logs."""
    return record_id[:6].hex()
