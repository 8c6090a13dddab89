"""The settings in a PostgreSQL URL or a pool of the application: this backend's options, and those for libpq."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from open_idempotency.backends._shared import urls
from open_idempotency.exceptions import ConfigurationError

OPTIONS: dict[str, urls.Parser] = {
    "timeout": urls.seconds,
    "max_connections": urls.count,
    "listen": urls.yes_or_no,
    "coalesce": urls.yes_or_no,
    "prepare": urls.yes_or_no,
}

#: larger than any number of requests at the same time
UNBOUNDED = 1 << 30


@dataclass(frozen=True)
class Options:
    """``timeout``: seconds to wait for a connection, and then for a reply. ``conninfo``: libpq's, with passwords."""

    where: str
    conninfo: str = field(repr=False)
    timeout: float = 2.0
    max_connections: int = 10
    listen: bool = True
    coalesce: bool = True
    prepare: bool = True
    clock: Callable[[], float] | None = None

    @property
    def call_timeout(self) -> float:
        """Seconds for the batch before, a connection, and a reply. A second try gets the seconds that are left."""
        return self.timeout * 3

    def alone(self, most: int) -> int:
        """How many requests may go alone at the same time, at most ``most``. One connection is left for batches."""
        return min(most, self.max_connections - 1) if self.coalesce else UNBOUNDED

    def now(self) -> float | None:
        """The time that the functions get; None for the server's clock."""
        return None if self.clock is None else self.clock()


def options_of(url: str | Any, given: dict[str, Any]) -> Options:
    """The options of a URL or a pool. Keywords in ``given`` that are not None override them.

    Raises ``ConfigurationError``.
    """
    if isinstance(url, str):
        return read_url(url, given)
    return _made(conninfo_to_dict(conninfo_of(url)), urls.keywords(given, OPTIONS))


def read_url(url: str, given: dict[str, Any]) -> Options:
    """See ``options_of``."""
    parts = _split(url)
    if parts.scheme not in ("postgresql", "postgres"):
        raise ConfigurationError(f"backend: expected postgresql://, got {parts.scheme!r}")
    ours, others = _parted(parts.query)
    read = urls.options(parts._replace(query=ours), OPTIONS)
    read.update(urls.keywords(given, OPTIONS))
    # Not ``urlunsplit`` of the parts, which would drop the slashes if there is no host.
    libpq = f"postgresql:{url.partition(':')[2].partition('?')[0]}" + (f"?{others}" if others else "")
    try:
        known = conninfo_to_dict(libpq)
    except ProgrammingError as error:
        # libpq's message names the option that it does not know, and repeats nothing else.
        raise ConfigurationError(f"backend: {str(error).strip()}; also valid: {', '.join(sorted(OPTIONS))}") from None
    return _made(known, read)


def _made(known: dict[str, Any], read: dict[str, Any]) -> Options:
    where = "postgresql://{}:{}/{}".format(*(known.get(name) or "" for name in ("host", "port", "dbname")))
    return _checked(replace(Options(where, ""), **read), known)


def _parted(query: str) -> tuple[str, str]:
    """The query's options of this backend, and those of libpq, unchanged: to libpq a plus is a plus, not a space."""
    ours, others = list[str](), list[str]()
    for pair in query.split("&"):
        (ours if unquote(pair.partition("=")[0]) in OPTIONS else others).append(pair)
    return "&".join(ours), "&".join(pair for pair in others if pair)


def _split(url: str) -> SplitResult:
    # Not urls.split: libpq takes several hosts, each with a port.
    try:
        return urlsplit(url)
    except ValueError:
        raise ConfigurationError("backend: the URL is malformed (host)") from None


def _checked(options: Options, known: dict[str, Any]) -> Options:
    known.setdefault("application_name", "open-idempotency")
    for port in str(known.get("port") or "").split(","):
        if port and not (port.isascii() and port.isdecimal()):
            raise ConfigurationError(f"backend: the port must be a number, not {port!r}")
    # A replay only reads, and a replica may not have received the record yet.
    known.setdefault("target_session_attrs", "read-write")
    # In whole seconds, and never below two: libpq's own limits.
    known.setdefault("connect_timeout", max(2, round(options.timeout)))
    return replace(options, conninfo=make_conninfo(**known))


# What a pool of the application's says about its server. Only its settings are read. Its connections are never used:
# handlers that hold all of them must not keep their own records from being written.

#: arguments of ``psycopg.connect`` that are not libpq's options; they do not change where it connects
_OF_PSYCOPG = frozenset({"autocommit", "prepare_threshold", "row_factory", "cursor_factory", "context"})


def conninfo_of(pool: Any) -> str:
    """How a ``psycopg_pool`` pool connects, in libpq's form, with passwords. Raises ``ConfigurationError``."""
    name = f"{type(pool).__module__}.{type(pool).__qualname__}"
    try:
        conninfo, keywords = pool.conninfo, pool.kwargs or {}
    except AttributeError as error:
        raise ConfigurationError(
            f"backend: expected a URL, or a pool such as psycopg_pool.ConnectionPool, got {name} ({error})"
        ) from error
    if callable(conninfo) or callable(keywords):
        raise ConfigurationError(
            f"backend: {name} computes its settings anew for each connection, which may go elsewhere each time; pass a "
            "URL"
        )
    try:
        return make_conninfo(conninfo, **{key: value for key, value in keywords.items() if key not in _OF_PSYCOPG})
    except ProgrammingError as error:
        # libpq's message names the option that it does not know, and repeats nothing else.
        raise ConfigurationError(f"backend: the settings of {name}: {str(error).strip()}") from None
