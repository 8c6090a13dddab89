"""The settings in a Redis URL or a client of the application, and the deadlines of calls to its servers.

A URL says where the servers are, how long a call may take, and which prefix the keys of records have.

A deadline covers all that redis-py does in a call: retries, redirections, discovery. A thread has at most one, which
``Deadline`` sets and ``DeadlineConnection`` obeys: no step gets more time than is left until the deadline, and none
begins after it. On asyncio the whole call is cancelled instead, by ``limited``.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf
from types import TracebackType
from typing import Any, NamedTuple, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit
from weakref import ref

import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.asyncio.sentinel
import redis.cluster
import redis.sentinel
from redis.exceptions import TimeoutError as RedisTimeoutError

from open_idempotency.backends._shared import urls
from open_idempotency.backends.redis.scripts import Keys, microseconds
from open_idempotency.exceptions import ConfigurationError

# The URL

Address = tuple[str, int]

SINGLE, SENTINEL, CLUSTER = "single", "sentinel", "cluster"
# The oldest redis-py for Sentinel and Cluster. For a single server the extra has the oldest version.
_LIBRARY = (6, 4)


class _Scheme(NamedTuple):
    topology: str
    port: int
    options: tuple[str, ...] = ()


_SCHEMES = {
    "redis": _Scheme(SINGLE, 6379),
    "redis+sentinel": _Scheme(SENTINEL, 26379, ("sentinel_username", "sentinel_password")),
    "redis+cluster": _Scheme(CLUSTER, 6379),
}
#: the options after the ``?`` of each URL
OPTIONS: dict[str, urls.Parser] = {
    "coalesce": urls.yes_or_no,
    "eviction": urls.choice("warn", "refuse", "ignore"),
    "max_connections": urls.count,
    "min_replicas": urls.count_or_none,
    "prefix": urls.text,
    "replicas_timeout": urls.seconds,
    "timeout": urls.seconds,
}
_LOGIN_OPTIONS: dict[str, urls.Parser] = {"sentinel_username": str, "sentinel_password": str}
_TLS_OPTIONS: dict[str, urls.Parser] = {
    "ssl_ca_certs": str,
    "ssl_check_hostname": urls.choice("yes", "no"),
    "ssl_certfile": str,
    "ssl_keyfile": str,
    "ssl_cert_reqs": urls.choice("required", "optional", "none"),
}


@dataclass(frozen=True)
class Options:
    """The settings of a backend. Durations are seconds. ``timeout`` limits each step of a call.

    ``login`` and ``sentinel_login`` hold passwords.
    """

    where: str
    topology: str
    tls: bool
    addresses: tuple[Address, ...]
    prefix: bytes = b"oi:"
    timeout: float = 1.0
    max_connections: int = 64
    min_replicas: int = 0
    replicas_timeout: float = 0.0
    eviction: str = "warn"
    coalesce: bool = True
    #: whether waiting duplicates listen to the server
    listens: bool = True
    clock: Callable[[], float] | None = None
    #: the name under which Sentinel knows the primary
    service: str = ""
    database: int = 0
    #: the path of the server's socket, if it has one; then there are no addresses
    path: str = ""
    #: from the address that a node of a Cluster has to the address by which it is reached
    remap: Callable[[Address], Address] | None = None
    ssl: dict[str, Any] = field(default_factory=dict[str, Any], repr=False)
    login: dict[str, Any] = field(default_factory=dict[str, Any], repr=False)
    sentinel_login: dict[str, Any] = field(default_factory=dict[str, Any], repr=False)
    #: the same for the Sentinels
    sentinel_tls: bool = False
    sentinel_ssl: dict[str, Any] = field(default_factory=dict[str, Any], repr=False)

    @property
    def address(self) -> Address | None:
        """The first address; None where the server has the path of a socket."""
        return self.addresses[0] if self.addresses else None

    @property
    def for_sentinels(self) -> Options:
        """The settings of connections to the Sentinels."""
        return replace(self, tls=self.sentinel_tls, ssl=self.sentinel_ssl, login=self.sentinel_login, database=0)

    @cached_property
    def budget(self) -> float:
        """Seconds for a verb: waiting for the pool, connecting with the handshake, the reply, and a first try before.

        Waiting for replicas takes one step more.
        """
        return self.connects_within + self.timeout * (3 + (self.min_replicas > 0))

    @cached_property
    def connects_within(self) -> float:
        """Seconds for a new connection with its handshake, and for discovering its server."""
        login = "password" in self.login or "credential_provider" in self.login
        handshake = login + (self.database != 0) + self.tls
        return self.timeout * (1 + handshake + (self.topology != SINGLE))

    @cached_property
    def carried_out_within(self) -> float:
        """Seconds for a batch. Its requests may have waited for the batch before it."""
        return self.budget - self.timeout

    @cached_property
    def call_timeout(self) -> float:
        """Seconds for a call. After a claim one more step reads the server's memory, or releases the claim."""
        return self.budget + self.timeout

    @cached_property
    def wait_command(self) -> tuple[str, int, int]:
        """The command that waits for replicas, after a write on the same connection. 0 ms would mean no limit."""
        return ("WAIT", self.min_replicas, max(1, int(self.replicas_timeout * 1000)))

    @cached_property
    def keys(self) -> Keys:
        """The names of our keys on the servers."""
        return Keys(self.prefix)

    @cached_property
    def now(self) -> Callable[[], bytes | int]:
        """Returns the time for the scripts; empty for the server's clock."""
        clock = self.clock
        return bytes if clock is None else lambda: microseconds(clock())


