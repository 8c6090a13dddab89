"""The numbered migrations: which exist, which a database has, and how the others are applied.

The backend never applies them by itself: the application's own user need not be allowed to create anything.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import psycopg

from open_idempotency.backends.postgres.options import Options
from open_idempotency.exceptions import BackendUnavailable

# One migration runs at a time; the number is arbitrary.
_LOCK = "SELECT pg_advisory_xact_lock(7031975330129)"
_HAS_ANY = "SELECT to_regclass('open_idempotency.migrations') IS NOT NULL"
_APPLIED = "SELECT name FROM open_idempotency.migrations"
_RECORD = "INSERT INTO open_idempotency.migrations (name) VALUES (%s)"


def migrations() -> dict[str, str]:
    """The script of each migration by name, in order; a name begins with its number."""
    folder = files("open_idempotency.backends.postgres") / "sql"
    names = sorted(file.name for file in folder.iterdir() if file.name.endswith(".sql"))
    return {name.removesuffix(".sql"): (folder / name).read_text(encoding="utf-8") for name in names}


def migrate(options: Options) -> list[str]:
    """Apply, in one transaction, the migrations that the database lacks; their names. Raises ``BackendUnavailable``."""
    try:
        with psycopg.connect(options.conninfo, prepare_threshold=None) as connection:
            connection.execute(_LOCK)
            return _apply(connection)
    except psycopg.Error as error:
        raise BackendUnavailable(f"PostgreSQL: {type(error).__name__}: {str(error).strip()}") from error


def _apply(connection: psycopg.Connection[Any]) -> list[str]:
    (has_any,) = connection.execute(_HAS_ANY).fetchone() or (False,)
    applied = {name for (name,) in connection.execute(_APPLIED)} if has_any else set[str]()
    missing = {name: script for name, script in migrations().items() if name not in applied}
    for name, script in missing.items():
        connection.execute(script.encode())
        connection.execute(_RECORD, (name,))
    return list(missing)
