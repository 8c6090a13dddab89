"""An application's redis-py client as a backend: its settings are used, and the client itself is not."""

from __future__ import annotations

import inspect
import secrets
import ssl
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.cluster
import redis.sentinel
import trustme
from redis.credentials import UsernamePasswordCredentialProvider

from open_idempotency import open_backend
from open_idempotency.asgi import IdempotencyMiddleware
from open_idempotency.backend import Complete, Finished, Renew, Renewal, Wait
from open_idempotency.backends.redis import RedisBackend
from open_idempotency.conformance import AsyncVerbs
from open_idempotency.conformance.support import claim_of, lease_of
from open_idempotency.exceptions import BackendUnavailable, ConfigurationError
from tests.backends.redis.on_redis import run, server
from tests.servers import Server
from tests.topologies import SERVICE, Cluster, TlsFront

SECRET = "s3cr3t-word"
CLIENTS: dict[str, Any] = {"sync client": redis.Redis, "async client": redis.asyncio.Redis}


# Under trio calls are those of the sync front.
@pytest.fixture(params=["sync", "asyncio"])
def mode(request: pytest.FixtureRequest) -> str:
    mode: str = request.param
    return mode


@pytest.fixture(params=CLIENTS)
def kind(request: pytest.FixtureRequest) -> Any:
    """The class of a client for a single server."""
    return CLIENTS[request.param]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """A server with a password, and the path of its socket."""
    path = tmp_path_factory.mktemp("s") / "s"
    with server("--requirepass", SECRET, "--unixsocket", str(path)) as guarded:
        yield guarded, path


async def _life(verbs: AsyncVerbs) -> None:
    """Use scripts, batched renewals, and the connection for channels."""
    name = secrets.token_bytes(8)
    lease = await lease_of(verbs, name)
    assert list(await verbs.renew(Renew([lease]))) == [Renewal.OWNED]
    await verbs.wait(Wait(name, 0.01, 0.01))
    await verbs.complete(Complete(lease, b"\xff response"))
    assert await verbs.claim(claim_of(name)) == Finished(b"\xff response")


def _opened(client: Any, **options: Any) -> RedisBackend:
    backend = open_backend(client, **options)
    assert isinstance(backend, RedisBackend)
    assert SECRET not in f"{backend!r} {backend.options!r} {backend.to_async()!r}"
    return backend


def test_host_login_and_database_of_a_client_are_used(mode: str, kind: Any, guarded: tuple[Server, Path]) -> None:
    """B-15: also of a client that decodes replies, unlike the backend's own clients."""
    where, _ = guarded
    client = kind(host="127.0.0.1", port=where.port, password=SECRET, db=3, decode_responses=True, protocol=3)
    run(mode, _opened(client), _life)
    with redis.Redis(port=where.port, password=SECRET, db=3) as plain:
        assert plain.dbsize()
        plain.flushdb()


def test_a_client_from_the_url_of_an_environment_is_used(mode: str, kind: Any, guarded: tuple[Server, Path]) -> None:
    """B-15: with options of redis-py's URLs that the backend's URLs lack."""
    where, _ = guarded
    client = kind.from_url(f"redis://localhost:{where.port}?db=4&password={SECRET}")
    backend = _opened(client)
    assert backend.options.database == 4
    run(mode, backend, _life)


def test_the_path_of_a_socket_is_used(mode: str, kind: Any, guarded: tuple[Server, Path]) -> None:
    """B-15: for scripts, batches, and the connection for channels."""
    _, path = guarded
    backend = _opened(kind(unix_socket_path=str(path), username="default", password=SECRET))
    assert repr(backend) == f"RedisBackend('unix://{path}?db=0')"
    run(mode, backend, _life)


def test_a_provider_of_credentials_is_used(mode: str, kind: Any, guarded: tuple[Server, Path]) -> None:
    """B-15: for passwords that change."""
    where, _ = guarded
    provider = UsernamePasswordCredentialProvider("default", SECRET)
    run(mode, _opened(kind(host="127.0.0.1", port=where.port, credential_provider=provider)), _life)


def test_tls_is_used_as_the_client_uses_it(mode: str, kind: Any, tmp_path: Path, valkey_url: str) -> None:
    """B-15: with its certificate authority; without it the certificate is refused."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with TlsFront(_server_at(valkey_url), context) as front:
        where = {"host": "localhost", "port": front.port, "ssl": True}
        run(mode, _opened(kind(**where, ssl_ca_certs=str(tmp_path / "ca.pem"), socket_timeout=20)), _life)

        async def refused(verbs: AsyncVerbs) -> None:
            with pytest.raises(BackendUnavailable):
                await verbs.claim(claim_of(b"new"))

        run(mode, _opened(kind(**where)), refused)


def _server_at(url: str) -> Any:
    class At:
        port = urlsplit(url).port

    return At()


@pytest.mark.parametrize("library", ["sync client", "async client"])
def test_the_nodes_of_a_cluster_are_used(mode: str, library: str, cluster: Cluster) -> None:
    """B-15: also of an async client that has not connected yet."""
    where: dict[str, Any] = {"host": "127.0.0.1", "port": cluster.nodes[1].port}
    where["load_balancing_strategy"] = (
        redis.cluster.LoadBalancingStrategy.ROUND_ROBIN
    )  # which has a function for new connections
    if library == "sync client":
        with redis.RedisCluster(**where) as client:
            run(mode, _opened(client), _life)
            assert client.ping(target_nodes=redis.RedisCluster.RANDOM)
    else:
        run(mode, _opened(redis.asyncio.RedisCluster(**where)), _life)


@pytest.mark.parametrize("library", [redis.sentinel, redis.asyncio.sentinel], ids=CLIENTS)
def test_the_primary_of_a_sentinel_is_used(mode: str, library: Any, sentinel_url: str) -> None:
    """B-15, B-14a: the backend queries the Sentinels itself, and subscribes to them."""
    sentinel = library.Sentinel([("127.0.0.1", urlsplit(sentinel_url).port)])
    backend = _opened(sentinel.master_for(SERVICE, db=2))
    assert backend.options.service == SERVICE
    assert backend.options.database == 2
    run(mode, backend, _life)


def test_sentinels_and_servers_have_tls_of_their_own(mode: str, sentinel_url: str, tmp_path: Path) -> None:
    """B-15: here only the Sentinels have TLS; the client has settings for both."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with TlsFront(_server_at(sentinel_url), context) as front:
        settings: Any = {"ssl": True, "ssl_ca_certs": str(tmp_path / "ca.pem")}
        sentinel: Any = redis.sentinel.Sentinel([("localhost", front.port)], sentinel_kwargs=settings)
        run(mode, _opened(sentinel.master_for(SERVICE), timeout=5), _life)


