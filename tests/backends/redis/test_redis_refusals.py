"""Errors that a server replies with: by its code the call goes to another server or is unavailable."""

from __future__ import annotations

import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis
import trustme
from redis.exceptions import MasterDownError, OutOfMemoryError, ReadOnlyError, ResponseError

from open_idempotency.backend import Complete, Finished, Leased
from open_idempotency.backends.redis import RedisBackend
from open_idempotency.backends.redis.refusals import code_of, error_of, says_cut_off, says_replica
from open_idempotency.conformance import AsyncVerbs
from open_idempotency.conformance.support import claim_of, lease_of
from open_idempotency.exceptions import BackendUnavailable
from tests.backends.redis.on_redis import SOON, claimed_again, run, server
from tests.conftest import SERVER_KINDS
from tests.faults.proxy import FaultProxy
from tests.matrix import is_full
from tests.servers import Server, free_port
from tests.topologies import TlsFront, until

RECORD = b"\x01\xff record"


# Under trio calls are those of the sync front.
@pytest.fixture(params=["sync", "asyncio", "asyncio one by one"])
def how(request: pytest.FixtureRequest) -> tuple[str, bool]:
    """The async library, and whether calls share batches."""
    mode, *one_by_one = request.param.split(" ", 1)
    return mode, not one_by_one


# The old server has other messages, which a table below lists.
@pytest.fixture(params=SERVER_KINDS if is_full("CONTRACT") else SERVER_KINDS[:1])
def kind(request: pytest.FixtureRequest) -> str:
    """The server."""
    kind: str = request.param
    return kind


def _replica_without_its_primary(plain: redis.Redis) -> None:
    plain.config_set("replica-serve-stale-data", "no")
    plain.execute_command("REPLICAOF", "127.0.0.1", free_port())


def _primary_without_replicas(plain: redis.Redis) -> None:
    plain.config_set("min-replicas-to-write", 1)


LEFT: dict[str, Callable[[redis.Redis], None]] = {
    "MASTERDOWN": _replica_without_its_primary,
    "NOREPLICAS": _primary_without_replicas,
}


@pytest.mark.parametrize("code", LEFT)
def test_a_server_that_may_not_be_the_primary_any_more_is_left(how: tuple[str, bool], kind: str, code: str) -> None:
    """B-16: the connection is dropped, and the call is sent again to the address's current server."""
    mode, coalesce = how
    with server(kind=kind) as old, server(kind=kind) as new, FaultProxy(old.port) as endpoint:

        async def steps(verbs: AsyncVerbs) -> None:
            await lease_of(verbs, RECORD)
            with old.connect() as plain:
                LEFT[code](plain)
            endpoint.lead_to(new.port)
            assert isinstance(await verbs.claim(claim_of(b"new")), Leased)
            with new.connect() as plain:
                assert plain.dbsize() == 1

        run(mode, RedisBackend(f"redis://127.0.0.1:{endpoint.port}", timeout=5, coalesce=coalesce), steps)


def test_without_replicas_new_claims_are_unavailable_and_replays_go_on(how: tuple[str, bool], kind: str) -> None:
    """B-16: NOREPLICAS, without a failover; connections are renewed at most once a second."""
    mode, coalesce = how
    with server(kind=kind) as alone, alone.connect() as plain:

        async def steps(verbs: AsyncVerbs) -> None:
            await verbs.complete(Complete(await lease_of(verbs, RECORD), b"response"))
            _primary_without_replicas(plain)
            before, refused, started = _connections(plain), 0, time.monotonic()

            async def one(name: bytes) -> None:
                nonlocal refused
                if name == RECORD:
                    assert await verbs.claim(claim_of(name)) == Finished(b"response")
                    return
                with pytest.raises(BackendUnavailable, match="NOREPLICAS"):
                    await verbs.claim(claim_of(name))
                refused += 1

            for _ in range(3):
                async with anyio.create_task_group() as group:
                    for number in range(8):
                        group.start_soon(one, RECORD if number % 2 else secrets.token_bytes(8))
            assert refused == 12
            once_and_each_second = 2 + int(time.monotonic() - started)
            assert _connections(plain) - before <= 8 * once_and_each_second
            plain.config_set("min-replicas-to-write", 0)
            assert isinstance(await verbs.claim(claim_of(b"new")), Leased)

        run(mode, RedisBackend(alone.url, timeout=5, coalesce=coalesce, eviction="ignore"), steps)


