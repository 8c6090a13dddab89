"""What a Redis URL says: where the server is, how long a try may take, and under which prefix records live."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import SplitResult, unquote

from open_idempotency.backends import urls
from open_idempotency.backends.redis.scripts import microseconds
from open_idempotency.exceptions import ConfigurationError

_SCHEMES = ("redis", "rediss")
_OPTIONS: dict[str, urls.Parser] = {
    "prefix": str,
    "timeout": urls.seconds,
    "max_connections": urls.count,
}
_TLS_OPTIONS: dict[str, urls.Parser] = {
    "ssl_ca_certs": str,
    "ssl_certfile": str,
    "ssl_keyfile": str,
    "ssl_cert_reqs": urls.choice("required", "optional", "none"),
}
_GLOB_CHARACTERS = frozenset(b"*?[]\\")


@dataclass(frozen=True)
class Options:
    """``timeout``: seconds for each step of a call; ``connection``: the client library's arguments, with passwords."""

    where: str
    tls: bool
    prefix: bytes = b"oi:"
    timeout: float = 1.0
    max_connections: int = 64
    clock: Callable[[], float] | None = None
    connection: dict[str, Any] = field(default_factory=dict[str, Any], repr=False)

    @property
    def call_timeout(self) -> float:
        """Waiting for a connection, connecting, authenticating, selecting, the answer; and a first try before."""
        handshake = sum(self.connection.get(name) not in (None, 0) for name in ("password", "db"))
        return self.timeout * (4 + handshake)

    def key(self, record_id: bytes) -> bytes:
        """Where a record is kept."""
        return self.prefix + record_id.hex().encode()

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
    parts = urls.split(url)
    if parts.scheme not in _SCHEMES:
        raise ConfigurationError(f"backend: expected redis:// or rediss://, got {parts.scheme!r}")
    tls = parts.scheme == "rediss"
    read = urls.options(parts, {**_OPTIONS, **(_TLS_OPTIONS if tls else {})})
    connection = {**_server(parts), **{name: read.pop(name) for name in list(read) if name in _TLS_OPTIONS}}
    read.update((name, value) for name, value in given.items() if value is not None)
    if isinstance(read.get("prefix"), str):
        read["prefix"] = read["prefix"].encode("utf-8", "surrogateescape")
    where = f"{parts.scheme}://{connection['host']}:{connection['port']}/{connection['db']}"
    return _checked(replace(Options(where, tls), connection=connection, **read))


def _server(parts: SplitResult) -> dict[str, Any]:
    database = parts.path.strip("/") or "0"
    if not (database.isascii() and database.isdecimal()):
        raise ConfigurationError(f"backend: {parts.scheme}://: the path is the database's number, not {parts.path!r}")
    return {
        "host": parts.hostname or "localhost",
        "port": parts.port or 6379,
        "db": int(database),
        "username": unquote(parts.username) if parts.username else None,
        "password": unquote(parts.password) if parts.password else None,
    }


def _checked(options: Options) -> Options:
    try:
        urls.positive(options.timeout)
    except ValueError as error:
        raise ConfigurationError(f"timeout: {error}") from None
    if options.max_connections < 1:
        raise ConfigurationError(f"max_connections: must be at least 1, got {options.max_connections}")
    return options
