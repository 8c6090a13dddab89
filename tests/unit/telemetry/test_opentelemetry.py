"""OpenTelemetry with its own SDK: metrics, span attributes and links."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry import metrics, trace

from open_idempotency import ConfigurationError, events
from open_idempotency._core.models import Response
from open_idempotency._core.stored_response import TRACE, decode_response, encode_response
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.telemetry import combine, opentelemetry
from tests.unit.builders import Listener
from tests.unit.every_adapter import ADAPTERS, KEY
from tests.unit.telemetry.reading import Traced, attributes, linked, spanned

ROUTES = {"fastapi": "/0", "flask": "/0", "django": "0", "django under asgi": "0"}


@pytest.fixture
def traced() -> Traced:
    return Traced()


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_replay_is_linked_to_the_trace_of_the_first_request(adapter: str, traced: Traced) -> None:
    """P-31: on every adapter; the first request has no link."""
    send = ADAPTERS[adapter](MemoryBackend(), (), on_event=traced.listener)
    with traced.server() as first:
        send()
    with traced.server():
        reply = send()
    ran, replay = traced.spans
    assert linked(replay) == [spanned(first)]
    assert not ran.links
    assert not any("trace" in name for name in reply.headers)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_servers_span_says_what_was_decided(adapter: str, traced: Traced) -> None:
    """P-30: it has the record, the attempt and the outcome."""
    heard = Listener()
    send = ADAPTERS[adapter](MemoryBackend(), (), on_event=combine(traced.listener, heard))
    for _ in range(2):
        with traced.server():
            send()
    ran, replay = traced.spans
    record = heard.seen[0].record
    assert attributes(ran) == {
        "idempotency.outcome": "claimed",
        "idempotency.record": record,
        "idempotency.attempt": 1,
    }
    assert [event.name for event in ran.events] == ["idempotency.completed"]
    assert attributes(replay) == {"idempotency.outcome": "replayed", "idempotency.record": record}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_metrics_have_the_names_and_attributes_of_the_semantic_conventions(adapter: str, traced: Traced) -> None:
    """P-26, P-27, P-28: an unknown attribute is left out."""
    send = ADAPTERS[adapter](MemoryBackend(), (), on_event=traced.listener)
    send()
    route = {"http.route": ROUTES[adapter]} if adapter in ROUTES else {}
    counted = traced.points("idempotency.outcomes")
    assert sorted(counted, key=str) == [
        ({"idempotency.outcome": "claimed", **route}, 1),
        ({"idempotency.outcome": "completed", **route, "http.response.status_code": 201}, 1),
    ]
    verbs = [(found["idempotency.verb"], count) for found, count in traced.points("idempotency.backend.call.duration")]
    assert sorted(verbs) == [("claim", 1), ("complete", 1)]
    assert traced.points("idempotency.live_attempts") == [({}, 0)]


def test_a_problem_is_found_by_the_reference_in_its_span(traced: Traced) -> None:
    """P-30: the client has the same reference."""
    heard = Listener()
    send = ADAPTERS["asgi"](MemoryBackend(), (), on_event=combine(traced.listener, heard), validate=lambda key: False)
    with traced.server():
        reply = send()
    (span,) = traced.spans
    assert attributes(span)["idempotency.reference"] == reply.problem["reference"]
    assert attributes(span)["idempotency.outcome"] == "key_malformed"


def test_a_replay_outside_of_any_span_gets_one_of_its_own(traced: Traced) -> None:
    """P-31: so the link is not lost."""
    send = ADAPTERS["asgi"](MemoryBackend(), (), on_event=traced.listener)
    with traced.server() as first:
        send()
    send()
    _, replay = traced.spans
    assert replay.name == "idempotency replay"
    assert linked(replay) == [spanned(first)]


def test_without_telemetry_nothing_of_a_trace_is_stored() -> None:
    """P-31: a plain listener changes no stored byte."""
    backend = MemoryBackend()
    ADAPTERS["asgi"](backend, (), on_event=Listener())()
    (record,) = backend.scan()
    assert record.response is not None
    assert TRACE not in record.response


def test_an_event_has_the_trace_of_the_servers_span(traced: Traced) -> None:
    """P-25: also if the client has sent no ``traceparent``."""
    heard = Listener()
    send = ADAPTERS["asgi"](MemoryBackend(), (), on_event=combine(heard, traced.listener))
    for _ in range(2):
        with traced.server() as span:
            send()
    claimed, completed, replayed = heard.seen
    assert isinstance(replayed, events.Replayed)
    assert claimed.request.traceparent == completed.request.traceparent == replayed.first
    assert f"{span.get_span_context().trace_id:032x}" in replayed.request.traceparent


def test_a_stored_trace_is_a_header_that_earlier_versions_can_read() -> None:
    """P-31, B-13: the frame has the version that they know; a frame without a trace is unchanged."""
    trace_of_first = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    plain = Response(201, [(b"x-ledger", b"main")], b"ran")
    traced = Response(201, [(b"x-ledger", b"main")], b"ran", first_trace=trace_of_first)
    as_they_read_it = Response(201, [(TRACE, trace_of_first.encode()), (b"x-ledger", b"main")], b"ran")
    assert encode_response(traced) == encode_response(as_they_read_it)
    found = decode_response(encode_response(traced))
    assert (found.first_trace, found.headers) == (trace_of_first, plain.headers)
    assert decode_response(encode_response(plain)).first_trace == ""


@pytest.mark.parametrize("damaged", ["", "00", "00-xyz-1-01", "00-0-0-00", "\xff-\xff-\xff-\xff"])
def test_a_stored_trace_that_cannot_be_read_costs_the_link_alone(damaged: str, traced: Traced) -> None:
    """P-34: the replay is sent without a link."""
    with traced.server():
        traced.listener(events.Replayed("0123456789ab", 201, damaged))
    assert not traced.spans[0].links


@pytest.mark.parametrize(
    ("providers", "said"),
    [
        ({"meter_provider": object()}, "meter_provider: expected a MeterProvider"),
        ({"tracer_provider": object()}, "tracer_provider: expected a TracerProvider"),
        ({"meter_provider": trace.ProxyTracerProvider()}, "meter_provider: expected a MeterProvider"),
    ],
)
def test_what_is_no_provider_is_refused_at_start(providers: dict[str, Any], said: str) -> None:
    """P-33: the error says what to pass."""
    with pytest.raises(ConfigurationError, match=said):
        opentelemetry(**providers)


def test_one_provider_has_one_listener(traced: Traced) -> None:
    """P-26: instruments that are created twice would be exported twice."""
    assert opentelemetry(traced.meters, traced.tracers) is traced.listener
    assert opentelemetry() is opentelemetry(metrics.get_meter_provider(), trace.get_tracer_provider())


def test_no_attribute_has_the_key(traced: Traced) -> None:
    """P-29: a record is named by the beginning of its digest."""
    send = ADAPTERS["asgi"](MemoryBackend(), (), on_event=traced.listener)
    with traced.server():
        send()
    assert "idempotency.record" in traced.everything
    assert KEY not in traced.everything
