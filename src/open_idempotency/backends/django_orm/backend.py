"""The Django backend: records in a database of the project itself, through connections that Django makes.

An alias of ``DATABASES`` says which database. It is checked when a backend is made. ``open_idempotency.decisions``
decides inside a transaction that has locked the record's row; ``_shared.sql_verbs`` says what is read and written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import django
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import Error, connections
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.recorder import MigrationRecorder

from open_idempotency.backend import Finding, Level
from open_idempotency.backends._shared import findings, sql_verbs, urls
from open_idempotency.backends._shared.findings import MOST_COUNTED
from open_idempotency.backends._shared.fronts import SyncFront
from open_idempotency.backends._shared.sql_verbs import Step, Verb
from open_idempotency.backends.django_orm import dialects
from open_idempotency.backends.django_orm.connections import Connections
from open_idempotency.backends.django_orm.dialects import DIALECTS, Dialect, Overtaken, how_to_migrate
from open_idempotency.backends.django_orm.transactions import Statements
from open_idempotency.backends.threaded import ThreadedBackend
from open_idempotency.exceptions import ConfigurationError

# The database of an alias, and its migrations

APP = "open_idempotency.django"
LABEL = "open_idempotency"


def dialect_of(alias: str) -> Dialect:
    """The dialect of the alias's database. Raises ``ConfigurationError``; connects to nothing."""
    try:
        known = list(connections)
    except (ImproperlyConfigured, ImportError) as error:
        raise ConfigurationError(
            f"backend: django:// needs Django's settings; set DJANGO_SETTINGS_MODULE ({error})"
        ) from error
    if alias not in known:
        raise ConfigurationError(f"backend: DATABASES has no {alias!r}; it has {', '.join(sorted(known))}")
    # A program that has not set Django up, such as the command line, has no applications.
    if apps.ready and not apps.is_installed(APP):
        raise ConfigurationError(f'backend: django:// needs "{APP}" in INSTALLED_APPS; then {how_to_migrate(alias)}')
    vendor = _vendor(alias)
    if vendor not in DIALECTS:
        raise ConfigurationError(f"backend: django:// knows {', '.join(sorted(DIALECTS))}; {alias!r} is {vendor}")
    return DIALECTS[vendor]


def _vendor(alias: str) -> str:
    try:
        return connections[alias].vendor
    except ImproperlyConfigured as error:
        raise ConfigurationError(f"backend: Django's database {alias!r}: {error}") from error


def file_of(alias: str) -> str | None:
    """The file of an SQLite database, which connecting to it would create; None for any other database."""
    connection = connections[alias]
    name = str(connection.settings_dict["NAME"])
    return None if connection.vendor != "sqlite" or name.startswith((":memory:", "file:")) else name


def migrate(alias: str) -> Sequence[str]:
    """Apply the migrations that the database lacks, as ``open-idempotency migrate`` does without ``manage.py``.
    Returns their names. Raises ``BackendUnavailable``.
    """
    if not apps.ready:
        django.setup()
    try:
        before = _applied(alias)
        call_command("migrate", LABEL, database=alias, interactive=False, verbosity=0)
        return sorted(_applied(alias) - before)
    except Error as error:
        raise dialects.wrapped(error, alias, connections[alias].vendor) from error


def _applied(alias: str) -> set[str]:
    applied = MigrationRecorder(connections[alias]).applied_migrations()
    return {name for label, name in applied if label == LABEL}


# The backend

C = TypeVar("C")
R = TypeVar("R")

_OPTIONS: dict[str, urls.Parser] = {"timeout": urls.seconds, "max_connections": urls.count}