def _connections(plain: redis.Redis) -> int:
    return int(plain.info("stats")["total_connections_received"])


def test_a_server_that_is_loading_its_data_is_unavailable_until_it_has(how: tuple[str, bool]) -> None:
    """B-16: LOADING, as after a restart; records are found afterwards."""
    mode, coalesce = how
    slow = ("--key-load-delay", "2000", "--loading-process-events-interval-bytes", "1024")
    with server(*slow) as loading:

        async def steps(verbs: AsyncVerbs) -> None:
            await verbs.complete(Complete(await lease_of(verbs, RECORD), b"response"))
            with loading.connect() as plain:
                plain.mset({f"other:{number}": bytes(64) for number in range(400)})
                plain.save()
            loading.kill()
            starting = threading.Thread(target=loading.start)
            starting.start()
            try:
                await _until_refused(verbs, "loading the dataset")
                assert isinstance(await claimed_again(verbs, RECORD), Finished)
            finally:
                starting.join(SOON)

        run(mode, RedisBackend(loading.url, timeout=2, coalesce=coalesce), steps)


async def _until_refused(verbs: AsyncVerbs, with_what: str) -> None:
    """Claim until a refusal contains these words; each call ends in time."""
    deadline = time.monotonic() + SOON
    while time.monotonic() < deadline:
        started = time.monotonic()
        try:
            await verbs.claim(claim_of(RECORD))
        except BackendUnavailable as error:
            assert time.monotonic() - started < verbs.call_timeout
            if with_what in str(error):
                return
        await anyio.sleep(0.005)
    raise AssertionError(f"never refused with {with_what}")


def test_a_server_that_runs_a_slow_script_is_unavailable_at_once(how: tuple[str, bool], kind: str) -> None:
    """B-16: BUSY; another client's script blocks the server, so a second try would fail too."""
    mode, coalesce = how
    with server("--lua-time-limit", "10", kind=kind) as busy, busy.connect() as plain:

        async def steps(verbs: AsyncVerbs) -> None:
            await lease_of(verbs, RECORD)

            def occupy() -> None:
                with busy.connect() as other, suppress(ResponseError):
                    other.eval("while true do end", 0)

            occupied = threading.Thread(target=occupy)
            occupied.start()
            try:
                until(lambda: _is_busy(plain), "the script runs")
                with pytest.raises(BackendUnavailable, match="BUSY"):
                    await verbs.claim(claim_of(b"new"))
            finally:
                plain.script_kill()
                occupied.join(SOON)
            assert isinstance(await verbs.claim(claim_of(b"new")), Leased)

        run(mode, RedisBackend(busy.url, timeout=5, coalesce=coalesce, eviction="ignore"), steps)


def _is_busy(plain: redis.Redis) -> bool:
    try:
        plain.ping()
    except ResponseError as error:
        return str(error).startswith("BUSY")
    return False


def test_a_server_that_cannot_save_is_unavailable(how: tuple[str, bool], kind: str) -> None:
    """B-16: MISCONF; it may lose new writes. Replays continue; claims succeed when it can save again."""
    mode, coalesce = how
    with server(kind=kind) as full, full.connect() as plain:
        in_the_way = Path(plain.config_get("dir")["dir"], plain.config_get("dbfilename")["dbfilename"])

        async def steps(verbs: AsyncVerbs) -> None:
            await verbs.complete(Complete(await lease_of(verbs, RECORD), b"response"))
            plain.config_set("save", "3600 1")
            in_the_way.mkdir()
            plain.bgsave()
            until(lambda: plain.info("persistence")["rdb_last_bgsave_status"] == "err", "it cannot save")
            with pytest.raises(BackendUnavailable, match="MISCONF"):
                await verbs.claim(claim_of(b"new"))
            assert await verbs.claim(claim_of(RECORD)) == Finished(b"response")
            in_the_way.rmdir()
            plain.bgsave()
            until(lambda: plain.info("persistence")["rdb_last_bgsave_status"] == "ok", "it can save")
            assert isinstance(await verbs.claim(claim_of(b"new")), Leased)

        run(mode, RedisBackend(full.url, timeout=5, coalesce=coalesce, eviction="ignore"), steps)


