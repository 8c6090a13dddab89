"""Counting in prometheus_client's metrics: what is counted, by which labels, and what is refused at start."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, Counter, generate_latest

from open_idempotency import ConfigurationError, IdempotencyPolicy, events
from open_idempotency._engine.engine import Engine
from open_idempotency.asgi import IdempotencyMiddleware
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.rules import read_rule
from open_idempotency.telemetry import combine, prometheus
from open_idempotency.telemetry._outcomes import MOST_ROUTES, OUTCOMES, outcome_of
from tests.http.sites import poll
from tests.unit.every_adapter import ADAPTERS, post_asgi
from tests.unit.telemetry.reading import outcomes, samples

PATIENCE = 30.0
ROUTES = {"asgi": "unknown", "wsgi": "unknown"}


def _kinds() -> list[type[events.Event]]:
    found = [each for each in vars(events).values() if isinstance(each, type) and issubclass(each, events.Event)]
    return [each for each in found if each is not events.Event]


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_request_and_its_replay_are_counted_by_outcome_route_and_status(adapter: str) -> None:
    """P-26: on every adapter. The route is the framework's template, ``unknown`` where it has none."""
    registry = CollectorRegistry()
    send = ADAPTERS[adapter](MemoryBackend(), (), on_event=prometheus(registry))
    send()
    send()
    route = ROUTES.get(adapter, "0" if "django" in adapter else "/0")
    assert outcomes(registry) == {
        ("claimed", route, ""): 1,
        ("completed", route, "201"): 1,
        ("replayed", route, "201"): 1,
    }


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_each_call_of_the_backend_is_timed_by_its_verb(adapter: str) -> None:
    """P-27: a new key costs two calls, a replay one."""
    registry = CollectorRegistry()
    send = ADAPTERS[adapter](MemoryBackend(), (), on_event=prometheus(registry))
    send()
    send()
    name = "idempotency_backend_call_duration_seconds"
    assert samples(registry, f"{name}_count") == {(("verb", "claim"),): 2, (("verb", "complete"),): 1}
    assert all(seconds < PATIENCE for seconds in samples(registry, f"{name}_sum").values())


def test_the_gauge_has_the_attempts_whose_lease_the_process_holds() -> None:
    """P-28: one while the handler runs, none before and after, also after a failure."""
    registry = CollectorRegistry()
    seen: list[float] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(sum(samples(registry, "idempotency_live_attempts").values()))
        raise RuntimeError("on purpose")

    protected = IdempotencyMiddleware(app, MemoryBackend(), on_event=prometheus(registry))
    with pytest.raises(RuntimeError, match="on purpose"):
        post_asgi(protected)
    assert seen == [1]
    assert samples(registry, "idempotency_live_attempts") == {}


def test_an_attempt_that_outlives_its_engine_is_not_counted_for_ever() -> None:
    """P-28: a closed heartbeat forgets its attempts."""
    registry = CollectorRegistry()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.to_thread(protected.engine.heartbeat.close)
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    protected = IdempotencyMiddleware(app, MemoryBackend(), on_event=prometheus(registry))
    post_asgi(protected)
    poll(lambda: samples(registry, "idempotency_live_attempts") == {})


def test_every_kind_of_event_is_counted_or_known_not_to_be() -> None:
    """P-26: a new event must be assigned to one of the two."""
    assert set(OUTCOMES) == set(_kinds())


