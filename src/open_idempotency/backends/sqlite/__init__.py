"""The SQLite backend: ``sqlite:///idem.db``, one file for all processes of a machine."""

from __future__ import annotations

from open_idempotency.backends.sqlite.backend import AsyncSqliteBackend, SqliteBackend

__all__ = ["AsyncSqliteBackend", "SqliteBackend"]
