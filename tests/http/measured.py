"""The instruments of the variant ``measured``: one registry, one SDK of OpenTelemetry and one list for all adapters."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from open_idempotency.events import Event
from open_idempotency.telemetry import combine, prometheus
from tests.unit.telemetry.reading import Traced

REGISTRY = CollectorRegistry()
TRACED = Traced()
HEARD: list[Event] = []
LISTENER = combine(prometheus(REGISTRY), TRACED.listener, HEARD.append)
