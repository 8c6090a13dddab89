"""Metrics, traces and log fields: optional listeners for ``on_event=``, and filters that add the record to log lines.

``prometheus()`` needs the extra ``prometheus``, ``opentelemetry()`` the extra ``opentelemetry``. Each makes one counter
of outcomes, one histogram of backend calls and one gauge of live attempts; ``opentelemetry()`` also writes to the
current span. ``RequestFilter`` and ``add_request`` need nothing. No key, user, path, body or header is ever a label, an
attribute or a field.

``DASHBOARD`` and ``ALERTS`` are files for Grafana and Prometheus that belong to these metrics.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from open_idempotency.events import Telemetry
from open_idempotency.exceptions import MissingExtra
from open_idempotency.telemetry._combined import combine
from open_idempotency.telemetry._logs import RequestFilter, add_request

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
