"""What a client of the application says about its servers: where they are, and how to log in.

Only its settings are read, by redis-py's public names. Its connections are never used and never closed: a claim needs
time limits of its own, and bytes for replies. Where the settings do not say where the client's connections go, the
client is refused when the backend is made.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.asyncio.sentinel
import redis.cluster
import redis.sentinel

from open_idempotency.backends.redis.options import (
    CLUSTER,
    SENTINEL,
    SINGLE,
    Address,
    Options,
    check_library,
    read_url,
    with_settings,
    written,
)
from open_idempotency.exceptions import ConfigurationError

_LOGIN = ("username", "password", "credential_provider")
_CLUSTERS = (redis.cluster.RedisCluster, redis.asyncio.cluster.RedisCluster)
_CLIENTS = (redis.Redis, redis.asyncio.Redis)
_SENTINELS = (redis.sentinel.Sentinel, redis.asyncio.sentinel.Sentinel)
_SENTINEL_POOLS = (redis.sentinel.SentinelConnectionPool, redis.asyncio.sentinel.SentinelConnectionPool)
_TLS_KINDS = (
    redis.SSLConnection,
    redis.asyncio.SSLConnection,
    redis.sentinel.SentinelManagedSSLConnection,
    redis.asyncio.sentinel.SentinelManagedSSLConnection,
)
_PLAIN_KINDS = (
    redis.Connection,
    redis.asyncio.Connection,
    redis.UnixDomainSocketConnection,
    redis.asyncio.UnixDomainSocketConnection,
    redis.sentinel.SentinelManagedConnection,
    redis.asyncio.sentinel.SentinelManagedConnection,
)


def options_of(url: str | Any, given: dict[str, Any]) -> Options:
    """The options of a URL or of a client; keywords in ``given`` override them. Raises ``ConfigurationError``."""
    return read_url(url, given) if isinstance(url, str) else read_client(url, given)


def read_client(client: Any, given: dict[str, Any]) -> Options:
    """The options for the servers of a client of redis-py's. Keywords in ``given`` that are not None override them.

    Raises ``ConfigurationError``.
    """
    try:
        if isinstance(client, _CLUSTERS):
            return _of_cluster(client, given)
        if isinstance(client, _CLIENTS):
            pool = client.connection_pool
            return _of_sentinel(pool, given) if isinstance(pool, _SENTINEL_POOLS) else _of_server(client, given)
    except AttributeError as error:  # this version of redis-py has other names
        raise ConfigurationError(
            f"backend: redis-py {redis.__version__} does not say where {_name(client)} connects ({error}); pass a URL"
        ) from error
    if isinstance(client, _SENTINELS):
        raise ConfigurationError(
            "backend: a Sentinel object does not name a service; pass sentinel.master_for('mymaster')"
        )
    raise ConfigurationError(
        f"backend: expected a client such as redis.Redis or redis.asyncio.RedisCluster, got {_name(client)}"
    )


def _name(client: object) -> str:
    return f"{type(client).__module__}.{type(client).__qualname__}"


def _of_server(client: Any, given: dict[str, Any]) -> Options:
    # Only the settings are read: connections of the application's have other timeouts, and retries of their own.
    said: Mapping[str, Any] = client.get_connection_kwargs()
    tls = _tls(client.connection_pool.connection_class)
    database = int(said.get("db") or 0)
    path = str(said.get("path") or "")
    addresses: tuple[Address, ...] = () if path else (_address(said),)
    where = f"unix://{path}?db={database}" if path else f"{_scheme(tls)}://{written(addresses)}/{database}"
    return _made(Options(where, SINGLE, tls, addresses, path=path, database=database), said, given)


def _of_sentinel(pool: Any, given: dict[str, Any]) -> Options:
    if not pool.is_master:
        raise ConfigurationError("backend: the client reads replicas; pass that of sentinel.master_for(...)")
    said: Mapping[str, Any] = pool.connection_kwargs
    tls = _tls(pool.connection_class)
    sentinels = [(each.get_connection_kwargs(), each.connection_pool) for each in pool.sentinel_manager.sentinels]
    addresses = tuple(_address(each) for each, _ in sentinels)
    first, first_pool = sentinels[0]
    sentinel_tls = _tls(first_pool.connection_class)
    database = int(said.get("db") or 0)
    service = str(pool.service_name)
    where = f"{_scheme(tls)}+sentinel://{written(addresses)}/{service}/{database}"
    options = Options(
        where,
        SENTINEL,
        tls,
        addresses,
        service=service,
        database=database,
        sentinel_tls=sentinel_tls,
        sentinel_ssl=_ssl(first, sentinel_tls, SENTINEL),
        sentinel_login=_login(first),
    )
    return _made(options, said, given)


def _of_cluster(client: Any, given: dict[str, Any]) -> Options:
    said: Mapping[str, Any] = client.get_connection_kwargs()
    tls = bool(said.get("ssl")) or _tls(said.get("connection_class", redis.Connection))
    nodes = {node.name: node for node in (*client.nodes_manager.startup_nodes.values(), *client.get_nodes())}
    addresses: tuple[Address, ...] = tuple((str(node.host), int(node.port)) for node in nodes.values())
    where = f"{_scheme(tls)}+cluster://{written(addresses)}"
    options = Options(where, CLUSTER, tls, addresses, remap=client.nodes_manager.address_remap)
    # The client's own function for new connections lets it read replicas, which is not done here.
    connects = said.get("redis_connect_func")
    own = getattr(client, "user_on_connect_func", None) if connects == client.on_connect else connects
    return _made(options, {**said, "redis_connect_func": own}, given)


def _made(options: Options, said: Mapping[str, Any], given: dict[str, Any]) -> Options:
    check_library(options.topology, options.where.partition("://")[0])
    if said.get("redis_connect_func") is not None:
        raise ConfigurationError(
            "backend: the client has a redis_connect_func, which cannot be called for both sync and async connections; "
            "pass a client without it (for a login that changes: credential_provider)"
        )
    read = dict[str, Any](ssl=_ssl(said, options.tls, options.topology), login=_login(said), timeout=_timeout(said))
    return with_settings(options, read, given)


def _scheme(tls: bool) -> str:
    return "rediss" if tls else "redis"


def _address(said: Mapping[str, Any]) -> Address:
    return str(said.get("host") or "localhost"), int(said.get("port") or 6379)


def _tls(kind: Any) -> bool:
    """Whether connections of this class have TLS. Raises ``ConfigurationError`` for a class that is not redis-py's."""
    if kind in _TLS_KINDS:
        return True
    if kind in _PLAIN_KINDS:
        return False
    raise ConfigurationError(
        f"backend: the client's connections are of the class {kind.__module__}.{kind.__qualname__}; the backend makes "
        "its own connections, of redis-py's classes, which may go elsewhere: pass a URL, or memory:// in tests"
    )


