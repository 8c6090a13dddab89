"""Counting in OpenTelemetry's metrics, and writing to the span that is current, by its semantic conventions."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from importlib.metadata import version

from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
from opentelemetry.trace import Link, SpanContext, TraceFlags, TracerProvider

from open_idempotency import events
from open_idempotency.events import Event, Telemetry
from open_idempotency.exceptions import ConfigurationError
from open_idempotency.telemetry._outcomes import (
    BUCKETS,
    COUNTER,
    COUNTER_HELP,
    GAUGE,
    GAUGE_HELP,
    HISTOGRAM,
    HISTOGRAM_HELP,
    UNKNOWN_ROUTE,
    Live,
    Routes,
    guard,
    outcome_of,
    status_of,
)

_SCOPE = "open_idempotency"
#: attributes: those of HTTP are OpenTelemetry's, the others are ours
OUTCOME, RECORD, ATTEMPT, REFERENCE = (
    "idempotency.outcome",
    "idempotency.record",
    "idempotency.attempt",
    "idempotency.reference",
)
VERB, ROUTE, STATUS, ERROR = "idempotency.verb", "http.route", "http.response.status_code", "error.type"
#: the name of the span of a replay outside of any span
REPLAY = "idempotency replay"
# Events of the decision on a request, at which the current span is the server's.
_DECISIONS = (events.Claimed, events.Replayed, events.ProblemSent, events.RefusedByScope, events.FailedOpen)

Attributes = dict[str, str | int]

# The listener is stored on its provider, since instruments that are created twice are reported twice.
_ATTRIBUTE = "_open_idempotency_telemetry"
_making = threading.Lock()


def listener_with(meter_provider: object, tracer_provider: object) -> Telemetry:
    """The listener that ``telemetry.opentelemetry`` returns, one for each pair of providers."""
    meters = metrics.get_meter_provider() if meter_provider is None else meter_provider
    tracers = trace.get_tracer_provider() if tracer_provider is None else tracer_provider
    if not isinstance(meters, MeterProvider):
        raise ConfigurationError(
            f"meter_provider: expected a MeterProvider of OpenTelemetry, got {type(meters).__name__}; leave it out for "
            "the global one"
        )
    if not isinstance(tracers, TracerProvider):
        raise ConfigurationError(
            f"tracer_provider: expected a TracerProvider of OpenTelemetry, got {type(tracers).__name__}; leave it out "
            "for the global one"
        )
    with _making:
        found = getattr(meters, _ATTRIBUTE, None)
        if not isinstance(found, OpenTelemetry) or not found.writes_to(tracers):
            found = OpenTelemetry(meters, tracers)
            setattr(meters, _ATTRIBUTE, found)
        return found


class OpenTelemetry(Telemetry):
    """Counts events, times backend calls, and writes to the current span."""

    def __init__(self, meters: MeterProvider, tracers: TracerProvider) -> None:
        release = version("open-idempotency")
        self._tracers = tracers
        self._tracer = tracers.get_tracer(_SCOPE, release)
        self._routes = Routes()
        self._live = Live()
        meter = meters.get_meter(_SCOPE, release)
        self._outcomes = meter.create_counter(COUNTER, "{outcome}", COUNTER_HELP)
        self._calls = meter.create_histogram(
            HISTOGRAM, "s", HISTOGRAM_HELP, explicit_bucket_boundaries_advisory=BUCKETS
        )
        meter.create_observable_up_down_counter(GAUGE, (self._observe,), "{attempt}", GAUGE_HELP)

    def writes_to(self, tracers: TracerProvider) -> bool:
        """Whether it makes its spans with this provider."""
        return self._tracers is tracers

    def _observe(self, options: CallbackOptions) -> Iterable[Observation]:
        return (Observation(self._live.now),)

    def __call__(self, event: Event) -> None:
        """Count the event, and write it to the current span."""
        outcome = outcome_of(event)
        if outcome is None:
            return
        counted = _attributes(outcome, event, self._routes.label(event))
        with guard:
            self._outcomes.add(1, counted)
        self._write(event, counted)

    def _write(self, event: Event, counted: Attributes) -> None:
        span = trace.get_current_span()
        first = _span_context(event.first) if isinstance(event, events.Replayed) else None
        written = {**counted, **_of_span(event)}
        if not span.is_recording():
            # The replay is outside of the server's span, or that span is not sampled: the tracer's sampler decides.
            if first is not None:
                self._tracer.start_span(REPLAY, attributes=written, links=(Link(first),)).end()
        elif isinstance(event, _DECISIONS):
            # The instrumentation that made the span sets the route and the status of the request.
            span.set_attributes({name: value for name, value in written.items() if name not in (ROUTE, STATUS)})
            if first is not None:
                span.add_link(first)
        else:
            span.add_event(f"idempotency.{counted[OUTCOME]}", written)

    def backend_called(self, verb: str, seconds: float) -> None:
        """Record the call."""
        with guard:
            self._calls.record(seconds, {VERB: verb})

    def attempts_changed(self, by: int) -> None:
        """Change the number; the metric reader reads it."""
        self._live.change(by)

    def traceparent(self) -> str:
        """The trace of the current span."""
        here = trace.get_current_span().get_span_context()
        return f"00-{here.trace_id:032x}-{here.span_id:016x}-{here.trace_flags:02x}" if here.is_valid else ""


def _attributes(outcome: str, event: Event, route: str) -> Attributes:
    """The attributes that an event is counted by. Unknown ones are left out, as the conventions demand."""
    made: Attributes = {OUTCOME: outcome}
    status = status_of(event)
    if route != UNKNOWN_ROUTE:
        made[ROUTE] = route
    if status is not None:
        made[STATUS] = status
    return made


def _of_span(event: Event) -> Attributes:
    """The further attributes of an event in a span."""
    made: Attributes = {RECORD: event.record} if event.record else {}
    attempt, error = getattr(event, "attempt", None), getattr(event, "error", None)
    if attempt is not None:
        made[ATTEMPT] = attempt
    if error is not None:
        made[ERROR] = error
    if isinstance(event, events.BackendFailed):
        made[VERB] = event.verb
    if isinstance(event, events.ProblemSent):
        made[REFERENCE] = event.reference
    return made


def _span_context(traceparent: str) -> SpanContext | None:
    """The span that a stored response names, or None."""
    parts = traceparent.split("-")
    if len(parts) < 4:
        return None
    try:
        made = SpanContext(int(parts[1], 16), int(parts[2], 16), True, TraceFlags(int(parts[3], 16)))
    except ValueError:  # damaged, or of another implementation: a replay needs no link
        return None
    return made if made.is_valid else None