def read_url(url: str, given: dict[str, Any]) -> Options:
    """The options of a URL. Keywords in ``given`` that are not None override them. Raises ``ConfigurationError``."""
    parts = _split(url)
    kind, _, way = parts.scheme.partition("+")
    tls = kind == "rediss"
    scheme = _SCHEMES.get("+".join(filter(None, ("redis" if tls else kind, way))))
    if scheme is None:
        raise ConfigurationError(f"backend: expected one of {', '.join(_SCHEMES)}, got {parts.scheme!r}")
    login = {name: _LOGIN_OPTIONS[name] for name in scheme.options}
    read = urls.options(parts, {**OPTIONS, **login, **(_TLS_OPTIONS if tls else {})})
    who = _authority(parts.netloc, scheme.port)
    if scheme.topology == SINGLE and len(who.addresses) > 1:
        raise ConfigurationError(
            "backend: redis:// takes one host; several are for redis+sentinel:// and redis+cluster://"
        )
    check_library(scheme.topology, parts.scheme)
    path = _PATHS[scheme.topology](parts.scheme, parts.path)
    ssl = _ssl({name: read.pop(name) for name in list(read) if name in _TLS_OPTIONS}, tls)
    fixed = {
        **path,
        "ssl": ssl,
        "sentinel_tls": tls,
        "sentinel_ssl": ssl,
        "login": _login(who),
        "sentinel_login": {name.partition("_")[2]: read.pop(name) for name in list(read) if name in _LOGIN_OPTIONS},
    }
    written_path = "/".join(filter(None, (path.get("service"), str(path["database"]))))
    where = f"{parts.scheme}://{written(who.addresses)}/{written_path}"
    return with_settings(replace(Options(where, scheme.topology, tls, who.addresses), **fixed), read, given)


def with_settings(options: Options, read: dict[str, Any], given: dict[str, Any]) -> Options:
    """The options with the settings that were ``read``; keywords in ``given`` that are not None override them.

    Raises ``ConfigurationError``.
    """
    settings = {**read, **urls.keywords(given, OPTIONS)}
    if isinstance(settings.get("prefix"), str):
        settings["prefix"] = settings["prefix"].encode("utf-8", "surrogateescape")
    return _checked(replace(options, **settings))


def _ssl(read: dict[str, Any], tls: bool) -> dict[str, Any]:
    if not tls:
        return {}
    # Always passed, because redis-py's default was no. The name in a certificate that is not verified means nothing.
    named = read.get("ssl_check_hostname", "yes") == "yes" and read.get("ssl_cert_reqs") != "none"
    return {"ssl_cert_reqs": "required", **read, "ssl_check_hostname": named}


def _login(who: _Authority) -> dict[str, Any]:
    found = {"username": who.username, "password": who.password}
    return {name: value for name, value in found.items() if value is not None}


