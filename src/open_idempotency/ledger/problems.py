"""What is said of a transaction that the ledger cannot use. Each message says what to do."""

from __future__ import annotations

from open_idempotency.exceptions import ConfigurationError, LedgerMissing
from open_idempotency.ledger.dialects import DIALECTS, Dialect


def dialect_named(name: str) -> Dialect:
    """The dialect of a database. Raises ``ConfigurationError``."""
    try:
        return DIALECTS[name]
    except KeyError:
        known = ", ".join(sorted(DIALECTS))
        raise ConfigurationError(f"tx=: the ledger knows {known}; this database is {name}") from None


def no_transaction(what: str, begin: str) -> ConfigurationError:
    """The connection commits each statement by itself, so the stage would not commit with anything."""
    return ConfigurationError(f"tx=: {what} is in no transaction; {begin}")


def explain(error: Exception, driver: BaseException | None, dialect: Dialect) -> None:
    """Raise what a database's error says of the caller's transaction; return where it says something else.

    ``driver``: the error as the driver has it, which SQLAlchemy and Django raise others for.
    """
    if driver is None:
        return
    if _is_missing(driver):
        raise _missing(error, dialect) from error
    if _code(driver) == _FAILED:
        raise ConfigurationError("tx=: the transaction has failed; roll it back first") from error


#: PostgreSQL's SQLSTATE and MySQL's, and the number by which other drivers know the latter; messages are translated
_UNDEFINED_TABLE = ("42P01", "42S02", 1146)
_FAILED = "25P02"


def _missing(error: Exception, dialect: Dialect) -> LedgerMissing:
    return LedgerMissing(
        "tx=: the ledger's tables are not in this database; make them with a migration: Django's, with "
        '"open_idempotency.django" in INSTALLED_APPS and `manage.py migrate open_idempotency --database ALIAS`, '
        "Alembic's with `open_idempotency.ledger.metadata()`, or the script that "
        f"`open-idempotency ledger {dialect.name}` prints ({type(error).__name__})"
    )


def _is_missing(driver: BaseException) -> bool:
    """Whether a table of ours is not there, and not one that a trigger of the application's asks for."""
    text = str(driver)
    if "open_idempotency_ledger" not in text:
        return False
    return _code(driver) in _UNDEFINED_TABLE or any(words in text for words in ("does not exist", "no such table"))


def _code(driver: BaseException) -> object:
    """By which the database knows the error: psycopg, asyncpg and PyMySQL name it, psycopg2 names it otherwise, other
    drivers of MySQL's begin with its number, and pg8000 with all that the server says."""
    first = driver.args[0] if driver.args else None
    if isinstance(first, dict):
        first = first.get("C")
    return getattr(driver, "sqlstate", None) or getattr(driver, "pgcode", None) or first
