"""Records in a PostgreSQL database; needs the extra ``postgres``. See ``backend``."""

from open_idempotency.backends.postgres.backend import AsyncPostgresBackend, PostgresBackend

__all__ = ["AsyncPostgresBackend", "PostgresBackend"]
