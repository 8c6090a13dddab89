"""What a Redis URL says: where the servers are, how long a call may take, and under which prefix records live."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple
from urllib.parse import unquote

import redis

from open_idempotency.backends._shared import urls
from open_idempotency.backends.redis.addresses import Address, Authority, authority, split, written
from open_idempotency.backends.redis.scripts import microseconds
from open_idempotency.exceptions import ConfigurationError

SINGLE, SENTINEL, CLUSTER = "single", "sentinel", "cluster"


# of Sentinel and Cluster; a single server is content with what the extra asks for
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
_OPTIONS: dict[str, urls.Parser] = {
    "coalesce": urls.yes_or_no,
    "eviction": urls.choice("warn", "refuse", "ignore"),
    "max_connections": urls.count,
    "min_replicas": urls.count,
    "prefix": str,
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
_RESERVATIONS = b"quota:"
_GLOB_CHARACTERS = frozenset(b"*?[]\\")


@dataclass(frozen=True)
class Options:
    """``timeout``: seconds for each step of a call; ``login`` and ``sentinel_login`` hold passwords."""

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
    clock: Callable[[], float] | None = None
    #: of Sentinel: the name under which it knows the primary
    service: str = ""
    database: int = 0
    ssl: dict[str, Any] = field(default_factory=dict[str, Any], repr=False)
    login: dict[str, Any] = field(default_factory=dict[str, Any], repr=False)
    sentinel_login: dict[str, Any] = field(default_factory=dict[str, Any], repr=False)

    @property
    def budget(self) -> float:
        """Seconds for a verb: a place in the pool, connecting, the handshake, the answer; and a first try before.

        Finding the server takes one step more, and so does waiting for its replicas.
        """
        return self.connects_within + self.timeout * (3 + (self.min_replicas > 0))

    @property
    def connects_within(self) -> float:
        """Seconds for a new connection with its handshake, and for finding where it goes."""
        handshake = ("password" in self.login) + (self.database != 0) + self.tls
        return self.timeout * (1 + handshake + (self.topology != SINGLE))

    @property
    def carried_out_within(self) -> float:
        """Seconds for a batch; what is asked may have waited for one before it."""
        return self.budget - self.timeout

    @property
    def call_timeout(self) -> float:
        """What follows a claim takes one step: looking at the server's memory, or giving the claim back."""
        return self.budget + self.timeout

    @property
    def wait_command(self) -> tuple[str, int, int]:
        """What waits for the replicas, after a write on the same connection; 0 ms would be for ever."""
        return ("WAIT", self.min_replicas, max(1, int(self.replicas_timeout * 1000)))

    def key(self, record_id: bytes) -> bytes:
        """Where a record is kept."""
        return self.prefix + record_id.hex().encode()

    def reservations_key(self, scope_id: bytes) -> bytes:
        """Where a caller's reservations are kept; no record's key has a colon behind the prefix."""
        return self.prefix + _RESERVATIONS + scope_id.hex().encode()

    def holds_reservations(self, key: bytes) -> bool:
        """Whether a key is one of those."""
        return key.startswith(self.prefix + _RESERVATIONS)

    def record_id(self, key: bytes) -> bytes | None:
        """The record that a key holds; None for a key that is not ours."""
        try:
            return bytes.fromhex(key[len(self.prefix) :].decode("ascii"))
        except ValueError:
            return None

    def pattern(self) -> bytes:
        """What ``SCAN`` is to match."""
        escaped = b"".join(b"\\%c" % byte if byte in _GLOB_CHARACTERS else b"%c" % byte for byte in self.prefix)
        return escaped + b"*"

    def now(self) -> bytes | int:
        """The time for the scripts: empty for the server's own."""
        return b"" if self.clock is None else microseconds(self.clock())


def read_url(url: str, given: dict[str, Any]) -> Options:
    """The options of a URL, overruled by those given as keywords that are not None. Raises ``ConfigurationError``."""
    parts = split(url)
    kind, _, way = parts.scheme.partition("+")
    tls = kind == "rediss"
    scheme = _SCHEMES.get("+".join(filter(None, ("redis" if tls else kind, way))))
    if scheme is None:
        raise ConfigurationError(f"backend: expected one of {', '.join(_SCHEMES)}, got {parts.scheme!r}")
    login = {name: _LOGIN_OPTIONS[name] for name in scheme.options}
    read = urls.options(parts, {**_OPTIONS, **login, **(_TLS_OPTIONS if tls else {})})
    who = authority(parts.netloc, scheme.port)
    if scheme.topology == SINGLE and len(who.addresses) > 1:
        raise ConfigurationError(
            "backend: redis:// takes one host; several are for redis+sentinel:// and redis+cluster://"
        )
    _check_library(scheme.topology, parts.scheme)
    place = _PLACES[scheme.topology](parts.scheme, parts.path)
    fixed = {
        **place,
        "ssl": _ssl({name: read.pop(name) for name in list(read) if name in _TLS_OPTIONS}, tls),
        "login": _login(who),
        "sentinel_login": {name.partition("_")[2]: read.pop(name) for name in list(read) if name in _LOGIN_OPTIONS},
    }
    read.update((name, value) for name, value in given.items() if value is not None)
    if isinstance(read.get("prefix"), str):
        read["prefix"] = read["prefix"].encode("utf-8", "surrogateescape")
    path = "/".join(filter(None, (place.get("service"), str(place["database"]))))
    where = f"{parts.scheme}://{written(who.addresses)}/{path}"
    return _checked(replace(Options(where, scheme.topology, tls, who.addresses), **fixed, **read))


def _ssl(read: dict[str, Any], tls: bool) -> dict[str, Any]:
    if not tls:
        return {}
    # Said in any case, since the library's default was no; a certificate that is not looked at has no name.
    named = read.get("ssl_check_hostname", "yes") == "yes" and read.get("ssl_cert_reqs") != "none"
    return {"ssl_cert_reqs": "required", **read, "ssl_check_hostname": named}


def _login(who: Authority) -> dict[str, Any]:
    found = {"username": who.username, "password": who.password}
    return {name: value for name, value in found.items() if value is not None}


def _database(scheme: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ConfigurationError(f"backend: {scheme}://: the path is the database's number, not {text!r}")
    return int(text)


def _single(scheme: str, path: str) -> dict[str, Any]:
    return {"database": _database(scheme, path.strip("/") or "0")}


def _check_library(topology: str, scheme: str) -> None:
    """Sentinel and Cluster need a client library whose connections can be used from many threads at once."""
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


_PLACES: dict[str, Callable[[str, str], dict[str, Any]]] = {SINGLE: _single, SENTINEL: _sentinel, CLUSTER: _cluster}


def _checked(options: Options) -> Options:
    for name in ("timeout", *(("replicas_timeout",) if options.replicas_timeout else ())):
        try:
            urls.positive(getattr(options, name))
        except ValueError as error:
            raise ConfigurationError(f"{name}: {error}") from None
    if options.max_connections < 1:
        raise ConfigurationError(f"max_connections: must be at least 1, got {options.max_connections}")
    if options.min_replicas < 0:
        raise ConfigurationError(f"min_replicas: must be at least 0, got {options.min_replicas}")
    if options.eviction not in ("warn", "refuse", "ignore"):
        raise ConfigurationError(f"eviction: {options.eviction!r} is none of warn, refuse, ignore")
    if options.replicas_timeout >= options.timeout:
        raise ConfigurationError(f"replicas_timeout: must be below timeout ({options.timeout} s)")
    return options if options.replicas_timeout else replace(options, replicas_timeout=options.timeout / 2)
