"""The cost of a heartbeat on a real server, which counts the calls."""

from __future__ import annotations

import time

from open_idempotency._core.attempt import Attempt
from open_idempotency._core.models import Lease
from open_idempotency._engine.heartbeat import BATCH, BEATS_A_LEASE, _Beats, _Watched
from open_idempotency.backends.redis import RedisBackend
from open_idempotency.policy import IdempotencyPolicy
from tests.backends.redis.on_redis import lease, server

IN_FLIGHT = 10_000
POLICY = IdempotencyPolicy(max_run=3600.0)


def _watched(beats: _Beats, owned: Lease, now: float) -> Attempt:
    attempt = Attempt.of(owned, (), POLICY, "/")
    beats._watched[owned.owner] = _Watched(attempt, owned, now)
    return attempt


def test_ten_thousand_leases_take_twenty_calls_a_beat() -> None:
    """B-04: one call for 500 leases, counted by the server, from the first heartbeat on; all are renewed."""
    with server() as redis:
        backend = RedisBackend(redis.url)
        now = time.monotonic()
        beats = _Beats(backend)
        owned = lease(backend, b"real")
        real = _watched(beats, owned, now)
        # The other leases have no record, which is no error for a heartbeat (B-08a).
        for number in range(IN_FLIGHT - 1):
            name = b"%016d" % number
            _watched(beats, Lease(name, name, 1, 1, b"print", owned.duration, owned.ttl), now)
        with redis.connect() as client:
            for beat in (1, 2):
                at = now + beat * (owned.duration / BEATS_A_LEASE + 0.01)
                before = _calls(client)
                beats._renew_due(at)
                # The first call may have to send the script's text.
                assert _calls(client) - before - (beat == 1) <= IN_FLIGHT / BATCH
                assert real.sure_until == at + owned.duration
        backend.close()


def test_between_two_beats_nothing_is_called() -> None:
    """There is no heartbeat before a third of the lease has passed."""
    with server() as redis:
        backend = RedisBackend(redis.url)
        now = time.monotonic()
        beats = _Beats(backend)
        owned = lease(backend, b"real")
        _watched(beats, owned, now)
        with redis.connect() as client:
            before = _calls(client)
            beats._renew_due(now + owned.duration / BEATS_A_LEASE - 0.01)
            assert _calls(client) == before
        backend.close()


def _calls(client: object) -> int:
    stats = client.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "eval", "fcall"))
