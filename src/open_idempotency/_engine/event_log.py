"""Reporting an event: to the package's logger, and to the policy's listener.

Events of the heartbeat are logged at once. Their listeners are called on a thread of their own, since a listener may
block, and leases have to be renewed meanwhile."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from functools import partial

from open_idempotency import events
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.commands import DrawReference, Emit
from open_idempotency._core.models import Request
from open_idempotency._core.notify import context_of, everyday_log, is_traceparent

logger = logging.getLogger("open_idempotency")

# Everyday events are made where a logger takes them, so that level DEBUG needs no listener (O-33).
everyday_log.on = partial(logger.isEnabledFor, logging.DEBUG)

_LEVELS: dict[type[events.Event], int] = {
    events.ProblemSent: logging.INFO,
    events.OwnershipLost: logging.WARNING,
    events.Recreated: logging.WARNING,
    events.BackendFailed: logging.WARNING,
    events.HookFailed: logging.ERROR,
    events.Unrecorded: logging.ERROR,
    events.RecordedLate: logging.WARNING,
    events.RecordingLost: logging.ERROR,
    events.NotRenewable: logging.ERROR,
    events.StillRunning: logging.WARNING,
    events.FailedOpen: logging.ERROR,
    events.Uncommitted: logging.ERROR,
    events.NotAwaited: logging.ERROR,
    events.RaisedAfterResponse: logging.ERROR,
    events.StageValueNotKept: logging.ERROR,
    events.ResultNotKept: logging.ERROR,
    events.CallerChanged: logging.WARNING,
    events.CredentialScoped: logging.WARNING,
    events.CallerUnidentified: logging.WARNING,
    events.ReplayedWithoutCredentials: logging.WARNING,
    events.NameShared: logging.WARNING,
    events.KeyUnreadable: logging.WARNING,
}
_ADVICE: dict[type[events.Event], str] = {
    events.Unrecorded: (
        "the backend did not record this response in time, so it goes out marked `Idempotency-Status: unrecorded`; the "
        "recording goes on in this process, and RecordedLate or RecordingLost reports its end"
    ),
    events.RecordingLost: (
        "the outcome of this attempt is not on record, so a retry may run, or is running, again; the docs of the event "
        "say what each reason means"
    ),
    events.NotRenewable: (
        "no thread can be started that renews leases, so the request was refused (503), its claim was released and "
        "nothing ran; raise the limit on processes and threads (docker --pids-limit, podPidsLimit of Kubernetes, "
        "ulimit -u, TasksMax of systemd) or the memory, or start fewer threads; the next request tries again"
    ),
    events.Uncommitted: (
        "the view returned a response, and the transaction of its tx= or idem.atomic was left open or rolled back, so "
        "the response does not count and the client got a 500; commit before the view returns, as "
        "`with session.begin():` around it does, and after a rollback return another response"
    ),
    events.NotAwaited: (
        "the view returned a success and never awaited this stage, which has not run, so the response does not count "
        "and the client got a 500; write `await` before idem.arun(...) or idem.asave_stage(...)"
    ),
    events.RaisedAfterResponse: (
        "the application raised after its response was recorded, and a retry replays that response; if the error "
        "undid what the response says (a commit that failed in a dependency or a teardown function), commit before "
        'the response: with FastAPI by Depends(..., scope="function"), elsewhere in the view'
    ),
    events.StageValueNotKept: (
        "the stage is done, and its value cannot be stored: a retry of this request does not run the stage again, and "
        "gets 409 outcome-unknown instead; change the stage as cure= says"
    ),
    events.ResultNotKept: (
        "the function has run, and its result cannot be stored: a later call with this key does not run it again, and "
        "gets OutcomeUnknown instead; change what it returns as cure= says"
    ),
    events.CallerChanged: (
        "the view has changed who its caller is, and no session leads back to it, so a retry of this request is "
        "another caller's and runs again; exempt such a view, let it change the caller last, or set scope="
    ),
    events.KeyUnreadable: (
        "key= found no key in this request, which ran without protection, so a retry runs again; correct the client, "
        "or set required=True, which refuses such a request with 400"
    ),
    events.NameShared: (
        "a request to another host holds the key of this request, so two services may store their keys under one "
        "name; if one of them passes its callers' keys on to the other, the other sends 409 or 422 on every try: set "
        'application="..." to a different name in each. If it is one service with several hosts, nothing is wrong'
    ),
    events.ReplayedWithoutCredentials: (
        "the first client was given credentials (a cookie, a token) that are not stored, and this one got the same "
        "success without them; exempt a view that logs in, or name the headers in drop_headers= where nobody needs them"
    ),
    events.CredentialScoped: (
        "callers are known by the credentials in their headers alone, so a client whose token changes between two "
        "tries is a new caller, and its retry runs again; put the middleware inside authentication, or set scope="
    ),
    events.CallerUnidentified: (
        "nothing that the middleware reads says who this caller is, so it shares one scope with all anonymous callers: "
        "whoever sends a key that another of them has used gets the stored response. If an entry of the session holds "
        "the caller's id, name it by session_identity=; else put the middleware inside authentication and sessions, "
        "name a header by credential_headers=, or return the caller by scope=. If all callers are meant to be one, set "
        'scope="anonymous"'
    ),
}


# Long enough that no two problems of a service share one, and short enough to be read out on the telephone.
_REFERENCE_BYTES = 8


def draw_reference(_: DrawReference) -> str:
    """A random id for one problem and its line in the log."""
    return os.urandom(_REFERENCE_BYTES).hex()


def report(command: Emit) -> None:
    """Log the event and call the listener; a listener that raises is logged and harms no request.

    To be called where the request runs, since telemetry reads the trace there.
    """
    if isinstance(command.listener, events.Telemetry):
        _take_trace(command, command.listener)
    log(command)
    call_listener(command)


def _take_trace(command: Emit, telemetry: events.Telemetry) -> None:
    """Read the trace in which a request runs. An attempt keeps the trace of its claim, for its response."""
    try:
        trace = telemetry.traceparent()
        if not is_traceparent(trace):
            return
    except Exception:
        logger.exception("traceparent() of the on_event listener raised on %s", type(command.event).__name__)
        return
    if isinstance(command.event, events.Claimed) and isinstance(command.of, Attempt):
        command.of.trace_by(trace)
    elif isinstance(command.of, Request):
        object.__setattr__(command.event, "request", context_of(command.of)._replace(traceparent=trace))


def log(command: Emit) -> None:
    """Give an event to the package's logger, after its request was noted in it."""
    event = command.event
    if event.request is events.NO_REQUEST:
        object.__setattr__(event, "request", context_of(command.of))
    kind = type(event)
    advice, level = _ADVICE.get(kind), _LEVELS.get(kind, logging.DEBUG)
    if isinstance(event, events.CallerChanged) and event.followed:
        advice, level = None, logging.DEBUG
    if logger.isEnabledFor(level):
        logger.log(level, "%s%s" if advice is None else f"%s%s: {advice}", event, _where(event.request))


