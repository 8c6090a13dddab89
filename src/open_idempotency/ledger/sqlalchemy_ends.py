"""Whether the transaction of a SQLAlchemy session or connection was ended by whoever has it.

A session that is closed without a commit loses what it wrote, and says nothing. It tells of commits and rollbacks; that
neither came is what somebody forgot.
"""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

from sqlalchemy import event
from sqlalchemy.engine import Connection
from sqlalchemy.orm import Session


class _Ends:
    """How many transactions a session has committed or rolled back; savepoints are none."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    def note(self, session: Session) -> None:
        """One more."""
        if not session.in_nested_transaction():
            self.count += 1


_ends: WeakKeyDictionary[Session, _Ends] = WeakKeyDictionary()


def watch(tx: Session | Connection) -> Callable[[], bool]:
    """What tells whether the present transaction was left open; a closed connection is taken for rolled back."""
    if isinstance(tx, Connection):
        transaction = tx.get_transaction()
        return lambda: transaction is not None and transaction.is_active
    ends = _ends.get(tx)
    if ends is None:
        ends = _ends[tx] = _Ends()
        for name in ("after_commit", "after_rollback"):
            event.listen(tx, name, ends.note)
    known, before = ends, ends.count
    return lambda: known.count == before
