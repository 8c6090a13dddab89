"""Which Sentinel's reply counts when Sentinels disagree."""

from __future__ import annotations

from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from open_idempotency.backends.redis.sentinel import Search

OLD, NEW = ("10.0.0.1", 1), ("10.0.0.2", 2)


def _says(address: tuple[str, int], epoch: int, flags: str = "master") -> dict[str, Any]:
    """A reply to ``SENTINEL MASTERS`` as redis-py returns it."""
    state = {"ip": address[0], "port": address[1], "config-epoch": epoch, "flags": flags, "num-other-sentinels": 2}
    return {"service": {**state, "is_master": True, "is_sdown": False, "is_odown": False}}


def _asked(search: Search, replies: dict[str, Any]) -> tuple[str, int]:
    steps = search.steps()
    client = next(steps)
    while True:
        try:
            client = steps.send(replies[client])
        except StopIteration as end:
            found: tuple[str, int] = end.value
            return found


def test_the_first_that_replies_is_enough_and_is_asked_first_then() -> None:
    """B-14a: a Sentinel that raises an error or does not know the service is skipped."""
    search = Search("service", ["a", "b", "c"], [0])
    replies = {"a": RedisConnectionError("gone"), "b": {}, "c": _says(OLD, 1)}
    assert _asked(search, replies) == OLD
    assert search.clients == ["c", "a", "b"]


def test_a_sentinel_that_has_not_heard_of_the_failover_does_not_count() -> None:
    """B-14a: its reply would lead a new connection to the old primary."""
    epochs = [0]
    assert _asked(Search("service", ["a"], epochs), {"a": _says(NEW, 2)}) == NEW
    assert _asked(Search("service", ["b", "c"], epochs), {"b": _says(OLD, 1), "c": _says(NEW, 2)}) == NEW


def test_a_sentinel_that_leads_a_failover_counts_last() -> None:
    """B-14a: it names the old primary until the failover ends, while the others name the new one already."""
    replies = {"a": _says(OLD, 2, "master,failover_in_progress"), "b": _says(NEW, 2)}
    assert _asked(Search("service", ["a", "b"], [0]), replies) == NEW


def test_a_doubtful_word_is_better_than_none() -> None:
    """B-10, B-14a: such as the reply of Sentinels that were just set up and have no epoch yet."""
    search = Search("service", ["a", "b"], [5])
    assert _asked(search, {"a": _says(OLD, 0), "b": _says(NEW, 1)}) == NEW
    with pytest.raises(RedisConnectionError, match="no Sentinel names a primary of 'service': gone"):
        _asked(search, {"a": RedisConnectionError("gone"), "b": RedisConnectionError("gone")})