def _login(said: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: said.get(name) for name in _LOGIN}
    return {name: value for name, value in found.items() if value is not None}


def _ssl(said: Mapping[str, Any], tls: bool, topology: str) -> dict[str, Any]:
    """The TLS settings. Raises ``ConfigurationError`` for one that cannot be used for both sync and async connections.

    One that is off is not needed.
    """
    if not tls:
        return {}
    known = _known_ssl(topology)
    found = {name: value for name, value in said.items() if name.startswith("ssl_") and value not in (None, "")}
    unknown = sorted(name for name, value in found.items() if value and name not in known)
    if unknown:
        raise ConfigurationError(
            f"backend: redis-py {redis.__version__} does not take {', '.join(unknown)} for both sync and async "
            "connections; pass a client without that setting"
        )
    return {name: value for name, value in found.items() if name in known}


def _known_ssl(topology: str) -> set[str]:
    """The TLS settings that the connections of both kinds take."""
    if topology == CLUSTER:
        sync: set[str] = set(redis.cluster.REDIS_ALLOWED_KEYS)
        return sync & set(inspect.signature(redis.asyncio.cluster.RedisCluster).parameters)
    kinds: tuple[Any, ...] = (redis.SSLConnection, redis.asyncio.SSLConnection)
    sync_names, async_names = (set(inspect.signature(kind).parameters) for kind in kinds)
    return sync_names & async_names


def _timeout(said: Mapping[str, Any]) -> float:
    """The time for a step: the client's where it is shorter than the default. A longer one is not taken, since the
    slowest call has to be shorter than a lease."""
    limits = [said.get("socket_timeout"), said.get("socket_connect_timeout")]
    return min([Options.timeout, *(float(limit) for limit in limits if limit)])
