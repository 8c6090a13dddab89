"""Helpers that read metrics and traces from real registries and providers; each belongs to one test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from open_idempotency.events import Telemetry
from open_idempotency.telemetry import opentelemetry

Labels = tuple[tuple[str, str], ...]


def samples(registry: CollectorRegistry, name: str) -> dict[Labels, float]:
    """The samples of a metric that are not zero, by their labels."""
    found = [sample for family in registry.collect() for sample in family.samples if sample.name == name]
    return {tuple(sorted(sample.labels.items())): sample.value for sample in found if sample.value}


def outcomes(registry: CollectorRegistry) -> dict[tuple[str, str, str], float]:
    """The counter of outcomes: by outcome, route and status."""
    found = samples(registry, "idempotency_outcomes_total")
    return {tuple(dict(key)[name] for name in ("outcome", "route", "status")): n for key, n in found.items()}  # type: ignore[misc]  # three each


class Traced:
    """OpenTelemetry's SDK with everything in memory, and a listener on it."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.meters = MeterProvider([self._reader])
        self.listener: Telemetry = opentelemetry(self.meters, self.tracers)

    @contextmanager
    def server(self) -> Iterator[Any]:
        """A span of a server around a request."""
        with self.tracers.get_tracer("server").start_as_current_span("POST") as span:
            yield span

    @property
    def spans(self) -> list[ReadableSpan]:
        """The spans that have ended, in order."""
        return list(self._exporter.get_finished_spans())

    def points(self, name: str) -> list[tuple[Mapping[str, Any], Any]]:
        """The data points of a metric: attributes, and the value or the number of observations."""
        data = self._reader.get_metrics_data()
        metrics = [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics] if data else []
        found = [point for metric in metrics if metric.name == name for point in metric.data.data_points]
        return [(dict(p.attributes or {}), getattr(p, "value", None) or getattr(p, "count", 0)) for p in found]

    @property
    def everything(self) -> str:
        """All exported telemetry, as text."""
        spans = "".join(span.to_json() for span in self.spans)
        data = self._reader.get_metrics_data()
        return spans + ("" if data is None else data.to_json())


def attributes(span: ReadableSpan) -> dict[str, Any]:
    """The attributes of a span."""
    return dict(span.attributes or {})


def linked(span: ReadableSpan) -> list[tuple[int, int]]:
    """The trace ids and span ids that a span is linked to."""
    return [(link.context.trace_id, link.context.span_id) for link in span.links]


def spanned(span: Any) -> tuple[int, int]:
    """The trace id and the span id of a span."""
    context = span.get_span_context()
    return context.trace_id, context.span_id
