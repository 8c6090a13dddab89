"""From URLs to backends, and the errors for wrong URLs."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from open_idempotency.backends import registry
from open_idempotency.backends.memory import AsyncMemoryBackend, MemoryBackend
from open_idempotency.backends.redis import AsyncRedisBackend, RedisBackend
from open_idempotency.backends.registry import open_backend
from open_idempotency.backends.sqlite import AsyncSqliteBackend, SqliteBackend
from open_idempotency.exceptions import ConfigurationError, MissingExtra

SECRET = "s3cr3t-pa%2Fss"


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("memory://", MemoryBackend),
        ("memory://?max_records=5", MemoryBackend),
        ("MEMORY://", MemoryBackend),
        ("sqlite:///{folder}/records.db?timeout=0.5&synchronous=normal", SqliteBackend),
        ("redis://localhost", RedisBackend),
        ("redis://user:pass@[::1]:7000/3?prefix=app:&timeout=0.2&max_connections=2", RedisBackend),
        ("rediss://localhost/0?ssl_cert_reqs=required", RedisBackend),
        ("redis+sentinel://user:pa%40ss@one:26379,[::1]:26380,two/my%2Fmaster/3?sentinel_password=s", RedisBackend),
        ("rediss+sentinel://one/mymaster?ssl_ca_certs=ca.pem", RedisBackend),
        ("redis+cluster://one:7000,two:7001", RedisBackend),
        ("rediss+cluster://user:pass@one:7000/0?min_replicas=1&replicas_timeout=0.2&eviction=refuse", RedisBackend),
    ],
)
def test_a_url_names_a_backend(url: str, kind: type, tmp_path: Path) -> None:
    """Without connecting."""
    assert type(open_backend(url.format(folder=tmp_path))) is kind


def test_a_ready_backend_is_taken_as_its_sync_front(tmp_path: Path) -> None:
    """A sync or async instance; both lead back to it."""
    path = str(tmp_path / "records.db")
    backend = MemoryBackend()
    assert open_backend(backend) is backend
    for ready in (AsyncMemoryBackend(), AsyncSqliteBackend(path), AsyncRedisBackend("redis://localhost")):
        assert open_backend(ready) is ready.to_sync()
        assert open_backend(ready).to_async() is ready


def test_an_unknown_scheme_is_an_error_with_the_known_ones() -> None:
    """The error lists the known schemes."""
    known = ", ".join(f"{scheme}://" for scheme in sorted(registry.BACKENDS)).replace("+://", "+…://")
    assert "redis+cluster://, redis+sentinel://" in known
    with pytest.raises(ConfigurationError, match=re.escape(f"'mongo'; known: {known}")):
        open_backend("mongo://localhost")


@pytest.mark.parametrize("wrong", [None, 3, object(), MemoryBackend])
def test_what_is_no_backend_is_refused(wrong: object) -> None:
    """The error names the type, with an example."""
    with pytest.raises(ConfigurationError, match="expected a URL such as"):
        open_backend(wrong)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://?size=3", r"no option 'size'; known: max_bytes, max_records"),
        ("memory://?max_records=0", "max_records: expected a whole number"),
        ("memory://?max_records=-1", "max_records: expected a whole number"),
        ("memory://?max_records=1&max_records=2", "max_records is given twice"),
        ("memory://host", "neither host nor path"),
        ("memory://#part", "# part"),
        ("sqlite://host/x.db", "takes no host"),
        ("sqlite:///:memory:", "memory://"),
        ("sqlite://", "memory://"),
        ("sqlite:///missing/folder/x.db", "does not exist"),
        ("sqlite:///x.db?coalesce=true", "'true' is none of yes, no"),
        ("sqlite:///x.db?synchronous=off", "'off' is none of full, normal"),
        ("sqlite:///x.db?cache=shared", "no option 'cache'; known: coalesce, synchronous, timeout"),
        ("redis://localhost?timeout=abc", "timeout: expected seconds, got 'abc'"),
        ("redis://localhost?timeout=-1", "timeout: must be more than 0"),
        ("redis://localhost?timeout=inf", "timeout: must be more than 0"),
        ("redis://localhost?timeout=nan", "timeout: must be more than 0"),
        ("redis://localhost?ssl_cert_reqs=none", "no option 'ssl_cert_reqs'"),
        ("redis://localhost?retries=3", "known: coalesce, eviction, max_connections, min_replicas, prefix"),
        ("redis://localhost/zero", "the path is the database's number"),
        ("redis://localhost:port/0", "malformed"),
        ("redis://localhost:99999/0", "malformed"),
        ("redis://[::1/0", "malformed"),
        ("redis://one,two/0", "takes one host"),
        ("redis://localhost?sentinel_password=x", "no option 'sentinel_password'"),
        ("redis+sentinel://localhost", "begins with the name of the service"),
        ("redis+sentinel://localhost/0x/one", "the path is the database's number, not 'one'"),
        ("redis+sentinel://localhost:1,two:x/mymaster", "malformed"),
        ("redis+cluster://localhost/1", "a Cluster has no database but 0"),
        ("redis+cluster://localhost?eviction=never", "'never' is none of warn, refuse, ignore"),
        ("postgres://localhost/x", "did you mean postgresql://"),
        ("postgresql+psycopg://localhost/x", r"did you mean sqlalchemy\+postgresql\+psycopg://"),
        ("mysql://localhost/x", r"did you mean sqlalchemy\+mysql://"),
        ("redi://localhost", "did you mean redis://"),
        ("sqlalchemy+mysql://localhost/x", "pip install mysqlclient$"),
        ("sqlalchemy+mysql+mysqlconnector://localhost/x", "pip install mysql-connector-python$"),
    ],
)
def test_a_wrong_url_is_explained(url: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At start; the error names the option."""
    monkeypatch.setitem(sys.modules, "MySQLdb", None)  # which another driver may stand for (tests.mariadb_server)
    with pytest.raises(ConfigurationError, match=message):
        open_backend(url)


