"""Values that a SQL database refuses for their size: found before they are sent if the limit is known, or by the error.

A packet over MySQL's limit ends the connection, mostly in the middle of sending, which looks like an outage. So such a
value is not sent at all.
"""

from __future__ import annotations

from open_idempotency.exceptions import RecordTooLarge

#: PostgreSQL: program_limit_exceeded, and string_data_right_truncation of a column that has a length;
#: MySQL: a packet over max_allowed_packet, data too long for the column
_REFUSED = frozenset({"54000", "22001", 1153, 1406})
#: PostgreSQL's message for a value that is longer than it can allocate; the code is that of any internal error
_NO_MEMORY = "invalid memory alloc request size"
_SQLITE = ("string or blob too big", "BLOB longer than")
#: bytes of one value that PostgreSQL can have (MaxAllocSize), and of one statement: its lengths are 32 bits wide
POSTGRESQL = 2**30 - 1
#: bytes of a statement beside its values
_MARGIN = 8192


def is_refused(code: object, text: str) -> bool:
    """Whether an error with this code and this text says that a value is too large, and will always be."""
    return code in _REFUSED or _NO_MEMORY in text or text.startswith(_SQLITE)


def too_large(where: str, error: Exception) -> RecordTooLarge:
    """The error of this package; the caller keeps ``error`` as its cause."""
    return RecordTooLarge(f"{where} refuses a value for its size: {error}")


def check(size: int, most: int, limit: str) -> None:
    """Raise ``RecordTooLarge`` for a value of ``size`` bytes whose statement is over ``most``; ``limit``: its name."""
    if size + _MARGIN > most:
        raise RecordTooLarge(f"{limit} is {most} bytes, and a value with its statement has {size + _MARGIN}; raise it")


class Limit:
    """The most bytes of a statement, for one kind of database.

    ``ask``: the SQL that reads it on a new connection, if it is a setting; otherwise it is ``most``. ``each``: the most
    bytes that a driver sends for one byte of a value.
    """

    __slots__ = ("_each", "_most", "_name", "ask")

    def __init__(self, name: str, ask: str | None = None, most: int = 0, each: int = 1) -> None:
        self._name = name
        self._most = most
        self._each = each
        self.ask = ask

    def check(self, value: bytes | None, found: int | None) -> None:
        """Raise ``RecordTooLarge`` for a value over the limit. ``found``: the limit that the database has returned."""
        most = self._most if self.ask is None else found
        if value is not None and most is not None:
            check(self._each * len(value), most, self._name)


OF_POSTGRESQL = Limit("the largest value of PostgreSQL", most=POSTGRESQL)
# Drivers escape bytes, or send all of them as two digits (PyMySQL 1.2).
OF_MYSQL = Limit("max_allowed_packet", ask="SELECT @@SESSION.max_allowed_packet", each=2)
