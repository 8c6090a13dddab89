"""A simulated payment provider: it has its own book, it is slow, and it supports idempotency keys as real ones do.

It stands for an HTTP API of another company. Every request is a new line in its book, which shows the charges and the
number of requests. ``python -m examples.provider`` prints the book.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from examples.evidence import FOLDER, effect

_SCHEMA = """
CREATE TABLE IF NOT EXISTS book (
    number INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    charge TEXT NOT NULL,
    amount INTEGER NOT NULL,
    card TEXT NOT NULL,
    outcome TEXT NOT NULL
)
"""


class CardDeclined(Exception):
    """The bank said no."""


@dataclass(frozen=True)
class Charge:
    """A charge that succeeded. ``amount``: in cents."""

    id: str
    amount: int


@dataclass(frozen=True)
class Line:
    """One request in the provider's book. ``outcome``: charged, declined, or repeated when the key was known."""

    number: int
    key: str
    charge: str
    amount: int
    card: str
    outcome: str


class PaymentProvider:
    """``folder``: where it keeps its book. ``latency``: seconds that a request takes."""

    def __init__(self, folder: Path = FOLDER, latency: float | None = None) -> None:
        self._path = folder / "provider.db"
        self._latency = float(os.environ.get("PROVIDER_LATENCY", "0.2")) if latency is None else latency
        with closing(self._connect()) as book:
            book.execute(_SCHEMA)

    @effect("charge")
    def charge(self, amount: int, card: str, key: str) -> Charge:
        """Take ``amount`` cents from the card, once for each key. Raises ``CardDeclined``."""
        time.sleep(self._latency)
        return self._enter(amount, card, key)

    async def charge_async(self, amount: int, card: str, key: str) -> Charge:
        """The same, async."""
        return await asyncio.to_thread(self.charge, amount, card, key)

    def find(self, key: str) -> Charge | None:
        """The charge with this key, if there is one."""
        with closing(self._connect()) as book:
            found = book.execute("SELECT charge, amount FROM book WHERE key = ? AND outcome = 'charged'", (key,))
            row = found.fetchone()
        return Charge(*row) if row else None

    async def find_async(self, key: str) -> Charge | None:
        """The same, async."""
        return await asyncio.to_thread(self.find, key)

    def lines(self) -> list[Line]:
        """All requests, in order."""
        with closing(self._connect()) as book:
            return [Line(*row) for row in book.execute("SELECT * FROM book ORDER BY number")]

    def charges(self) -> list[Line]:
        """The requests that charged a card."""
        return [line for line in self.lines() if line.outcome == "charged"]

    def _enter(self, amount: int, card: str, key: str) -> Charge:
        with closing(self._connect()) as book:
            book.execute("BEGIN IMMEDIATE")
            earlier = book.execute("SELECT charge, outcome FROM book WHERE key = ? ORDER BY number", (key,)).fetchone()
            charge = earlier[0] if earlier else f"ch_{key[-12:]}"
            declined = card == "tok_declined"
            outcome = "declined" if declined else "repeated" if earlier else "charged"
            book.execute(
                "INSERT INTO book (key, charge, amount, card, outcome) VALUES (?, ?, ?, ?, ?)",
                (key, charge, amount, card, outcome),
            )
            book.execute("COMMIT")
        if declined:
            raise CardDeclined("the card was declined")
        return Charge(charge, amount)

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=10, isolation_level=None)


if __name__ == "__main__":
    for line in PaymentProvider().lines():
        print(f"{line.number:>4}  {line.outcome:<9}{line.amount / 100:>9.2f}  {line.card:<14}{line.key}")
