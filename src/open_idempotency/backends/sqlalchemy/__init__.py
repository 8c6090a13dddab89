"""Records in a database that SQLAlchemy drives; needs the extra ``sqlalchemy``. See ``backend``.

``metadata`` has the tables, for Alembic; ``SqlalchemyBackend.migrate`` makes them without it.
"""

from open_idempotency.backends.sqlalchemy.backend import AsyncSqlalchemyBackend, SqlalchemyBackend
from open_idempotency.backends.sqlalchemy.statements import metadata

__all__ = ["AsyncSqlalchemyBackend", "SqlalchemyBackend", "metadata"]