class DjangoBackend(SyncFront):
    """The sync front, on the database ``alias`` of ``DATABASES``; ``"open_idempotency.django"`` makes its tables.

    ``timeout``: seconds for each wait: for a connection, a lock, a reply. ``max_connections``: for each process,
    beside those of the application's threads. ``clock``: seconds, for tests; without it the database's clock decides.
    Raises ``ConfigurationError``. Since 0.1.
    """

    def __init__(
        self,
        alias: str = "default",
        *,
        timeout: urls.Seconds = 2.0,
        max_connections: int = 10,
        clock: Callable[[], float] | None = None,
    ) -> None:
        read = urls.keywords({"timeout": timeout, "max_connections": max_connections}, _OPTIONS)
        seconds: float = read["timeout"]
        dialect = dialect_of(alias)
        super().__init__(sql_verbs.VERBS, self._carry_out)
        #: the database's name in ``DATABASES``
        self.alias = alias
        self.file = file_of(alias)
        self._timeout = seconds
        self._connections = Connections(alias, dialect, Statements(dialect, clock), seconds, read["max_connections"])
        # The last try may begin after ``seconds``, since a transaction that was overtaken is tried again.
        self.call_timeout = seconds + dialect.slowest(seconds)
        self._async = AsyncDjangoBackend(over=self)

    @classmethod
    def from_url(cls, url: str, **options: Any) -> DjangoBackend:
        """``django://alias``, with ``timeout`` and ``max_connections``."""
        parts = urls.split(url)
        if not parts.netloc or parts.path not in ("", "/"):
            raise ConfigurationError("backend: django:// takes an alias of DATABASES; write django://default")
        return cls(parts.netloc, **urls.options(parts, _OPTIONS) | urls.keywords(options, _OPTIONS, "django://"))

    def __repr__(self) -> str:
        return f"DjangoBackend({self.alias!r})"

    def to_async(self) -> AsyncDjangoBackend:
        """The async front on the same database."""
        return self._async

    def migrate(self) -> Sequence[str]:
        """Apply the migrations of ``open_idempotency.django`` that the database lacks. Returns their names."""
        return migrate(self.alias)

    def examine(self) -> Sequence[Finding]:
        """See ``Backend.examine``; on this thread's own connection of Django's. Raises ``BackendUnavailable``."""
        try:
            return _examine(self.alias, LABEL, self.now)
        except Error as error:
            raise dialects.wrapped(error, self.alias, connections[self.alias].vendor) from error

    def close(self) -> None:
        """Close this process's connections; they open again if the backend is used again."""
        self._connections.close()

    def _carry_out(self, verb: Verb[C, R], command: C) -> R:
        return sql_verbs.carry_out(partial(self._run, time.monotonic() + self._timeout), verb, command)

    def _run(self, until: float, step: Step) -> Any:
        """Run a transaction. Try again if another one was first, as long as there is time."""
        while True:
            try:
                return self._connections.run(step)
            except Overtaken:
                if time.monotonic() >= until:
                    raise


class AsyncDjangoBackend(ThreadedBackend):
    """The async front: ``DjangoBackend`` in threads; takes the same arguments. Since 0.1.

    Django's connections block. Those of this backend belong to no thread, so none is left behind in one.
    """

    def __init__(self, alias: str = "default", *, over: DjangoBackend | None = None, **options: Any) -> None:
        if over is None:
            over = DjangoBackend(alias, **options)
            over._async = self  # pyright: ignore[reportPrivateUsage]  # its other front
        super().__init__(over)


# The examination: migrations, settings of the server, and purging (P-17)

_EXPIRED = """
    SELECT count(*), min(expires_at) FROM (
        SELECT expires_at FROM open_idempotency_django_records WHERE expires_at <= %s LIMIT %s
    ) expired
"""


def _examine(alias: str, label: str, now: Callable[[], float]) -> list[Finding]:
    """Look at the database of an alias. Raises Django's errors, and what ``now`` raises.

    ``label``: of the application with the migrations. ``now``: the clock that decides.
    """
    if not apps.ready:
        django.setup()
    connection: Any = connections[alias]
    with connection.cursor():  # opens it
        version: tuple[int, ...] = getattr(connection, "get_database_version", tuple)()
    found = [
        findings.server(f"{connection.display_name} {'.'.join(map(str, version))}, by Django {django.get_version()}")
    ]
    missing = _missing(connection, label)
    found.append(findings.migrations(missing, how_to_migrate(alias)))
    found += _settings(connection)
    if missing:
        return found
    with connection.cursor() as cursor:
        moment = now()
        cursor.execute(_EXPIRED, [moment, MOST_COUNTED + 1])
        count, first = cursor.fetchone()
    return [*found, findings.purging(int(count), 0.0 if first is None else moment - float(first))]


def _missing(connection: Any, label: str) -> list[str]:
    executor = MigrationExecutor(connection)
    targets = [node for node in executor.loader.graph.leaf_nodes() if node[0] == label]
    return [f"{migration.app_label}.{migration.name}" for migration, _ in executor.migration_plan(targets)]


def _settings(connection: Any) -> Iterator[Finding]:
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SELECT pg_is_in_recovery(), current_setting('synchronous_commit')")
            recovering, commit = cursor.fetchone()
            if recovering:
                yield findings.replica("the server is in recovery, so it only reads")
            if commit == "off":
                found = "synchronous_commit is off for this user: a crash forgets the last keys, which run again"
                yield Finding("durability", Level.WARNING, found, "ALTER ROLE ... SET synchronous_commit = on")
        elif connection.vendor == "mysql":
            cursor.execute("SELECT @@read_only, @@innodb_flush_log_at_trx_commit")
            read_only, flush = map(int, cursor.fetchone())
            if read_only:
                yield findings.replica("the server is read-only")
            if flush != 1:
                found = f"innodb_flush_log_at_trx_commit is {flush}: a crash forgets the last keys, which run again"
                yield Finding("durability", Level.WARNING, found, "set innodb_flush_log_at_trx_commit = 1")
        elif connection.vendor == "sqlite":
            cursor.execute("PRAGMA journal_mode")
            (mode,) = cursor.fetchone()
            if mode not in ("wal", "memory"):
                cure = "PRAGMA journal_mode=wal, once; the file keeps it"
                yield Finding("journal", Level.WARNING, f"journal_mode is {mode}, so readers hold up writers", cure)
