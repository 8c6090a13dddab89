"""The dashboard and the alert rules: a real client exposes each metric, label and outcome that they name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from open_idempotency import events
from open_idempotency._core import problems
from open_idempotency.telemetry import ALERTS, DASHBOARD, prometheus
from open_idempotency.telemetry._outcomes import OUTCOMES

#: labels that Prometheus itself adds to each series
_OF_PROMETHEUS = frozenset({"instance", "job"})
_MADE_BY_GRAFANA = {"$__rate_interval": "5m", "$route": ".*"}
_METRIC = re.compile(r"\bidempotency_\w+")


class Named(NamedTuple):
    """The names in an expression: of each selector the metric and its matchers, and the labels that it groups by."""

    selectors: list[tuple[str, dict[str, str]]]
    groups: set[str]


def _rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]]


def _dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return found


def _queries() -> Iterator[tuple[str, str]]:
    for panel in _dashboard()["panels"]:
        for target in panel["targets"]:
            query = target["expr"]
            for name, value in _MADE_BY_GRAFANA.items():
                query = query.replace(name, value)
            yield panel["title"], query
    for rule in _rules():
        yield rule["alert"], rule["expr"]


QUERIES = list(_queries())


def _named(query: str) -> Named:
    """Parse an expression; raise ``ValueError`` for one that is not PromQL."""
    selectors: list[tuple[str, dict[str, str]]] = []
    groups: set[str] = set()
    waiting: list[Any] = [promql_parser.parse(query)]
    while waiting:
        part = waiting.pop()
        match part:
            case promql_parser.VectorSelector():
                selectors.append((str(part.name), {m.name: m.value for m in part.matchers.matchers}))
            case promql_parser.MatrixSelector():
                waiting.append(part.vector_selector)
            case promql_parser.AggregateExpr():
                groups.update(part.modifier.labels if part.modifier is not None else ())
                waiting.append(part.expr)
            case promql_parser.BinaryExpr():
                waiting += (part.lhs, part.rhs)
            case promql_parser.Call():
                waiting += part.args
            case promql_parser.ParenExpr() | promql_parser.UnaryExpr() | promql_parser.SubqueryExpr():
                waiting.append(part.expr)
            case promql_parser.NumberLiteral() | promql_parser.StringLiteral():
                pass
            case _:
                raise TypeError(f"{type(part).__name__} in {query}")
    return Named(selectors, groups)


@pytest.fixture(scope="module")
def exposed() -> dict[str, set[str]]:
    """The labels of each series that prometheus_client exposes, as a scraper reads them."""
    registry = CollectorRegistry()
    listener = prometheus(registry)
    listener(events.Replayed("", 201))
    listener.backend_called("claim", 0.01)
    listener.attempts_changed(1)
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


@pytest.mark.parametrize(("title", "query"), QUERIES, ids=[f"{n} {title}" for n, (title, _) in enumerate(QUERIES)])
def test_a_query_names_series_and_labels_that_are_exposed(title: str, query: str, exposed: dict[str, set[str]]) -> None:
    """P-36: a real client exposes them, in the text that Prometheus reads; each query is valid PromQL."""
    found = _named(query)
    assert found.selectors
    for metric, matchers in found.selectors:
        assert metric in exposed
        assert set(matchers) <= exposed[metric] | _OF_PROMETHEUS
    labels = {label for metric, _ in found.selectors for label in exposed[metric]}
    assert found.groups <= labels | _OF_PROMETHEUS


def _outcomes() -> set[str]:
    """All outcomes that can be counted."""
    made = [value for value in vars(problems).values() if getattr(value, "__module__", "") == problems.__name__]
    names = {name for maker in made if callable(maker) for name in _problems_in(maker)}
    return {outcome for outcome in OUTCOMES.values() if outcome} | {"resumed"} | names


def _problems_in(maker: Any) -> Iterator[str]:
    """The names of problems among the constants of a function."""
    code = getattr(maker, "__code__", None)
    for constant in () if code is None else code.co_consts:
        if isinstance(constant, str) and re.fullmatch("[a-z]+(-[a-z]+)+", constant):
            yield constant.replace("-", "_")


@pytest.mark.parametrize(("title", "query"), QUERIES, ids=[f"{n} {title}" for n, (title, _) in enumerate(QUERIES)])
def test_a_query_names_outcomes_that_there_are(title: str, query: str) -> None:
    """P-36: a query with a misspelt outcome would never match."""
    named = {each for _, matchers in _named(query).selectors for each in matchers.get("outcome", "").split("|") if each}
    assert named <= _outcomes()


def test_every_metric_is_on_the_dashboard_and_in_a_rule_or_both(exposed: dict[str, set[str]]) -> None:
    """P-36: the counter, the histogram and the gauge."""
    shown = set(_METRIC.findall(DASHBOARD.read_text(encoding="utf-8")))
    assert {name for name in exposed if not name.endswith(("_created", "_sum"))} <= shown


def test_a_query_that_is_wrong_is_found() -> None:
    """P-36: the tests above can fail."""
    with pytest.raises(ValueError, match=r"\w"):
        _named("sum by (route (idempotency_outcomes_total)")
    assert _named('sum by (x) (rate(y{z="1"}[5m]))') == Named([("y", {"z": "1"})], {"x"})


def test_each_alert_says_what_is_wrong_and_what_to_do() -> None:
    """P-36: alert names are unique, and a template names labels that the alert has."""
    names = [rule["alert"] for rule in _rules()]
    assert len(set(names)) == len(names)
    for rule in _rules():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
        labels = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        assert labels <= _named(rule["expr"]).groups, rule["alert"]


def test_panels_do_not_overlap_and_each_says_what_it_shows() -> None:
    """P-36: the grid has 24 columns."""
    taken: set[tuple[int, int]] = set()
    for panel in _dashboard()["panels"]:
        grid = panel["gridPos"]
        cells = {(grid["x"] + x, grid["y"] + y) for x in range(grid["w"]) for y in range(grid["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        assert panel["description"]
        taken |= cells
