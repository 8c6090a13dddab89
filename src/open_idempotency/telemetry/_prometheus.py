"""Counting in prometheus_client's metrics, in one process or in its multiprocess mode."""

from __future__ import annotations

import os
import threading

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, values

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
    Live,
    Routes,
    guard,
    outcome_of,
    status_of,
)

_FOLDER = "PROMETHEUS_MULTIPROC_DIR"

# The listener is stored on its registry: a table here would keep both alive for ever.
_ATTRIBUTE = "_open_idempotency_telemetry"
_making = threading.Lock()


def listener_on(registry: object) -> Telemetry:
    """The listener that ``telemetry.prometheus`` returns, one for each registry."""
    registry = REGISTRY if registry is None else registry
    if not isinstance(registry, CollectorRegistry):
        raise ConfigurationError(
            f"registry: expected a CollectorRegistry of prometheus_client, got {type(registry).__name__}; leave it out "
            "for the default one"
        )
    with _making:
        found = vars(registry).get(_ATTRIBUTE)
        if not isinstance(found, PrometheusTelemetry):
            found = PrometheusTelemetry(registry, _is_multiprocess())
            setattr(registry, _ATTRIBUTE, found)
        return found


def _is_multiprocess() -> bool:
    """Whether metrics go to files that processes share. Raises ``ConfigurationError`` if they were set up too late."""
    folder = os.environ.get(_FOLDER)
    shared = bool(getattr(values.ValueClass, "_multiprocess", False))
    if folder is None and not shared:
        return False
    if folder is None or not shared:
        raise ConfigurationError(
            f"prometheus: {_FOLDER} was {'un' if shared else ''}set after prometheus_client had been imported, so the "
            "metrics of this process would be missing; set it before the server starts"
        )
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise ConfigurationError(
            f"prometheus: {_FOLDER} is {folder!r}, which is not a folder that this process can write to; create "
            "it, empty, before the server starts"
        )
    return True


def _name(name: str, unit: str = "") -> str:
    return name.replace(".", "_") + unit


class PrometheusTelemetry(Telemetry):
    """Counts events and times backend calls. The client library adds ``_total`` to the counter."""

    def __init__(self, registry: CollectorRegistry, multiprocess: bool) -> None:
        self._multiprocess = multiprocess
        self._routes = Routes()
        # The known series: a lookup here takes a third of the time of the library's own.
        self._series: dict[tuple[str, str, int | None], Counter] = {}
        self._by_verb: dict[str, Histogram] = {}
        self._live = Live()
        try:
            self._outcomes = Counter(_name(COUNTER), COUNTER_HELP, ("outcome", "route", "status"), registry=registry)
            self._calls = Histogram(
                _name(HISTOGRAM, "_seconds"), HISTOGRAM_HELP, ("verb",), registry=registry, buckets=BUCKETS
            )
            self._attempts = Gauge(_name(GAUGE), GAUGE_HELP, registry=registry, multiprocess_mode="livesum")
        except ValueError as error:
            raise ConfigurationError(f"prometheus: the registry has other metrics of these names: {error}") from error
        if not multiprocess:
            self._attempts.set_function(lambda: float(self._live.now))

    def __call__(self, event: Event) -> None:
        """Count the event by outcome, route and status."""
        outcome = outcome_of(event)
        if outcome is None:
            return
        status = status_of(event)
        key = (outcome, self._routes.label(event), status)
        with guard:
            series = self._series.get(key)
            if series is None:
                label = "" if status is None else str(status)
                series = self._series[key] = self._outcomes.labels(outcome, key[1], label)
            series.inc()

    def backend_called(self, verb: str, seconds: float) -> None:
        """Observe the call."""
        with guard:
            series = self._by_verb.get(verb)
            if series is None:
                series = self._by_verb[verb] = self._calls.labels(verb)
            series.observe(seconds)

    def attempts_changed(self, by: int) -> None:
        """Set the gauge. Without the multiprocess mode it is computed at each scrape."""
        self._live.change(by, self._attempts.set if self._multiprocess else None)
