"""Real clients, real servers and SIGKILL: the clients' observations are a possible history of each key."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.effort import times
from tests.history.checker import NotLinearizable, Operation, Result, check_linearizable, check_token_order
from tests.history.load import Load, Servers, histories, serving

# A load lasts a few seconds; the long form has many of them.
pytestmark = pytest.mark.timeout(120 + times(60))
#: runs of each kind; the short form has one
HISTORIES = max(1, times(1) // 2)


@pytest.fixture(scope="module", params=["sqlite", "valkey"])
def servers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Two processes for each backend that processes can share."""
    folder = tmp_path_factory.mktemp("history")
    if request.param == "sqlite":
        url = f"sqlite:///{folder}/records.db?timeout=0.6"
    else:
        address: str = request.getfixturevalue("valkey_url")
        url = f"{address}{'&' if '?' in address else '?'}timeout=0.3"
    with serving(folder, url) as running:
        yield running


def _loaded(servers: Servers, load: Load, kills: int) -> dict[str, list[Operation]]:
    asyncio.run(load.run(kills))
    return histories(load.seen, servers.effects())


def _results(found: dict[str, list[Operation]]) -> set[Result]:
    return {operation.result for operations in found.values() for operation in operations}


def _effects(servers: Servers, found: dict[str, list[Operation]], what: str) -> dict[tuple[str, str], list[object]]:
    """The runs in the effect file, by key and request."""
    asked = {o.name: (key, o.request) for key, operations in found.items() for o in operations}
    effects: dict[tuple[str, str], list[object]] = defaultdict(list)
    for line in servers.effects():
        if what in line and line["operation"] in asked:
            effects[asked[str(line["operation"])]].append(line[what])
    return effects


def test_each_keys_history_is_linearizable_while_servers_are_killed(servers: Servers) -> None:
    """I1, I2, I4, I7: with few clients for each key, so that every order of moments can be searched."""
    for seed in range(HISTORIES):
        found = _loaded(servers, Load(servers, Random(seed), keys=12, clients=5, rounds=3), kills=2)
        for operations in found.values():
            check_linearizable(operations)
            check_token_order(operations)
        assert {Result.RAN, Result.REPLAYED, Result.BUSY, Result.MISMATCH, Result.UNKNOWN} <= _results(found)


def test_a_storm_on_few_keys_is_ordered_by_its_tokens(servers: Servers) -> None:
    """I1, I2, I4, I9: many clients for each key; an effect at most once for each token, under one downstream key."""
    for seed in range(HISTORIES):
        found = _loaded(servers, Load(servers, Random(seed), keys=6, clients=16, rounds=2), kills=1)
        for operations in found.values():
            check_token_order(operations)
        # On a busy machine no client may come back in time for a replay.
        assert Result.RAN in _results(found)
        tokens = _effects(servers, found, "effect").values()
        assert all(len(set(of_key)) == len(of_key) for of_key in tokens)
        assert [len(set(keys)) for keys in _effects(servers, found, "downstream").values()] == [1] * len(tokens)


def test_servers_that_do_not_share_their_records_are_found_out(tmp_path: Path) -> None:
    """I2: the checker refuses the history of a wrong setup."""
    with serving(tmp_path, "memory://") as apart:
        found = _loaded(apart, Load(apart, Random(0), keys=6, clients=4, rounds=1), kills=0)
    refused = 0
    for operations in found.values():
        try:
            check_linearizable(operations)
        except NotLinearizable:
            refused += 1
    assert refused > 0
