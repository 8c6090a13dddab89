"""The examination of a database through SQLAlchemy: tables, settings of the server, and purging (P-17)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sqlalchemy import Connection, func, inspect, select, text

from open_idempotency.backend import Finding, Level
from open_idempotency.backends._shared import findings
from open_idempotency.backends._shared.findings import MOST_COUNTED
from open_idempotency.backends.sqlalchemy.statements import metadata, records


def examine(connection: Connection, now: Callable[[], float]) -> list[Finding]:
    """Look at the database. ``now``: the clock that decides. Raises SQLAlchemy's errors."""
    dialect = connection.dialect
    version = ".".join(map(str, getattr(dialect, "server_version_info", None) or ()))
    found = [findings.server(f"{dialect.name} {version}".strip() + f", by {dialect.driver}")]
    missing = list(_missing(connection))
    found.append(findings.migrations(missing, "run `open-idempotency migrate` with the URL of the backend"))
    found += _SETTINGS.get(dialect.name, _none)(connection)
    if missing:
        return found
    expires = records.c.expires_at
    expired = select(expires).where(expires <= now()).limit(MOST_COUNTED + 1).subquery()
    count, first = connection.execute(select(func.count(), func.min(expired.c.expires_at)).select_from(expired)).one()
    return [*found, findings.purging(count, 0.0 if first is None else now() - float(first))]


def _missing(connection: Connection) -> Iterator[str]:
    inspector = inspect(connection)
    for table in metadata.sorted_tables:
        if not inspector.has_table(table.name):
            yield table.name
            continue
        there = {column["name"] for column in inspector.get_columns(table.name)}
        yield from (f"{table.name}.{column.name}" for column in table.columns if column.name not in there)


def _none(connection: Connection) -> Iterator[Finding]:
    yield from ()


def _postgresql(connection: Connection) -> Iterator[Finding]:
    asked = "SELECT pg_is_in_recovery(), current_setting('fsync'), current_setting('synchronous_commit')"
    recovering, fsync, commit = connection.execute(text(asked)).one()
    if recovering:
        yield findings.replica("the server is in recovery, so it only reads")
    if fsync != "on":
        yield Finding("durability", Level.PROBLEM, "fsync is off: a crash may corrupt the database", "set fsync = on")
    if commit == "off":
        found = "synchronous_commit is off for this user: a crash forgets the last keys, which run again"
        yield Finding("durability", Level.WARNING, found, "ALTER ROLE ... SET synchronous_commit = on")


def _mysql(connection: Connection) -> Iterator[Finding]:
    read_only, flush = connection.execute(text("SELECT @@read_only, @@innodb_flush_log_at_trx_commit")).one()
    if int(read_only):
        yield findings.replica("the server is read-only")
    if int(flush) != 1:
        found = f"innodb_flush_log_at_trx_commit is {flush}: a crash forgets the last keys, which run again"
        yield Finding("durability", Level.WARNING, found, "set innodb_flush_log_at_trx_commit = 1")


_SETTINGS: dict[str, Callable[[Connection], Iterator[Finding]]] = {
    "postgresql": _postgresql,
    "mysql": _mysql,
    "mariadb": _mysql,
}
