"""What a database's errors mean for a call, and what they say to an operator. Each error is wrapped once.

Django raises the errors of every driver as its own classes, with the driver's error as the cause.
"""

from __future__ import annotations

from django.db import DatabaseError, Error, IntegrityError, connections

from open_idempotency.backends._shared import sizes
from open_idempotency.exceptions import BackendUnavailable, IdempotencyError, RecordUnreadable, first_line

#: PostgreSQL: serialization failure, deadlock; MySQL: deadlock
_OVERTAKEN = frozenset({"40001", "40P01", 1213})
_MISSING = ("does not exist", "doesn't exist", "no such table", "no such column", "unknown column")


class Overtaken(BackendUnavailable):
    """Another call was first, and nothing has changed: the transaction may be tried again."""


def is_overtaken(error: Error) -> bool:
    """Whether another transaction was in the way, and this one was undone for it."""
    return isinstance(error, IntegrityError) or _code(error) in _OVERTAKEN


def _code(error: Error) -> object:
    cause = error.__cause__
    code = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    return code or (error.args[0] if error.args else None)


def wrapped(error: Error, alias: str, vendor: str) -> IdempotencyError:
    """The error as ours; the caller keeps the driver's as the cause."""
    if is_overtaken(error):
        return Overtaken(f"Django's database {alias!r}: another call was in the way")
    # A malformed file, or one that is no database, raises this very class; all other errors are subclasses.
    if vendor == "sqlite" and type(error) is DatabaseError:
        return RecordUnreadable(f"Django's database {alias!r} cannot be read: {error}")
    text = first_line(error)
    if sizes.is_refused(_code(error), text):
        return sizes.too_large(f"Django's database {alias!r}", error)
    return BackendUnavailable(f"Django's database {alias!r}: {type(error).__name__}: {text}{_hint(text, alias)}")


def _hint(text: str, alias: str) -> str:
    lowered = text.lower()
    if "open_idempotency" in lowered and any(words in lowered for words in _MISSING):
        return f"; {how_to_migrate(alias)}"
    if "locked" in lowered and connections[alias].in_atomic_block:
        return (
            f"; SQLite has one writer, and this thread's own transaction on {alias!r} may be the one that writes: "
            "that of a TestCase (take a TransactionTestCase, or memory://) or of ATOMIC_REQUESTS"
        )
    return ""


def how_to_migrate(alias: str) -> str:
    """The command that makes the tables."""
    return "run `manage.py migrate open_idempotency" + ("`" if alias == "default" else f" --database {alias}`")
