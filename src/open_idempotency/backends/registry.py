"""From a URL to a backend: a table of schemes, imported only when one is used.

Backends of other packages are found by the entry point group ``open_idempotency.backends``: the entry's name is the
URL scheme, its value a class with a class method ``from_url(url)``.
"""

from __future__ import annotations

import os
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from open_idempotency.backend import AsyncBackend, Backend
from open_idempotency.exceptions import ConfigurationError, MissingExtra

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "open_idempotency.backends"


class Row(NamedTuple):
    """Where a backend lives. ``extra``: what installs its client library, of which ``library`` is the module."""

    module: str
    name: str
    extra: str | None = None
    library: str | None = None


#: by scheme; a scheme that ends in + stands for all schemes that begin with it
BACKENDS = {
    "django": Row("open_idempotency.backends.django_orm", "DjangoBackend", "django", "django"),
    "django-cache": Row("open_idempotency.backends.redis.caches", "DjangoCacheBackend", "redis", "redis"),
    "memory": Row("open_idempotency.backends.memory", "MemoryBackend"),
    "sqlite": Row("open_idempotency.backends.sqlite", "SqliteBackend"),
    **{
        scheme + way: Row("open_idempotency.backends.redis", "RedisBackend", "redis", "redis")
        for scheme in ("redis", "rediss")
        for way in ("", "+sentinel", "+cluster")
    },
    "sqlalchemy+": Row("open_idempotency.backends.sqlalchemy", "SqlalchemyBackend", "sqlalchemy", "sqlalchemy"),
    "postgresql": Row("open_idempotency.backends.postgres", "PostgresBackend", "postgres", "psycopg"),
}


#: messages of client libraries that are half installed, and what to do
_HALF_INSTALLED = {
    "no pq wrapper available": "psycopg finds no libpq: pip install 'psycopg[binary]', or install libpq",
    "greenlet": "SQLAlchemy needs greenlet: pip install 'open-idempotency[sqlalchemy]'",
}
_SYNONYMS = {"postgres": "postgresql", "valkey": "redis", "valkeys": "rediss", "sqlite3": "sqlite"}
_DIALECTS = ("mysql", "mariadb", "postgresql", "sqlite")


#: by the package of a client: the module that takes the client, and the name of the function that makes the backend
_CLIENTS = {
    "redis": Row("open_idempotency.backends.redis", "RedisBackend", "redis", "redis"),
    "psycopg_pool": Row("open_idempotency.backends.postgres", "PostgresBackend", "postgres", "psycopg"),
    "sqlalchemy": Row("open_idempotency.backends.sqlalchemy", "SqlalchemyBackend", "sqlalchemy", "sqlalchemy"),
    "django": Row("open_idempotency.backends.redis.caches", "of_django_cache", "redis", "redis"),
    "django_redis": Row("open_idempotency.backends.redis.caches", "of_django_cache", "redis", "redis"),
    "flask_caching": Row("open_idempotency.backends.redis.caches", "of_flask_caching", "redis", "redis"),
}


class Client(Protocol):
    """A client of the application's, such as ``redis.Redis``: its backend uses its settings."""

    def get_connection_kwargs(self) -> Any: ...


class Pool(Protocol):
    """A pool of the application's, such as ``psycopg_pool.ConnectionPool``."""

    @property
    def conninfo(self) -> Any: ...


class Engine(Protocol):
    """An engine of the application's: SQLAlchemy's ``Engine`` or ``AsyncEngine``."""

    @property
    def dialect(self) -> Any: ...


class Cache(Protocol):
    """A cache of the application's that is on Redis: Django's, django-redis's or Flask-Caching's."""

    def get(self, key: Any, /) -> Any: ...


#: the types that can be given as a backend
Given = str | Backend | AsyncBackend | Client | Pool | Engine | Cache


class _BackendClass(Protocol):
    def __call__(self, client: Any, /, **options: Any) -> Backend | AsyncBackend: ...

    def from_url(self, url: str, **options: Any) -> Backend | AsyncBackend: ...