ADDRESSES = {
    "memory": "memory://",
    "sqlite": "sqlite:///x.db",
    "redis": "redis://localhost",
    "sentinel": "redis+sentinel://localhost/mymaster",
    "postgres": "postgresql://localhost/x",
    "sqlalchemy": "sqlalchemy+sqlite:///x.db",
}


def settings_of(backend: Any) -> object:
    """The settings of a backend after its options."""
    found = getattr(backend, "options", None)
    if found is not None:
        return found
    if isinstance(backend, MemoryBackend):
        return backend._table.max_records, backend._table.max_bytes
    assert isinstance(backend, SqliteBackend)
    return backend.call_timeout, backend._transactions.coalesce, backend._connections._synchronous


@pytest.mark.parametrize(
    ("backend", "keywords", "query"),
    [
        ("memory", {"max_records": 5, "max_bytes": 10_000}, "max_records=5&max_bytes=10000"),
        ("memory", {"max_records": "5"}, "max_records=5"),
        ("sqlite", {"timeout": timedelta(seconds=1.5), "synchronous": "normal"}, "timeout=1.5&synchronous=normal"),
        ("sqlite", {"coalesce": False}, "coalesce=no"),
        ("sqlite", {"coalesce": "no"}, "coalesce=no"),
        ("redis", {"timeout": timedelta(seconds=2), "min_replicas": 1}, "timeout=2&min_replicas=1"),
        ("redis", {"min_replicas": 0, "coalesce": True}, "min_replicas=0&coalesce=yes"),
        ("redis", {"prefix": "shop:", "coalesce": "no"}, "prefix=shop:&coalesce=no"),
        ("sentinel", {"replicas_timeout": 0.2, "eviction": "refuse"}, "replicas_timeout=0.2&eviction=refuse"),
        ("postgres", {"prepare": False, "listen": False}, "prepare=no&listen=no"),
        ("postgres", {"prepare": "no", "listen": "no"}, "prepare=no&listen=no"),
        ("postgres", {"timeout": 3, "coalesce": True}, "timeout=3&coalesce=yes"),
        ("sqlalchemy", {"timeout": timedelta(seconds=3), "max_connections": 4}, "timeout=3&max_connections=4"),
        ("sqlalchemy", {"timeout": None}, "timeout=2"),
    ],
)
def test_a_keyword_of_python_means_what_the_option_of_the_url_means(
    backend: str, keywords: dict[str, Any], query: str
) -> None:
    """O-41."""
    url = ADDRESSES[backend]
    by_url = settings_of(open_backend(f"{url}?{query}"))
    assert settings_of(open_backend(url, **keywords)) == by_url
    name = next(iter(keywords))
    if keywords[name] is not None:  # it overrules another value of the URL
        other = {"yes": "no", "no": "yes", "True": "no", "False": "yes"}.get(str(keywords[name]))
        if other is not None:
            assert settings_of(open_backend(f"{url}?{name}={other}", **keywords)) == by_url


