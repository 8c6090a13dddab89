"""A server that is full or may evict records: what is refused, what is still recorded, and what is reported."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import redis

from open_idempotency.backend import (
    Backend,
    Complete,
    Fail,
    Finished,
    Get,
    Health,
    Leased,
    Release,
    Renew,
    Renewal,
    SaveStage,
)
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.backends.redis import RedisBackend
from open_idempotency.conformance import AsyncVerbs
from open_idempotency.conformance.support import claim_of, lease_of, stage_of
from open_idempotency.exceptions import BackendUnavailable, ConfigurationError
from tests.backends.redis.on_redis import lease, run, server
from tests.conftest import SERVER_KINDS
from tests.servers import Server

RECORD = b"\x01\xff record"
LIMIT = 12 * 1024 * 1024
LARGE = b"\x00\xff" * 500_000
EVICTING = ("--maxmemory", "100mb", "--maxmemory-policy", "volatile-lru")


# Under trio calls are those of the sync front.
@pytest.fixture(params=["sync", "asyncio"])
def mode(request: pytest.FixtureRequest) -> str:
    mode: str = request.param
    return mode


@pytest.fixture(params=SERVER_KINDS)
def small(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of 12 MB that evicts nothing."""
    with server("--maxmemory", str(LIMIT), "--maxmemory-policy", "noeviction", kind=request.param) as small:
        yield small


def _flood(server: Server) -> None:
    """Another tenant fills the server beyond its limit, since its own connection's memory is freed afterwards."""
    with server.connect() as plain:
        for number in range(1000):
            try:
                plain.set(f"flood:{number}", b"x" * 100_000)
            except redis.exceptions.ResponseError:
                plain.config_set("maxmemory", plain.info("memory")["used_memory"] - 1_000_000)
                return
    raise AssertionError("the server was not filled")


def test_at_the_memory_limit_nothing_begins_and_everything_ends(mode: str, small: Server) -> None:
    """B-11b: claims are refused; completions, large ones too, stages, renewals and failures are recorded."""
    backend = RedisBackend(small.url, timeout=10)
    names = (b"run", b"large", b"fail", b"stage", b"renew", b"release")
    leases = {name: lease(backend, name) for name in names}

    async def steps(verbs: AsyncVerbs) -> None:
        _flood(small)
        for number in range(5):
            with pytest.raises(BackendUnavailable, match="maxmemory"):
                await verbs.claim(claim_of(b"new %d" % number))
        await verbs.complete(Complete(leases[b"run"], b"response"))
        await verbs.complete(Complete(leases[b"large"], LARGE))
        await verbs.fail(Fail(leases[b"fail"]))
        await verbs.save_stage(SaveStage(leases[b"stage"], stage_of("charge")))
        assert list(await verbs.renew(Renew([leases[b"renew"]]))) == [Renewal.OWNED]
        await verbs.release(Release(leases[b"release"]))
        assert await verbs.claim(claim_of(b"run")) == Finished(b"response")
        assert await verbs.claim(claim_of(b"large")) == Finished(LARGE)
        assert await verbs.get(Get(b"release")) is None

    run(mode, backend, steps)


def test_at_the_memory_limit_what_vanished_is_written_anew(mode: str, small: Server) -> None:
    """B-08a, B-11b: finished work of any size is recorded, by scripts that are sent again."""
    backend = RedisBackend(small.url, timeout=10)
    gone = {name: lease(backend, name) for name in (b"small", b"large", b"stage")}

    async def steps(verbs: AsyncVerbs) -> None:
        with small.connect() as plain:
            plain.execute_command("FLUSHDB", "SYNC")  # Valkey would free the memory when it has time
            plain.script_flush()
        _flood(small)
        assert (await verbs.complete(Complete(gone[b"small"], b"response"))).recreated
        assert (await verbs.complete(Complete(gone[b"large"], LARGE))).recreated
        assert (await verbs.save_stage(SaveStage(gone[b"stage"], stage_of("charge")))).recreated
        assert await verbs.claim(claim_of(b"large")) == Finished(LARGE)

    run(mode, backend, steps)


def test_when_there_is_room_again_claims_are_taken(small: Server) -> None:
    """I6: without any action here."""
    backend = RedisBackend(small.url, timeout=10)
    _flood(small)
    with pytest.raises(BackendUnavailable):
        backend.claim(claim_of(RECORD))
    with small.connect() as plain:
        plain.execute_command("FLUSHDB", "SYNC")  # Valkey would free the memory when it has time
    assert lease(backend, RECORD)
    backend.close()


