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


def missing(error: Exception, dialect: Dialect) -> LedgerMissing:
    """The tables are not there."""
    return LedgerMissing(
        "tx=: the ledger's tables are not in this database; make them with a migration: Django's "
        "`manage.py migrate open_idempotency`, Alembic with `open_idempotency.ledger.metadata()`, or the script that "
        f"`open-idempotency ledger {dialect.name}` prints ({type(error).__name__})"
    )


def is_missing(error: BaseException) -> bool:
    """Whether a driver's error says that a table is not there. SQLAlchemy and Django hand on the driver's message."""
    text = str(error)
    return "open_idempotency_ledger" in text and any(
        words in text for words in ("does not exist", "no such table", "doesn't exist")
    )