REFUSALS = {
    "READONLY You can't write against a read only replica.": ("READONLY", True, False),
    "MASTERDOWN Link with MASTER is down.": ("MASTERDOWN", True, False),
    "NOREPLICAS Not enough good replicas to write.": ("NOREPLICAS", False, True),
    "ERR Error running script (call to f_1): @user_script:9: -NOREPLICAS Not enough.": ("NOREPLICAS", False, True),
    "ERR Error running script (call to f_1): @user_script:9: -READONLY You can't.": ("READONLY", True, False),
    "BUSY Redis is busy running a script.": ("BUSY", False, False),
    "MISCONF Errors writing to the AOF file": ("MISCONF", False, False),
    "OOM command not allowed when used memory > 'maxmemory'.": ("OOM", False, False),
    "ERR Protocol error: the words READONLY and NOREPLICAS": ("ERR", False, False),
    "ERR unknown command": ("ERR", False, False),
}


@pytest.mark.parametrize("line", REFUSALS)
def test_only_the_code_of_a_refusal_counts(line: str) -> None:
    """B-16: wherever an old server puts the code; the message is ignored."""
    error = error_of(line)
    assert (code_of(error), says_replica(error), says_cut_off(error)) == REFUSALS[line]


def test_errors_of_the_client_library_have_the_same_codes() -> None:
    """B-16: its error classes stand for codes that their texts lack."""
    errors: list[Exception] = [ReadOnlyError("You can't"), MasterDownError("Link"), OutOfMemoryError("command")]
    assert [code_of(error) for error in errors] == ["READONLY", "MASTERDOWN", "OOM"]
    assert code_of(TimeoutError("NOREPLICAS is no code here")) == "ERR"


def test_a_name_that_leads_to_another_server_is_looked_up_again(
    how: tuple[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-16: at each new connection, so also if the old server is a replica now, or down."""
    mode, coalesce = how
    with server() as old, server() as new, server() as last:
        leads_to = [old.port]
        real = socket.getaddrinfo

        def looked_up(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
            name = host.decode() if isinstance(host, bytes) else host
            if name == "records.example":
                return real("127.0.0.1", leads_to[0], *arguments, **options)
            return real(host, port, *arguments, **options)

        monkeypatch.setattr(socket, "getaddrinfo", looked_up)

        async def steps(verbs: AsyncVerbs) -> None:
            await lease_of(verbs, b"on the old one")
            leads_to[0] = new.port
            with old.connect() as plain:
                plain.execute_command("REPLICAOF", "127.0.0.1", new.port)
            await lease_of(verbs, b"on the new one")
            leads_to[0] = last.port
            new.kill()
            await lease_of(verbs, b"on the last one")
            with last.connect() as plain:
                assert plain.dbsize() == 1

        run(mode, RedisBackend("redis://records.example", timeout=5, coalesce=coalesce), steps)


@pytest.fixture(scope="module")
def plain_server() -> Iterator[Server]:
    """A server with TLS; leave it running."""
    with server() as plain_server:
        yield plain_server


def test_certificates_that_were_renewed_are_used(how: tuple[str, bool], plain_server: Server, tmp_path: Path) -> None:
    """B-16: those of the server, and of ``ssl_ca_certs``, with the next connection, without a restart."""
    mode, coalesce = how
    context, ca = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), tmp_path / "ca.pem"

    def renew(authority: trustme.CA) -> None:
        authority.issue_cert("localhost").configure_cert(context)
        authority.cert_pem.write_to_path(str(ca))

    first = trustme.CA()
    renew(first)
    with TlsFront(plain_server, context) as front, FaultProxy(front.port) as proxy:
        url = f"rediss://localhost:{proxy.port}?ssl_ca_certs={ca}"

        async def steps(verbs: AsyncVerbs) -> None:
            for authority in (first, trustme.CA()):
                await lease_of(verbs, secrets.token_bytes(8))
                renew(authority)
                proxy.cut()
                async with anyio.create_task_group() as group:
                    for _ in range(4):
                        group.start_soon(claimed_again, verbs, secrets.token_bytes(8))

        run(mode, RedisBackend(url, timeout=10, coalesce=coalesce), steps)
