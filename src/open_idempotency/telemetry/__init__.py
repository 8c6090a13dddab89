"""Metrics, traces and log fields: optional listeners for ``on_event=``, and filters that add the record to log lines.

``prometheus()`` needs the extra ``prometheus``, ``opentelemetry()`` the extra ``opentelemetry``. Each makes one counter
of outcomes, one histogram of backend calls and one gauge of live attempts; ``opentelemetry()`` also writes to the
current span. ``RequestFilter`` and ``add_request`` need nothing. No key, user, path, body or header is ever a label, an
attribute or a field.

``DASHBOARD`` and ``ALERTS`` are files for Grafana and Prometheus that belong to these metrics.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from open_idempotency import events
from open_idempotency._engine.engine import running
from open_idempotency.events import Event, Listener, Telemetry
from open_idempotency.exceptions import ConfigurationError, MissingExtra

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider
    from prometheus_client import CollectorRegistry

__all__ = ["ALERTS", "DASHBOARD", "RequestFilter", "add_request", "combine", "opentelemetry", "prometheus"]

#: a dashboard for Grafana, as JSON to be imported or provisioned
DASHBOARD = Path(__file__).with_name("grafana.json")
#: alert rules for Prometheus, for its ``rule_files``
ALERTS = Path(__file__).with_name("alerts.yml")


def prometheus(registry: CollectorRegistry | None = None) -> Telemetry:
    """A listener that counts in prometheus_client's metrics. ``registry``: None for the default one.

    One registry has one listener, so several middlewares and test clients may each ask for it. In the multiprocess mode
    of prometheus_client the metrics go to its files. Raises ``ConfigurationError`` for another kind of
    registry, for names that are taken, and for a multiprocess mode that was not set up before prometheus_client was
    imported; ``MissingExtra`` without prometheus_client. Since 0.1.
    """
    try:
        from open_idempotency.telemetry._prometheus import listener_on
    except ModuleNotFoundError as error:
        raise _missing(error, "prometheus_client", "prometheus()", "prometheus") from error
    return listener_on(registry)


def opentelemetry(
    meter_provider: MeterProvider | None = None, tracer_provider: TracerProvider | None = None
) -> Telemetry:
    """A listener that counts in OpenTelemetry's metrics and writes to the current span; None: the global providers.

    The span that is current at the claim gets the record, the attempt and the outcome as attributes. It is the server's
    span if the middleware is inside the instrumentation. A response is stored with the trace of its request, and the
    span of a replay gets a link to that trace. Raises ``ConfigurationError`` for what is no provider; ``MissingExtra``
    without the API of OpenTelemetry. Since 0.1.
    """
    try:
        from open_idempotency.telemetry._opentelemetry import listener_with
    except ModuleNotFoundError as error:
        raise _missing(error, "opentelemetry", "opentelemetry()", "opentelemetry") from error
    return listener_with(meter_provider, tracer_provider)


def _missing(error: ModuleNotFoundError, package: str, function: str, extra: str) -> Exception:
    """The error for a package that is not installed; ``error`` itself if another module is missing."""
    if (error.name or "").partition(".")[0] != package:
        return error
    return MissingExtra(f"telemetry.{function} needs a package: pip install 'open-idempotency[{extra}]'")


# Several listeners as one.

_logger = logging.getLogger("open_idempotency")


def combine(*listeners: Listener) -> Listener:
    """One listener that calls several, in order. If one raises, the error is logged and the others are still called.

    ``on_event=combine(prometheus(), opentelemetry(), mine)``. Raises ``ConfigurationError`` without a listener, and for
    one that is not callable. Since 0.1.
    """
    if not listeners:
        raise ConfigurationError("combine: no listener was given; pass at least one")
    for each in listeners:
        if not callable(each) or inspect.iscoroutinefunction(each):
            raise ConfigurationError(f"combine: expected plain callables that take an event, got {each!r}")
    if any(isinstance(each, Telemetry) for each in listeners):
        return _CombinedTelemetry(listeners)
    return _Combined(listeners)


class _Combined:
    def __init__(self, listeners: tuple[Listener, ...]) -> None:
        self._listeners = listeners

    def __call__(self, event: Event) -> None:
        for each in self._listeners:
            try:
                each(event)
            except Exception:
                _logger.exception("an on_event listener raised on %s", type(event).__name__)


class _CombinedTelemetry(_Combined, Telemetry):
    def __init__(self, listeners: tuple[Listener, ...]) -> None:
        super().__init__(listeners)
        self._measuring = [each for each in listeners if isinstance(each, Telemetry)]

    def backend_called(self, verb: str, seconds: float) -> None:
        for each in self._measuring:
            try:
                each.backend_called(verb, seconds)
            except Exception:
                _logger.exception("backend_called() of an on_event listener raised on %s", verb)

    def attempts_changed(self, by: int) -> None:
        for each in self._measuring:
            try:
                each.attempts_changed(by)
            except Exception:
                _logger.exception("attempts_changed() of an on_event listener raised")

    def traceparent(self) -> str:
        return next((found for each in self._measuring if (found := each.traceparent())), "")


# The record and the attempt in each line that is logged while a request runs, by ``logging`` or by structlog.
# Both read the same context variable as ``idem``. It is set on the event loop, in threads that the framework starts for
# the request, and in threads that the application starts by ``contextvars.copy_context().run``.

#: the value of a field outside of a request with a key
NONE = "-"


class RequestFilter(logging.Filter):
    """Gives each line the fields ``record``, ``attempt`` and ``reference``, for ``%(record)s`` in a format.

    Add it to a handler, so that the lines of all loggers pass it; with a ``QueueHandler`` to that handler, since its
    listener works in another thread. A line of this library has the fields of its event, even from the heartbeat.
    ``reference`` is that of the problem in the line ``ProblemSent``. A field without a value is ``-``. Every line
    passes. Since 0.1.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields. Returns true, so the line is logged."""
        found = _of_event(record) or _of_request()
        record.record, record.attempt, record.reference = found or (NONE, NONE, NONE)
        return True


def add_request(logger: Any, name: str, event_dict: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: adds ``record`` and ``attempt`` to each line of a request with a key.

    A value of that name in the line is kept. Outside of such a request nothing is added. Since 0.1.
    """
    found = _of_request()
    if found is not None:
        event_dict.setdefault("record", found[0])
        event_dict.setdefault("attempt", found[1])
    return event_dict


Fields = tuple[str, "int | str", str]


def _of_event(line: logging.LogRecord) -> Fields | None:
    """The fields of a line in which this library logs an event."""
    args = line.args
    if line.name != "open_idempotency" or not isinstance(args, tuple) or not args:
        return None
    event = args[0]
    if not isinstance(event, events.Event):
        return None
    attempt = getattr(event, "attempt", None)
    if attempt is None:
        here = _of_request()
        attempt = here[1] if here is not None and here[0] == event.record else NONE
    return event.record or NONE, attempt, getattr(event, "reference", NONE)


def _of_request() -> Fields | None:
    """The fields of the request that runs here; None outside of a request with a key."""
    here = running.get()
    lease = None if here is None else here[0].lease
    return None if lease is None else (events.short(lease.record_id), lease.attempt, NONE)
