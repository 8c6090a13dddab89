"""The examination of a PostgreSQL server: settings, privileges, tables, indexes and purging (P-17).

One connection of its own, in one read-only transaction with limits, so that it works behind a pooler.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import psycopg

from open_idempotency.backend import Finding, Level
from open_idempotency.backends._shared import findings
from open_idempotency.backends._shared.findings import MOST_COUNTED, megabytes

Connection = psycopg.Connection[Any]

_LIMITS = "SET LOCAL statement_timeout = '5s'; SET LOCAL lock_timeout = '1s'; SET LOCAL TRANSACTION READ ONLY"
_HAS_ANY = "SELECT to_regclass('open_idempotency.migrations') IS NOT NULL"
_SETTINGS = """
    SELECT current_setting('server_version'), pg_is_in_recovery(), current_setting('fsync'),
        current_setting('full_page_writes'), current_setting('synchronous_commit'), current_setting('autovacuum'),
        current_setting('max_connections')::int, (SELECT count(*) FROM pg_stat_activity)
"""
_PRIVILEGES = """
    SELECT t.name || ': ' || p.name FROM unnest(ARRAY['records', 'stages', 'reservations']) AS t (name),
        unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS p (name)
    WHERE NOT has_table_privilege('open_idempotency.' || t.name, p.name)
"""
_TABLES = """
    SELECT s.relname, pg_total_relation_size(s.relid), s.n_live_tup, s.n_dead_tup,
        greatest(s.last_autovacuum, s.last_vacuum) IS NOT NULL
    FROM pg_stat_user_tables s WHERE s.schemaname = 'open_idempotency' AND s.relname IN ('records', 'stages')
    ORDER BY s.relname
"""
_INVALID = """
    SELECT i.indexrelid::regclass::text FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
    WHERE c.relnamespace = 'open_idempotency'::regnamespace AND NOT (i.indisvalid AND i.indisready)
"""
_EXPIRED = """
    SELECT count(*), coalesce(extract(epoch FROM clock_timestamp()) - min(e.expires_at), 0)::float8 FROM (
        SELECT expires_at FROM open_idempotency.records
        WHERE claimed_at + ttl <= extract(epoch FROM clock_timestamp())
            AND expires_at <= extract(epoch FROM clock_timestamp()) LIMIT %s
    ) e
"""
_BUSY, _DEAD, _FEW = 0.9, 1.0, 10_000


def examine(connection: Connection, known: Collection[str]) -> list[Finding]:
    """Look at the server. ``known``: the names of all migrations. Raises psycopg's errors."""
    with connection.transaction():
        connection.execute(_LIMITS)
        found = list(_settings(connection))
        (has_any,) = connection.execute(_HAS_ANY).fetchone() or (False,)
        applied = _applied(connection) if has_any else set[str]()
        if applied is None:
            found.append(findings.denied("migrations", "the table of migrations may not be read"))
        else:
            missing = sorted(set(known) - applied)
            found.append(findings.migrations(missing, "run `open-idempotency migrate` with the URL of the backend"))
            if missing:
                return found
        found += _privileges(connection)
        found += _tables(connection)
        return found


def _applied(connection: Connection) -> set[str] | None:
    try:
        with connection.transaction():
            return {name for (name,) in connection.execute("SELECT name FROM open_idempotency.migrations")}
    except psycopg.errors.InsufficientPrivilege:
        return None


def _settings(connection: Connection) -> Iterator[Finding]:
    row = connection.execute(_SETTINGS).fetchone()
    assert row is not None
    version, recovering, fsync, pages, commit, autovacuum, most, used = row
    yield findings.server(f"PostgreSQL {version}")
    if recovering:
        yield findings.replica("the server is in recovery, so it only reads")
    for name, value in (("fsync", fsync), ("full_page_writes", pages)):
        if value != "on":
            found = f"{name} is {value}: a crash of the machine may corrupt the database"
            yield Finding("durability", Level.PROBLEM, found, f"set {name} = on")
    if commit == "off":
        cure = "ALTER ROLE ... SET synchronous_commit = on, for the application's user"
        found = "synchronous_commit is off for this user: a crash forgets the last keys, which run again"
        yield Finding("durability", Level.WARNING, found, cure)
    else:
        yield Finding("durability", Level.OK, f"synchronous_commit is {commit}")
    if autovacuum != "on":
        yield Finding("vacuum", Level.WARNING, "autovacuum is off, so the tables grow", "set autovacuum = on")
    busy = used > _BUSY * most
    cure = "lower max_connections= of the workers, put a pooler in front, or raise the server's" if busy else ""
    level = Level.WARNING if busy else Level.OK
    yield Finding("connections", level, f"{used} of {most} are in use", cure)


def _privileges(connection: Connection) -> Iterator[Finding]:
    missing = [name for (name,) in connection.execute(_PRIVILEGES)]
    if missing:
        yield Finding(
            "privileges",
            Level.PROBLEM,
            f"this user lacks {', '.join(missing)}",
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA open_idempotency TO the application's user",
        )


def _tables(connection: Connection) -> Iterator[Finding]:
    for name, size, live, dead, vacuumed in connection.execute(_TABLES).fetchall():
        found = f"{name}: {megabytes(size)}, about {live} live rows and {dead} dead ones"
        if dead > max(_FEW, _DEAD * live):
            often = "" if vacuumed else " (it was never vacuumed)"
            yield Finding("table", Level.WARNING, found + often, f"VACUUM open_idempotency.{name}; look at autovacuum")
        else:
            yield Finding("table", Level.OK, found)
    invalid = [name for (name,) in connection.execute(_INVALID)]
    if invalid:
        yield Finding(
            "index", Level.PROBLEM, f"not valid: {', '.join(invalid)}", "REINDEX INDEX CONCURRENTLY each of them"
        )
    try:
        with connection.transaction():
            row = connection.execute(_EXPIRED, (MOST_COUNTED + 1,)).fetchone()
    except psycopg.errors.InsufficientPrivilege:
        return  # the missing privilege is a finding of its own
    assert row is not None
    yield findings.purging(*row)