@pytest.mark.parametrize(
    ("event", "outcome"),
    [
        (events.Claimed("", 2), "resumed"),
        (events.OwnershipLost("", 1), "lease_lost"),
        (events.BackendFailed("", "claim", "OSError"), "backend_error"),
        (events.ProblemSent("", "", "in-progress", 409), "in_progress"),
        (events.Conflicted("", 1.0), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, events.Event) else str(value),
)
def test_lost_leases_resumed_attempts_and_backend_errors_are_outcomes(event: events.Event, outcome: str | None) -> None:
    """P-26: a problem is counted once by its name; its event is not counted again."""
    assert outcome_of(event) == outcome


def test_the_number_of_routes_is_bounded() -> None:
    """P-26: an application that generates routes does not fill the memory."""
    registry = CollectorRegistry()
    listener = prometheus(registry)
    for number in range(MOST_ROUTES + 5):
        listener(events.Replayed("", 201, request=events.RequestContext("POST", f"/{number}", "")))
    found = outcomes(registry)
    assert len(found) == MOST_ROUTES + 1
    assert found["replayed", "other", "201"] == 5


def test_one_registry_has_one_listener() -> None:
    """P-26: an application that is constructed twice, as by a factory in tests, has its metrics once."""
    registry = CollectorRegistry()
    assert prometheus(registry) is prometheus(registry)
    assert prometheus(registry) is not prometheus(CollectorRegistry())


@pytest.mark.parametrize("registry", [object(), "default", CollectorRegistry])
def test_what_is_no_registry_is_refused_at_start(registry: Any) -> None:
    """P-33: the error says what to pass."""
    with pytest.raises(ConfigurationError, match="registry: expected a CollectorRegistry"):
        prometheus(registry)


def test_a_name_that_is_taken_is_refused_at_start() -> None:
    """P-33: two metrics of one name would break the metrics page."""
    registry = CollectorRegistry()
    Counter("idempotency_outcomes", "somebody else's", registry=registry)
    with pytest.raises(ConfigurationError, match="other metrics of these names"):
        prometheus(registry)


def test_a_route_has_no_telemetry_of_its_own() -> None:
    """P-33: its backend calls would silently be missing."""
    engine = Engine("memory://", None, {}, threads=True)
    with pytest.raises(ConfigurationError, match="on_event: telemetry measures a whole application"):
        engine.policy_for(read_rule({"on_event": prometheus(CollectorRegistry())}))
    listener = prometheus(CollectorRegistry())
    whole = Engine("memory://", IdempotencyPolicy(on_event=listener), {}, threads=True)
    policy = whole.policy_for(read_rule({"ttl": 60}))
    assert policy is not None
    assert policy.on_event is listener


def test_a_missing_package_names_the_extra() -> None:
    """P-33: with the install command, for both libraries."""
    code = """
import sys
sys.modules["prometheus_client"] = sys.modules["opentelemetry"] = None
from open_idempotency import telemetry
from open_idempotency.exceptions import MissingExtra
for make in (telemetry.prometheus, telemetry.opentelemetry):
    try:
        make()
    except MissingExtra as error:
        print(error)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "pip install 'open-idempotency[prometheus]'" in ended.stdout
    assert "pip install 'open-idempotency[opentelemetry]'" in ended.stdout


@pytest.mark.parametrize("make", [lambda: combine(prometheus(CollectorRegistry()), _raise), lambda: combine(_raise)])
def test_one_listener_that_raises_keeps_no_other_from_its_events(make: Callable[[], Any]) -> None:
    """P-34: the request is not affected either."""
    heard: list[events.Event] = []
    send = ADAPTERS["asgi"](MemoryBackend(), (), on_event=combine(make(), heard.append))
    assert send().status == 201
    assert [type(event) for event in heard] == [events.Claimed, events.Completed]


def _raise(event: events.Event) -> None:
    raise RuntimeError("on purpose")


class _Broken(events.Telemetry):
    """A listener whose every method raises."""

    def __call__(self, event: events.Event) -> None:
        raise RuntimeError("on purpose")

    def backend_called(self, verb: str, seconds: float) -> None:
        raise RuntimeError("on purpose")

    def attempts_changed(self, by: int) -> None:
        raise RuntimeError("on purpose")

    def traceparent(self) -> str:
        raise RuntimeError("on purpose")


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_telemetry_that_raises_harms_no_request(adapter: str, caplog: pytest.LogCaptureFixture) -> None:
    """P-34: each error is logged."""
    send = ADAPTERS[adapter](MemoryBackend(), (), on_event=_Broken())
    assert [send().status, send().headers.get("idempotent-replayed")] == [201, "true"]
    for method in ("backend_called", "attempts_changed", "traceparent", "on_event listener raised"):
        assert method in caplog.text, method


@pytest.mark.parametrize("given", [(), (None,), ("prometheus",)])
def test_what_cannot_listen_is_refused_at_start(given: tuple[Any, ...]) -> None:
    """P-33: such as a coroutine function, which nothing would await."""

    async def never(event: events.Event) -> None:
        raise AssertionError

    with pytest.raises(ConfigurationError, match="combine:"):
        combine(*given)
    with pytest.raises(ConfigurationError, match="combine: expected plain callables"):
        combine(never)


MULTIPROCESS = """
import os, sys
{before}
import prometheus_client
{after}
from open_idempotency import ConfigurationError
from open_idempotency.telemetry import prometheus
try:
    prometheus()
except ConfigurationError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (
            "",
            "os.environ['PROMETHEUS_MULTIPROC_DIR'] = sys.argv[1]",
            "was set after prometheus_client had been imported",
        ),
        (
            "os.environ['PROMETHEUS_MULTIPROC_DIR'] = sys.argv[1]",
            "del os.environ['PROMETHEUS_MULTIPROC_DIR']",
            "was unset after prometheus_client had been imported",
        ),
        (
            "os.environ['PROMETHEUS_MULTIPROC_DIR'] = sys.argv[1] + '/none'",
            "",
            "not a folder that this process can write",
        ),
        ("os.environ['PROMETHEUS_MULTIPROC_DIR'] = sys.argv[1]", "", ""),
    ],
    ids=["set too late", "unset", "no folder", "set up well"],
)
def test_a_multiprocess_mode_that_was_set_up_badly_is_refused_at_start(
    before: str, after: str, said: str, tmp_path: Path
) -> None:
    """P-32: metrics would silently be missing from the page."""
    code = MULTIPROCESS.format(before=before, after=after)
    command = [sys.executable, "-c", code, str(tmp_path)]
    environ = {name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, env=environ)
    assert ended.returncode == 0, ended.stderr
    assert said in ended.stdout
    assert bool(said) == bool(ended.stdout)


FORKS = """
import os, sys, threading
from prometheus_client import CollectorRegistry
from open_idempotency import events
from open_idempotency.telemetry import prometheus
registry = CollectorRegistry()
listener = prometheus(registry)
listener.attempts_changed(1)
over = threading.Event()
def count():
    while not over.is_set():
        listener(events.Replayed("", 201))
        listener.backend_called("claim", 0.001)
threads = [threading.Thread(target=count) for _ in range(4)]
for thread in threads:
    thread.start()
ends = []
for _ in range(60):
    pid = os.fork()
    if pid == 0:
        listener(events.Replayed("", 201))
        listener.backend_called("claim", 0.001)
        live = registry.get_sample_value("idempotency_live_attempts")
        os._exit(0 if live == 0 else 3)
    ends.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
over.set()
for thread in threads:
    thread.join()
print(set(ends), registry.get_sample_value("idempotency_live_attempts"))
"""


def test_a_fork_in_the_middle_of_a_count_leaves_no_child_that_waits_for_ever() -> None:
    """P-32: a child begins with no live attempt, whatever its parent has."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKS]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE, check=False)
    assert ended.stdout.strip() == "{0} 1.0", ended.stderr


def test_the_default_registry_is_the_librarys_own() -> None:
    """P-26: ``start_http_server`` and ``make_asgi_app`` show it."""
    prometheus()
    assert b"idempotency_live_attempts" in generate_latest(REGISTRY)
