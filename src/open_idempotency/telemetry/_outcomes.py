"""The outcome of each event, and the labels of its count. Both sets are bounded.

An event that only explains another one is not counted: a refused duplicate is counted as ``ProblemSent``, so
``Conflicted`` is not counted as well.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping

from open_idempotency import events
from open_idempotency._runtime.processes import PerProcess
from open_idempotency.events import Event

#: the name and meaning of each metric, in OpenTelemetry's form; Prometheus has ``_`` for ``.``, and the unit at the end
COUNTER, COUNTER_HELP = "idempotency.outcomes", "What became of requests, attempts and backend calls, by outcome."
HISTOGRAM, HISTOGRAM_HELP = "idempotency.backend.call.duration", "How long calls of the backend take, by verb."
GAUGE, GAUGE_HELP = "idempotency.live_attempts", "Attempts whose lease this process holds."
#: bounds in seconds, from a call in memory to the slowest call that a backend may make
BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

#: the label of a request without a route, and that of all routes after the first ``MOST_ROUTES``
UNKNOWN_ROUTE, OTHER_ROUTE = "unknown", "other"
MOST_ROUTES = 500

#: the outcome of each kind of event; None for those that are not counted
OUTCOMES: Mapping[type[Event], str | None] = {
    events.Claimed: "claimed",  # "resumed" from the second attempt on
    events.Replayed: "replayed",
    events.Completed: "completed",
    events.Failed: "failed",
    events.Released: "released",
    events.OwnershipLost: "lease_lost",
    events.Recreated: "record_recreated",
    events.Unrecorded: "unrecorded",
    events.RecordedLate: "recorded_late",
    events.RecordingLost: "recording_lost",
    events.StillRunning: "still_running",
    events.BackendFailed: "backend_error",
    events.HookFailed: "hook_error",
    events.RaisedAfterResponse: "raised_after_response",
    events.InDoubt: "stage_in_doubt",
    events.StageValueNotKept: "stage_value_not_kept",
    events.ResultNotKept: "result_not_kept",
    events.KeyUnreadable: "key_unreadable",
    events.FailedOpen: "failed_open",
    events.RefusedByScope: "refused_by_scope",
    events.ProblemSent: "",  # the name of the problem
    # These are counted by ProblemSent, Replayed, Failed or FailedOpen, or are advice that is reported once.
    events.Conflicted: None,
    events.KeyReused: None,
    events.Rejected: None,
    events.QuotaReached: None,
    events.NotRenewable: None,
    events.Uncommitted: None,
    events.NotAwaited: None,
    events.ReplayedWithoutCredentials: None,
    events.CallerChanged: None,
    events.CredentialScoped: None,
    events.CallerUnidentified: None,
    events.NameShared: None,
}


def outcome_of(event: Event) -> str | None:
    """The outcome of an event; None for one that is not counted."""
    if isinstance(event, events.Claimed):
        return "claimed" if event.attempt == 1 else "resumed"
    if isinstance(event, events.ProblemSent):
        return event.problem.replace("-", "_")
    return OUTCOMES.get(type(event))


def status_of(event: Event) -> int | None:
    """The status of the response that an event is about, or None."""
    status = getattr(event, "status", None)
    return status if isinstance(status, int) else None


class Routes:
    """The labels of routes. Their number is bounded, even if an application generates routes."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: set[str] = set()

    def label(self, event: Event) -> str:
        """The label of the route of an event's request."""
        route = event.request.route
        if not route:
            return UNKNOWN_ROUTE
        if route in self._known:
            return route
        if len(self._known) >= MOST_ROUTES:
            return OTHER_ROUTE
        self._known.add(route)
        return route


# A lock that delays a fork while a metric changes, and the number of live attempts in this process.
# Client libraries guard each metric with a lock. If a process forks while another thread holds such a lock, nothing in
# the child releases it, and the first request there would wait for ever.

#: held while a metric changes. A change may be interrupted by a signal handler that reports an event
guard = threading.RLock()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=guard.acquire, after_in_parent=guard.release, after_in_child=guard.release)


class _Number:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class Live:
    """The number of live attempts in this process. A forked child begins with none."""

    __slots__ = ("_numbers",)

    def __init__(self) -> None:
        self._numbers = PerProcess(_Number)

    def change(self, by: int, then: Callable[[int], object] | None = None) -> None:
        """Add ``by``. ``then`` is called with the new number, before it changes again."""
        with guard:
            number = self._numbers.get()
            number.value += by
            if then is not None:
                then(number.value)

    @property
    def now(self) -> int:
        """The number."""
        return self._numbers.get().value
