"""Records in a PostgreSQL database; needs the extra ``postgres``. See ``backend``."""

from open_idempotency.backends.postgres.aio import AsyncPostgresBackend
from open_idempotency.backends.postgres.backend import PostgresBackend

__all__ = ["AsyncPostgresBackend", "PostgresBackend"]