def _database(scheme: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ConfigurationError(f"backend: {scheme}://: the path is the database's number, not {text!r}")
    return int(text)


def _single(scheme: str, path: str) -> dict[str, Any]:
    return {"database": _database(scheme, path.strip("/") or "0")}


def check_library(topology: str, scheme: str) -> None:
    """Raise ``ConfigurationError`` for a redis-py whose connections for Sentinel and Cluster are not thread-safe."""
    found = redis.__version__
    major, minor = (int(part) for part in found.split(".")[:2])
    if topology != SINGLE and (major, minor) < _LIBRARY:
        raise ConfigurationError(f"backend: {scheme}:// needs redis 6.4 or later, found {found}: pip install -U redis")


def _sentinel(scheme: str, path: str) -> dict[str, Any]:
    service, _, database = path.strip("/").partition("/")
    if not service:
        raise ConfigurationError(
            f"backend: {scheme}://: the path begins with the name of the service, as in /mymaster/0"
        )
    return {"service": unquote(service), "database": _database(scheme, database or "0")}


def _cluster(scheme: str, path: str) -> dict[str, Any]:
    if _database(scheme, path.strip("/") or "0") != 0:
        raise ConfigurationError(f"backend: {scheme}://: a Cluster has no database but 0")
    return {"database": 0}


_PATHS: dict[str, Callable[[str, str], dict[str, Any]]] = {SINGLE: _single, SENTINEL: _sentinel, CLUSTER: _cluster}


def _checked(options: Options) -> Options:
    if options.replicas_timeout >= options.timeout:
        raise ConfigurationError(f"replicas_timeout: must be below timeout ({options.timeout} s)")
    return options if options.replicas_timeout else replace(options, replicas_timeout=options.timeout / 2)


_MALFORMED = "backend: the URL is malformed (host or port)"


class _Authority(NamedTuple):
    """The part of a URL between ``//`` and the path. ``addresses``: host and port of each server, in order."""

    username: str | None
    password: str | None
    addresses: tuple[Address, ...]


def _split(url: str) -> SplitResult:
    """The parts of a URL that may name several hosts. No error repeats the URL, which may hold a password."""
    try:
        return urlsplit(url)
    except ValueError:
        raise ConfigurationError(_MALFORMED) from None


def _authority(netloc: str, default_port: int) -> _Authority:
    """Login and addresses. No error repeats them."""
    login, _, hosts = netloc.rpartition("@")
    username, _, password = login.partition(":")
    addresses = tuple(_address(host, default_port) for host in hosts.split(","))
    return _Authority(unquote(username) or None, unquote(password) or None, addresses)


def _address(text: str, default_port: int) -> Address:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        colon, port = rest[:1], rest[1:]
    else:
        host, colon, port = text.partition(":")
        bracket = "]"
    if not bracket or colon not in ("", ":") or not (port == "" or _is_port(port)):
        raise ConfigurationError(_MALFORMED)
    return host.lower() or "localhost", int(port) if port else default_port


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and int(text) < 65536


def written(addresses: tuple[Address, ...]) -> str:
    """The addresses as a URL has them."""
    return ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in addresses)


# Deadlines of calls

T = TypeVar("T")
LATE = "no reply in time"


class Deadline:
    """``with Deadline(2.0):`` ends the Redis calls of its block after 2 seconds. A deadline that is nearer stays."""

    __slots__ = ("__weakref__", "_before", "_seconds", "until")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._before: _Lookup = _none
        #: a time of ``time.monotonic``
        self.until = inf

    def __enter__(self) -> None:
        self._before = current.deadline
        outer = self._before()
        until = time.monotonic() + self._seconds
        self.until = until if outer is None else min(until, outer.until)
        current.deadline = ref(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        current.deadline = self._before


_Lookup = Callable[[], Deadline | None]


def _none() -> None:
    return None


class _Thread(threading.local):
    # Weak: a signal's handler may raise while a block is left. The deadline of that block then ends with the object.
    deadline: _Lookup = staticmethod(_none)


#: the thread's deadline, which ``Deadline`` sets; read without a function, since each step of each call reads it
current = _Thread()


def seconds_left() -> float | None:
    """Seconds until this thread's deadline; None where there is none."""
    deadline = current.deadline()
    return None if deadline is None else deadline.until - time.monotonic()


async def limited(seconds: float, work: Awaitable[T]) -> T:
    """Await ``work`` on asyncio for at most ``seconds``, then cancel it and raise redis-py's ``TimeoutError``."""
    try:
        return await asyncio.wait_for(work, seconds)
    except asyncio.TimeoutError:
        raise RedisTimeoutError(LATE) from None


# What a client of the application says about its servers: where they are, and how to log in. Only its settings are
# read, by redis-py's public names. Its connections are never used and never closed: a claim needs time limits of its
# own, and bytes for replies. Where the settings do not say where the client's connections go, the client is refused
# when the backend is made.

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
    addresses: tuple[Address, ...] = () if path else (_address_of_client(said),)
    where = f"unix://{path}?db={database}" if path else f"{_scheme(tls)}://{written(addresses)}/{database}"
    return _made(Options(where, SINGLE, tls, addresses, path=path, database=database), said, given)


def _of_sentinel(pool: Any, given: dict[str, Any]) -> Options:
    if not pool.is_master:
        raise ConfigurationError("backend: the client reads replicas; pass that of sentinel.master_for(...)")
    said: Mapping[str, Any] = pool.connection_kwargs
    tls = _tls(pool.connection_class)
    sentinels = [(each.get_connection_kwargs(), each.connection_pool) for each in pool.sentinel_manager.sentinels]
    addresses = tuple(_address_of_client(each) for each, _ in sentinels)
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
        sentinel_ssl=_ssl_of_client(first, sentinel_tls, SENTINEL),
        sentinel_login=_login_of_client(first),
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
    read = dict[str, Any](
        ssl=_ssl_of_client(said, options.tls, options.topology), login=_login_of_client(said), timeout=_timeout(said)
    )
    return with_settings(options, read, given)


def _scheme(tls: bool) -> str:
    return "rediss" if tls else "redis"


def _address_of_client(said: Mapping[str, Any]) -> Address:
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


def _login_of_client(said: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: said.get(name) for name in _LOGIN}
    return {name: value for name, value in found.items() if value is not None}


def _ssl_of_client(said: Mapping[str, Any], tls: bool, topology: str) -> dict[str, Any]:
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