def open_backend(backend: Given, **options: Any) -> Backend:
    """The backend that a URL names, or the given backend, as its sync front (``.to_async()`` returns the async front).

    Instead of a URL it takes a client of the application: of redis-py, a pool of ``psycopg_pool``, an engine of
    SQLAlchemy, or a cache on Redis. ``options`` are keyword arguments of the backend's ``from_url``. Nothing is
    connected yet. Raises ``ConfigurationError`` for an unknown scheme, option or value, ``MissingExtra`` without the
    client library.
    """
    if isinstance(backend, str):
        return _sync(_class_for(_scheme(backend)).from_url(backend, **options))
    row = None if isinstance(backend, Backend | AsyncBackend) else _row_of_client(backend)
    if row is not None:
        return _sync(_import(row)(backend, **options))
    if options:
        raise ConfigurationError(f"backend: {', '.join(options)} cannot be set on a ready backend")
    return _sync(backend)


def refuse_new_file(file: str | None) -> None:
    """Raise ``ConfigurationError`` if a backend's file is not there, for commands that must not create it.

    ``file``: as ``Backend.file``.
    """
    if file is not None and not os.path.exists(file):
        raise ConfigurationError(
            f"backend: there is no database file {file}, and this command does not create one; is the path mistyped, "
            "or is it relative to another directory?"
        )


def _row_of_client(backend: object) -> Row | None:
    """The row of the backend that takes this client, by the client's package, so that no client library is imported."""
    for kind in type(backend).__mro__:
        row = _CLIENTS.get(kind.__module__.partition(".")[0])
        if row is not None:
            return row
    return None


def _sync(backend: object) -> Backend:
    if isinstance(backend, Backend):
        return backend
    if isinstance(backend, AsyncBackend):
        return backend.to_sync()
    raise ConfigurationError(
        "backend: expected a URL such as 'sqlite:///idem.db', a backend, a client of redis-py, a pool of psycopg_pool, "
        f"an engine of SQLAlchemy, or a cache on Redis; "
        f"got {type(backend).__name__}"
    )


def _scheme(url: str) -> str:
    scheme, separator, _ = url.partition("://")
    # Without a scheme the text may be anything, a password included, and is not repeated.
    if not separator:
        raise ConfigurationError(f"backend: not a URL; it begins with one of {_known()}")
    return scheme.lower()


def _class_for(scheme: str) -> _BackendClass:
    row = BACKENDS.get(scheme) or BACKENDS.get(scheme.partition("+")[0] + "+")
    if row is not None:
        return _import(row)
    entry = _entries().get(scheme)
    if entry is None:
        raise ConfigurationError(f"backend: unknown scheme {scheme!r}; {_meant(scheme)}known: {_known()}")
    loaded: _BackendClass = entry.load()
    return loaded


def _meant(scheme: str) -> str:
    """A suggestion for a scheme that is misspelt, or written as in other libraries."""
    dialect, _, _ = scheme.partition("+")
    if scheme in _SYNONYMS:
        meant = _SYNONYMS[scheme]
    elif dialect in _DIALECTS:
        meant = f"sqlalchemy+{scheme}"
    else:
        close = get_close_matches(scheme, BACKENDS, n=1)
        if not close:
            return ""
        (meant,) = close
    return f"did you mean {meant}://? "


def _import(row: Row) -> _BackendClass:
    try:
        found: _BackendClass = getattr(import_module(row.module), row.name)
    except ImportError as error:
        if row.library is None:
            raise
        for said, hint in _HALF_INSTALLED.items():
            if said in str(error):
                raise MissingExtra(f"backend: {hint}") from error
        if (error.name or "").partition(".")[0] != row.library or not isinstance(error, ModuleNotFoundError):
            raise
        raise MissingExtra(
            f"backend: {row.name} needs the {row.library} package: pip install 'open-idempotency[{row.extra}]'"
        ) from error
    return found


def _entries() -> dict[str, EntryPoint]:
    # Only for a scheme of another package: this import costs more than all others of this package.
    from importlib.metadata import entry_points

    return {entry.name: entry for entry in entry_points(group=GROUP)}


def _known() -> str:
    return ", ".join(
        f"{scheme}…://" if scheme.endswith("+") else f"{scheme}://" for scheme in sorted({*BACKENDS, *_entries()})
    )
