"""Making the tables. Never done by the backend itself: the application's own user need not be allowed to."""

from __future__ import annotations

from sqlalchemy import Connection, inspect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateTable

from open_idempotency.backends.sqlalchemy.tables import metadata


def migrate(connection: Connection) -> list[str]:
    """Make the tables and indexes that are missing; the names of those tables. Somebody else may do so meanwhile."""
    made: list[str] = []
    for table in metadata.sorted_tables:
        if _create(connection, table.name):
            made.append(table.name)
    return made


def _create(connection: Connection, name: str) -> bool:
    made = False
    if not inspect(connection).has_table(name):
        try:
            # Its indexes come later: where statements are committed one by one, another may be making them already.
            connection.execute(CreateTable(metadata.tables[name]))
            connection.commit()
            made = True
        except DBAPIError:
            connection.rollback()
            # Of two that create it at the same moment one fails, in a way that differs with each database.
            if not inspect(connection).has_table(name):
                raise
    _create_indexes(connection, name)
    return made


def _create_indexes(connection: Connection, name: str) -> None:
    """Those that are missing, as after a table was made on a database that commits each statement by itself."""
    for index in metadata.tables[name].indexes:
        found = {each["name"] for each in inspect(connection).get_indexes(name)}
        if index.name in found:
            continue
        try:
            index.create(connection)
            connection.commit()
        except DBAPIError:
            connection.rollback()
            if index.name not in {each["name"] for each in inspect(connection).get_indexes(name)}:
                raise
