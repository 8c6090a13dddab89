"""The length of one request's path through the package: upper bounds of its calls, and code that it does not run.

The counts are those of a process that has used anyio, as other tests do: one call more, since anyio is asked for a
scope around the request.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from benchmarks import request_calls
from benchmarks.request_calls import Way
from open_idempotency._core import key_sources, quotas, reading
from open_idempotency.asgi import IdempotencyMiddleware

#: the most calls inside the package, and the most changes from a file to another, by backend and kind of request
MOST = {
    ("memory", "no key"): (2, 1),
    ("memory", "new key"): (124, 73),
    ("memory", "replay"): (67, 35),
    ("redis", "no key"): (2, 1),
    ("redis", "new key"): (141, 88),
    ("redis", "replay"): (78, 40),
}


def _ways(url: str, **fields: Any) -> dict[str, Way]:
    app = IdempotencyMiddleware(request_calls.endpoint, url, **fields)
    return asyncio.run(request_calls.ways(app))


@pytest.mark.parametrize("backend", ["memory", "redis"])
def test_a_request_passes_no_more_calls_and_files_than_before(backend: str, request: pytest.FixtureRequest) -> None:
    """An added layer fails here. Lower the bounds when a layer is removed."""
    url = "memory://" if backend == "memory" else request.getfixturevalue("redis_url")
    for kind, way in _ways(url).items():
        calls, changes = MOST[backend, kind]
        assert (len(way.files) <= calls, way.changes <= changes) == (True, True), (kind, len(way.files), way.changes)


def test_who_sets_no_quota_passes_none_of_its_code() -> None:
    """Without ``max_live_keys`` no quota code runs, nor for a replay; with it the claim runs it."""
    without, limited = _ways("memory://"), _ways("memory://", max_live_keys=1_000)
    assert not any(quotas.__file__ in way.files for way in without.values())
    assert quotas.__file__ in limited["new key"].files


@pytest.mark.parametrize("kind", ["no key", "new key", "replay"])
def test_a_request_without_key_from_or_hooks_passes_none_of_their_code(kind: str) -> None:
    """H-24: only users of ``key=``, ``echo_key=``, ``on_replay=`` and ``fingerprint_parts=`` pay for them."""
    assert not {key_sources.__file__, reading.__file__} & set(_ways("memory://")[kind].files)
