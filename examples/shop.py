"""The shop behind every example: stock, reservations and receipts in one SQLite file.

It knows nothing of HTTP and of idempotency keys. Each effect takes a reference, and does nothing when it meets that
reference again: that covers the one moment no stage can, a worker that dies between an effect and its record.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from examples.evidence import FOLDER, effect
from examples.provider import Charge

_SCHEMA = """
CREATE TABLE IF NOT EXISTS stock (sku TEXT PRIMARY KEY, price INTEGER NOT NULL, available INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS reservations (
    reference TEXT PRIMARY KEY, sku TEXT NOT NULL, quantity INTEGER NOT NULL, amount INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS receipts (
    id TEXT PRIMARY KEY, sku TEXT NOT NULL, quantity INTEGER NOT NULL, amount INTEGER NOT NULL
);
"""

#: the first goods: what they are called, what one costs in cents, how many there are
STOCK = (("mug", 1250, 100), ("shirt", 2400, 100), ("last-poster", 900, 1))


class UnknownProduct(Exception):
    """There is nothing of that name."""


class OutOfStock(Exception):
    """There was something of that name, but not enough is left."""


@dataclass(frozen=True)
class Reservation:
    """Goods that are kept for one customer. ``amount``: what they cost together, in cents."""

    reference: str
    sku: str
    quantity: int
    amount: int


@dataclass(frozen=True)
class Receipt:
    """What a customer gets for the money. ``id``: the charge's."""

    id: str
    sku: str
    quantity: int
    amount: int


class Shop:
    """``folder``: where it keeps its database."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._path = folder / "shop.db"
        with closing(self._connect()) as database:
            database.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
            database.executemany("INSERT OR IGNORE INTO stock VALUES (?, ?, ?)", STOCK)

    @effect("reserve")
    def reserve(self, sku: str, quantity: int, reference: str) -> Reservation:
        """Take goods out of the stock, once for each reference. Raises ``UnknownProduct``, ``OutOfStock``."""
        with self._transaction() as database:
            earlier = _find_reservation(database, reference)
            if earlier is not None:
                return earlier
            product = database.execute("SELECT price, available FROM stock WHERE sku = ?", (sku,)).fetchone()
            if product is None:
                raise UnknownProduct(f"there is no {sku}")
            price, available = product
            if quantity > available:
                raise OutOfStock(f"{available} left of {sku}")
            reservation = Reservation(reference, sku, quantity, price * quantity)
            database.execute("UPDATE stock SET available = available - ? WHERE sku = ?", (quantity, sku))
            database.execute(
                "INSERT INTO reservations VALUES (?, ?, ?, ?)", (reference, sku, quantity, price * quantity)
            )
            return reservation

    @effect("release")
    def release(self, reservation: Reservation) -> None:
        """Put reserved goods back, once."""
        with self._transaction() as database:
            gone = database.execute("DELETE FROM reservations WHERE reference = ?", (reservation.reference,))
            if gone.rowcount:
                database.execute(
                    "UPDATE stock SET available = available + ? WHERE sku = ?", (reservation.quantity, reservation.sku)
                )

    @effect("receipt")
    def write_receipt(self, reservation: Reservation, charge: Charge) -> Receipt:
        """The receipt of a charge; there is one for each charge."""
        receipt = Receipt(charge.id, reservation.sku, reservation.quantity, charge.amount)
        with self._transaction() as database:
            database.execute(
                "INSERT OR IGNORE INTO receipts VALUES (?, ?, ?, ?)",
                (receipt.id, receipt.sku, receipt.quantity, receipt.amount),
            )
        return receipt

    def find_receipt(self, charge_id: str) -> Receipt | None:
        """The receipt of this charge, if there is one."""
        with closing(self._connect()) as database:
            row = database.execute("SELECT * FROM receipts WHERE id = ?", (charge_id,)).fetchone()
        return Receipt(*row) if row else None

    def receipts(self) -> list[Receipt]:
        """All receipts."""
        with closing(self._connect()) as database:
            return [Receipt(*row) for row in database.execute("SELECT * FROM receipts ORDER BY rowid")]

    def reservations(self) -> list[Reservation]:
        """All reservations that were not released."""
        with closing(self._connect()) as database:
            return [Reservation(*row) for row in database.execute("SELECT * FROM reservations ORDER BY rowid")]

    def available(self, sku: str) -> int:
        """How many are left."""
        with closing(self._connect()) as database:
            left: int = database.execute("SELECT available FROM stock WHERE sku = ?", (sku,)).fetchone()[0]
        return left

    @contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection, None, None]:
        with closing(self._connect()) as database:
            database.execute("BEGIN IMMEDIATE")
            yield database
            database.execute("COMMIT")

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=10, isolation_level=None)


def _find_reservation(database: sqlite3.Connection, reference: str) -> Reservation | None:
    row = database.execute("SELECT * FROM reservations WHERE reference = ?", (reference,)).fetchone()
    return Reservation(*row) if row else None