def test_the_client_is_neither_used_nor_closed(valkey_url: str) -> None:
    """B-15: its one connection stays the same, and it opens no other."""
    with redis.Redis.from_url(valkey_url, max_connections=1) as client:
        before = client.client_id()
        backend = _opened(client)
        run("sync", backend, _life)
        run("asyncio", backend, _life)
        backend.close()
        assert client.client_id() == before


def test_the_async_client_is_neither_used_nor_closed(valkey_url: str) -> None:
    """B-15: its one connection stays the same, on the same loop."""

    async def steps(verbs: AsyncVerbs) -> None:
        async with redis.asyncio.Redis.from_url(valkey_url, max_connections=1) as client:
            before = await client.client_id()
            backend = _opened(client).to_async()
            await _life(AsyncVerbs(backend))
            await backend.close()
            assert await client.client_id() == before

    run("asyncio", RedisBackend(valkey_url), steps)


def test_options_and_timeouts_of_a_client() -> None:
    """B-15: keywords win, then a timeout of the client that is shorter than the default."""
    assert RedisBackend(redis.Redis(socket_timeout=0.2)).options.timeout == 0.2
    assert RedisBackend(redis.Redis(socket_connect_timeout=0.3)).options.timeout == 0.3
    assert RedisBackend(redis.Redis(socket_timeout=30, socket_connect_timeout=None)).options.timeout == 1.0
    backend = open_backend(redis.Redis(socket_timeout=0.2), timeout=2.0, prefix="shop:", min_replicas=1)
    assert isinstance(backend, RedisBackend)
    assert (backend.options.timeout, backend.options.prefix, backend.options.min_replicas) == (2.0, b"shop:", 1)


def test_middleware_takes_a_client() -> None:
    """B-15: a wrong client is refused at start."""

    async def app(scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
        raise NotImplementedError

    IdempotencyMiddleware(app, backend=redis.Redis())
    with pytest.raises(ConfigurationError, match="master_for"):
        IdempotencyMiddleware(app, backend=redis.sentinel.Sentinel([("127.0.0.1", 1)]))


class _Tunnel(redis.Connection):
    """A connection class of the application."""


def _through_a_tunnel() -> redis.Redis:
    return redis.Redis(connection_pool=redis.ConnectionPool(connection_class=_Tunnel))


def _greeting(_: object) -> None:
    """A callback of the application for new connections."""


def _with_a_setting_of_one_kind() -> redis.Redis:
    return redis.Redis(ssl=True, ssl_validate_ocsp=True)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a Sentinel": (lambda: redis.sentinel.Sentinel([("127.0.0.1", 1)]), r"pass sentinel.master_for"),
    "replicas": (lambda: redis.sentinel.Sentinel([("127.0.0.1", 1)]).slave_for("x"), "reads replicas"),
    "another kind of connection": (_through_a_tunnel, r"of the class .*_Tunnel.*pass a URL"),
    "a function for new connections": (lambda: redis.Redis(redis_connect_func=_greeting), "redis_connect_func"),
    "TLS that async connections lack": (_with_a_setting_of_one_kind, "does not take ssl_validate_ocsp"),
    "a pool": (redis.ConnectionPool, r"expected a client .*, got redis.connection.ConnectionPool"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_client_that_cannot_be_followed_is_refused_at_start(name: str) -> None:
    """B-15: the error says what to use instead."""
    make, message = REFUSED[name]
    with pytest.raises(ConfigurationError, match=message):
        open_backend(make())


def test_a_client_library_that_says_nothing_is_refused_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """B-15: if a later redis-py renames attributes, the error says so and suggests a URL."""
    client = redis.sentinel.Sentinel([("127.0.0.1", 1)]).master_for("x")
    monkeypatch.setattr(client.connection_pool, "sentinel_manager", object())
    with pytest.raises(ConfigurationError, match=f"redis-py {redis.__version__} does not say where .* pass a URL"):
        open_backend(client)


def test_what_is_no_client_is_refused_at_start() -> None:
    """B-15: the error names the type and repeats no value."""
    assert not inspect.iscoroutinefunction(open_backend)
    with pytest.raises(ConfigurationError, match=r"a client of redis-py, .* got object"):
        open_backend(object())