def _where(request: events.RequestContext) -> str:
    trace = f"trace {request.traceparent[3:35]}" if request.traceparent else ""
    found = " ".join(part for part in (request.method, request.route, trace) if part)
    return f" ({found})" if found else ""


def call_listener(command: Emit) -> None:
    """Call the event's listener, if it has one; one that raises is logged."""
    if command.listener is None:
        return
    try:
        command.listener(command.event)
    except Exception:
        logger.exception("the on_event listener raised on %s", type(command.event).__name__)


def report_late_error(attempt: Attempt, error: BaseException) -> None:
    """Report an error that the application raised after the response of this attempt had been recorded.

    Only ordinary exceptions: a cancellation, or a closed generator, says nothing about the application's work.
    """
    if attempt.recorded and attempt.lease is not None and isinstance(error, Exception):
        event = events.RaisedAfterResponse(events.short(attempt.lease.record_id), type(error).__name__)
        report(Emit(event, attempt.policy.on_event, attempt))


#: events that may wait for a listener
MOST_WAITING = 1_000
_LOOK = 0.005

_logger = logging.getLogger("open_idempotency")


class Courier:
    """Carries the events of one heartbeat, in order."""

    def __init__(self) -> None:
        #: how many events were logged only, since a listener did not return in time
        self.dropped = 0
        self._waiting: deque[Emit] = deque()
        self._lock = threading.Lock()
        self._running = False

    def report(self, command: Emit) -> None:
        """Log an event, and have its listener called; returns at once."""
        log(command)
        if command.listener is None:
            return
        with self._lock:
            fits = len(self._waiting) < MOST_WAITING
            if fits:
                self._waiting.append(command)
            else:
                self.dropped += 1
        if not fits and self.dropped == 1:
            _logger.error(
                "on_event does not return, and %d events wait for it; make it return quickly; further events are "
                "logged and counted, and not passed to it",
                MOST_WAITING,
            )
        self.go()

    def go(self) -> bool:
        """Start the thread if there is something to do. False if it cannot be started now."""
        with self._lock:
            if self._running or not self._waiting:
                return True
            self._running = True
        try:
            threading.Thread(target=self._run, name="open-idempotency-events", daemon=True).start()
        except Exception:  # no thread is free: the next event, or the end of the process, tries again
            self._running = False
            return False
        return True

    def flush(self, seconds: float) -> None:
        """Wait until listeners have been called with all reported events, for ``seconds`` at most."""
        if not self.go():
            self._running = True
            self._run()  # at the interpreter's exit Python starts no thread
            return
        deadline = time.monotonic() + seconds
        while self._running and time.monotonic() < deadline:
            time.sleep(_LOOK)

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._running = False
                    break
                command = self._waiting.popleft()
            try:
                call_listener(command)
            except BaseException:  # a listener that wants to end the thread ends nothing but its own call
                _logger.exception("the on_event listener raised on %s", type(command.event).__name__)
        dropped, self.dropped = self.dropped, 0
        if dropped:
            _logger.error("%d events were logged only, since on_event did not return in time", dropped)