@pytest.fixture(params=SERVER_KINDS, scope="module")
def evicting(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server that may evict records."""
    with server(*EVICTING, kind=request.param) as evicting:
        yield evicting


def test_a_server_that_may_evict_records_is_reported_once(
    mode: str, evicting: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """B-11b: at the first claim of a process; the claim succeeds."""

    async def steps(verbs: AsyncVerbs) -> None:
        for name in (b"one", b"two", b"three"):
            assert isinstance(await verbs.claim(claim_of(name)), Leased)
            await verbs.delete(name)

    with caplog.at_level(logging.WARNING, logger="open_idempotency"):
        run(mode, RedisBackend(evicting.url, timeout=10), steps)
    (reported,) = caplog.records
    assert "maxmemory-policy is volatile-lru" in reported.getMessage()


def test_a_server_that_may_evict_records_can_be_refused(mode: str, evicting: Server) -> None:
    """B-11b, I8: claims fail there; running requests are recorded."""
    running = lease(RedisBackend(evicting.url, timeout=10, eviction="ignore"), RECORD)
    backend = RedisBackend(f"{evicting.url}?eviction=refuse", timeout=10)

    async def steps(verbs: AsyncVerbs) -> None:
        for _ in range(2):
            with pytest.raises(BackendUnavailable, match="volatile-lru"):
                await verbs.claim(claim_of(b"new"))
        await verbs.complete(Complete(running, b"response"))
        await verbs.delete(RECORD)

    run(mode, backend, steps)


def test_what_is_ignored_is_not_asked_for(mode: str, evicting: Server, caplog: pytest.LogCaptureFixture) -> None:
    """B-11b: by a setting."""

    async def steps(verbs: AsyncVerbs) -> None:
        await verbs.claim(claim_of(RECORD))
        await verbs.delete(RECORD)

    with evicting.connect() as plain:
        before = plain.info("commandstats")["cmdstat_info"]["calls"]
        run(mode, RedisBackend(evicting.url, timeout=10, eviction="ignore"), steps)
        assert plain.info("commandstats")["cmdstat_info"]["calls"] == before + 1
    assert caplog.records == []


def test_it_is_looked_at_from_time_to_time(
    mode: str, small: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-11b: a changed policy is noticed, without extra calls between two checks."""

    def looks(plain: redis.Redis) -> int:
        # The counter includes this call only at the next one.
        return int(plain.info("commandstats")["cmdstat_info"]["calls"])

    async def steps(verbs: AsyncVerbs) -> None:
        with small.connect() as plain:
            plain.info()
            before = looks(plain)
            for name in (b"one", b"two", b"three"):
                await verbs.claim(claim_of(name))
            assert looks(plain) == before + 2
            plain.config_set("maxmemory-policy", "allkeys-lru")
            await verbs.claim(claim_of(b"four"))
            assert caplog.records == []
            monkeypatch.setattr(backend.watch, "next_look", 0.0)  # the time has come
            await verbs.claim(claim_of(b"five"))
        (reported,) = caplog.records
        assert "allkeys-lru" in reported.getMessage()

    backend = RedisBackend(small.url, timeout=10)
    run(mode, backend, steps)


def test_without_a_limit_nothing_is_evicted(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    """B-11b: then any policy is safe."""

    async def steps(verbs: AsyncVerbs) -> None:
        await lease_of(verbs, RECORD)
        assert not [warning for warning in (await verbs.health()).warnings if "policy" in warning]

    with server("--maxmemory-policy", "allkeys-lru") as unlimited:
        run(mode, RedisBackend(unlimited.url, timeout=10, eviction="refuse"), steps)
    assert caplog.records == []


@pytest.mark.parametrize("eviction", ["warn", "refuse"])
def test_a_user_who_may_not_ask(mode: str, eviction: str, caplog: pytest.LogCaptureFixture) -> None:
    """B-11a, B-11b: it is reported once, or refused if evicting servers are."""

    async def steps(verbs: AsyncVerbs) -> None:
        for name in (b"one", b"two"):
            if eviction == "refuse":
                with pytest.raises(BackendUnavailable, match="could not be read"):
                    await verbs.claim(claim_of(name))
            else:
                await lease_of(verbs, name)

    with server() as own:
        with own.connect() as plain:
            plain.execute_command("ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all", "-info")
        url = own.url.replace("//", "//app:secret@")
        run(mode, RedisBackend(url, timeout=10, eviction=eviction), steps)
    (reported,) = caplog.records
    assert "is not known" in reported.getMessage()
    assert "secret" not in reported.getMessage()


def test_health_says_what_endangers_records(mode: str, evicting: Server) -> None:
    """B-11b: eviction, missing replicas, no append-only file; a server that is down is unavailable."""

    async def steps(verbs: AsyncVerbs) -> None:
        health = await verbs.health()
        assert [warning.split()[0] for warning in health.warnings] == ["maxmemory-policy", "0", "appendonly"]

    run(mode, RedisBackend(evicting.url, timeout=10, min_replicas=1), steps)
    with server() as gone:
        url = gone.url

    async def afterwards(verbs: AsyncVerbs) -> None:
        with pytest.raises(BackendUnavailable):
            await verbs.health()

    run(mode, RedisBackend(url, timeout=1), afterwards)


def test_health_sees_a_server_that_is_nearly_full(small: Server) -> None:
    """B-11b: before new keys are refused."""
    _flood(small)
    backend = RedisBackend(small.url, timeout=10)
    assert any("bytes are used" in warning for warning in backend.health().warnings)
    backend.close()


def test_a_sound_server_has_no_warnings(mode: str) -> None:
    """B-11b."""

    async def steps(verbs: AsyncVerbs) -> None:
        assert await verbs.health() == Health()

    with server("--appendonly", "yes", "--maxmemory", "100mb", "--maxmemory-policy", "noeviction") as sound:
        run(mode, RedisBackend(sound.url, timeout=10, eviction="refuse"), steps)


def test_any_backend_reports_whether_it_replies() -> None:
    """B-09: the default implementation reads one record."""
    backend: Backend = MemoryBackend()
    assert backend.health() == Health()


def test_a_setting_that_does_not_exist_is_refused_at_start() -> None:
    """The error names the setting."""
    with pytest.raises(ConfigurationError, match="eviction: 'no' is none of warn, refuse, ignore"):
        RedisBackend("redis://localhost", eviction="no")
