"""An order in three stages; its effects are counted outside of the library and of the servers' memory.

Each effect happens in two ways: unfenced, as a line of an append-only file without protection; and fenced, as a row of
a table that takes one row for each ``idem.key_for(stage)``. The test reads both through ``Shop``.
"""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from open_idempotency import idem
from tests.faults.apps.stopping import stop_at
from tests.http.behaviours import Behaviour, Call, Reply, Run, Wait
from tests.wire.endpoints import journal_of
from tests.wire.journal import Journal

STAGES = ("reserve", "charge", "receipt")
FIRST_PIECE = b"data: first\n\n"
_EFFECT = "effect "


class Shop:
    """The effects of all orders of one folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "fenced.db"

    def fence(self, key: str, order: str, effect: str) -> None:
        """Record the effect, unless one with this key exists."""
        with closing(sqlite3.connect(self._path, timeout=10, isolation_level=None)) as connection:
            connection.execute('CREATE TABLE IF NOT EXISTS effects (key PRIMARY KEY, "order", effect)')
            connection.execute("INSERT OR IGNORE INTO effects VALUES (?, ?, ?)", (key, order, effect))

    def fenced(self, order: str) -> Mapping[str, int]:
        """How often each fenced effect of an order happened."""
        with closing(sqlite3.connect(self._path, timeout=10)) as connection:
            rows = connection.execute('SELECT effect FROM effects WHERE "order" = ?', (order,)).fetchall()
        return Counter(effect for (effect,) in rows)


def unfenced(journal: Journal) -> Mapping[str, int]:
    """How often each unfenced effect of an order happened."""
    return Counter(line.removeprefix(_EFFECT) for line in journal.lines() if line.startswith(_EFFECT))


def _effect(call: Call, name: str) -> None:
    journal_of(call.query).write(f"{_EFFECT}{name}")
    Shop(Path(os.environ["WIRE_FOLDER"])).fence(idem.key_for(name), call.query, name)


def _work(call: Call, **terms: Any) -> Generator[Any, Any, None]:
    yield Run("reserve", partial(_effect, call, "reserve"))
    stop = stop_at("between-stages")
    if stop is not None:
        yield Wait(stop)
    yield Run("charge", partial(_effect, call, "charge"), terms, stop_at("after-effect"))
    yield Run("receipt", partial(_effect, call, "receipt"))


def _said() -> bytes:
    """A part of the response that differs in each run."""
    return f"attempt {idem.attempt} {uuid4().hex}".encode()


def order(call: Call) -> Generator[Any, Any, Reply]:
    """Respond in one piece."""
    yield from _work(call)
    return Reply(201, [("Content-Type", "text/plain")], _said())


def order_in_pieces(call: Call) -> Generator[Any, Any, Reply]:
    """Respond with events, the first of them at once."""
    yield from _work(call)
    stop = stop_at("mid-stream")
    pieces: list[Any] = [FIRST_PIECE, *([stop] if stop else []), b"data: " + _said() + b"\n\n"]
    return Reply(201, [("Content-Type", "text/event-stream")], pieces)


def external_order(call: Call) -> Generator[Any, Any, Reply]:
    """Charge in an external stage, so that a charge in doubt is not made again."""
    yield from _work(call, external=True)
    return Reply(201, [("Content-Type", "text/plain")], _said())


ENDPOINTS: Mapping[str, Behaviour] = {
    "order": order,
    "order in pieces": order_in_pieces,
    "external order": external_order,
}