@pytest.mark.parametrize(
    ("backend", "keywords", "message"),
    [
        ("memory", {"max_records": 0}, "option max_records: expected a whole number of at least 1, got 0"),
        ("memory", {"max_bytes": True}, "max_bytes: expected a whole number of at least 1, got True"),
        ("memory", {"size": 3}, "memory:// has no option 'size'; known: max_bytes, max_records"),
        ("sqlite", {"timeout": "soon"}, "option timeout: expected seconds, got 'soon'"),
        ("sqlite", {"timeout": timedelta()}, "timeout: must be more than 0 seconds, got 0"),
        ("sqlite", {"timeout": 1e10}, "timeout: must be at most 86400 seconds, a day, got 10000000000.0"),
        ("sqlalchemy", {"timeout": timedelta.max}, "timeout: must be at most 86400 seconds, a day, got 8640"),
        ("sqlite", {"synchronous": "off"}, "synchronous: 'off' is none of full, normal"),
        ("sqlite", {"prepare": False}, "sqlite:// has no option 'prepare'"),
        ("redis", {"timeout": float("nan")}, "timeout: must be more than 0 seconds, got nan"),
        ("redis", {"timeout": 10**400}, "timeout: expected seconds, got 1000"),
        ("redis", {"timeout": Decimal("sNaN")}, r"timeout: expected seconds, got Decimal\('sNaN'\)"),
        ("redis", {"timeout": timedelta(seconds=-1)}, "timeout: must be more than 0 seconds, got -1.0"),
        ("redis", {"timeout": [1]}, r"timeout: expected seconds, got \[1\]"),
        ("redis", {"max_connections": 2.5}, "max_connections: expected a whole number of at least 1, got 2.5"),
        ("redis", {"min_replicas": -1}, "min_replicas: expected a whole number of at least 0, got -1"),
        ("redis", {"prefix": 3}, "prefix: expected a text, got 3"),
        ("redis", {"eviction": "never"}, "eviction: 'never' is none of warn, refuse, ignore"),
        ("redis", {"coalesce": 0}, "coalesce: 0 is none of yes, no"),
        ("redis", {"retries": 3}, "redis:// has no option 'retries'"),
        ("postgres", {"prepare": "false"}, "prepare: 'false' is none of yes, no"),
        ("postgres", {"listen": None, "max_connections": -3}, "max_connections: expected a whole number"),
        ("postgres", {"eviction": "warn"}, "postgresql:// has no option 'eviction'"),
        ("sqlalchemy", {"timeout": True}, "timeout: expected seconds, got True"),
        ("sqlalchemy", {"coalesce": False}, r"sqlalchemy\+ has no option 'coalesce'"),
    ],
)
def test_a_wrong_keyword_is_an_error_at_start(backend: str, keywords: dict[str, Any], message: str) -> None:
    """O-41: the error names the option."""
    with pytest.raises(ConfigurationError, match=message):
        open_backend(ADDRESSES[backend], **keywords)


@pytest.mark.parametrize(
    "url",
    [
        f"redis://user:{SECRET}@localhost:port/0",
        f"redis://user:{SECRET}@localhost/zero",
        f"redis://user:{SECRET}@localhost/0?timeout=abc",
        f"mongo://user:{SECRET}@localhost",
        f"user:{SECRET}@localhost",
        f"redis://user:{SECRET}@localhost:1/0?timeout=0.1",
        f"redis+sentinel://user:{SECRET}@one:1,two:x/mymaster",
        f"redis+sentinel://user:{SECRET}@one:1,two/mymaster?sentinel_password={SECRET}",
        f"redis+cluster://user:{SECRET}@one:1,two:2",
        f"postgresql://user:{SECRET}@localhost/x?nonsense=1",
        f"postgresql:///x?password={SECRET}&nonsense=1",
    ],
)
def test_credentials_are_never_repeated(url: str) -> None:
    """Neither in errors nor in reprs."""
    try:
        reported = [open_backend(url), open_backend(url).to_async(), open_backend(url)._options]
    except ConfigurationError as error:
        reported = [error]
    for value in reported:
        assert SECRET not in repr(value) + str(value)
        assert "pa/ss" not in repr(value) + str(value)


def test_a_missing_client_library_names_the_command() -> None:
    """The pip command, in a process without the redis package."""
    code = (
        "import sys; sys.modules['redis'] = None\n"
        "from open_idempotency.backends.registry import open_backend\n"
        "from open_idempotency.exceptions import MissingExtra\n"
        "try: open_backend('redis://localhost')\n"
        "except MissingExtra as error: print(error)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "pip install 'open-idempotency[redis]'" in ended.stdout
    assert issubclass(MissingExtra, ConfigurationError)


def test_the_registry_loads_no_client_library() -> None:
    """The base install is enough to import it."""
    code = (
        "import sys, open_idempotency.backends.registry\n"
        "print(sorted({'redis', 'sqlite3', 'asyncio', 'trio', 'anyio', 'pytest'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.strip() == "[]"


class Elsewhere(MemoryBackend):
    """A backend of another package."""

    @classmethod
    def from_url(cls, url: str, **options: object) -> MemoryBackend:
        assert url == "elsewhere://here"
        return cls()


def test_backends_of_other_packages_are_found_by_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend of another package is found, and listed among the known ones."""
    installed = tmp_path / "elsewhere-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(f"[{registry.GROUP}]\nelsewhere = {__name__}:Elsewhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert isinstance(open_backend("elsewhere://here"), Elsewhere)
    with pytest.raises(ConfigurationError, match="elsewhere://, memory://"):
        open_backend("mongo://localhost")


def test_options_are_not_for_a_ready_backend() -> None:
    """They would have no effect, so they are refused."""
    with pytest.raises(ConfigurationError, match="clock"):
        open_backend(MemoryBackend(), clock=lambda: 0.0)
