"""The database of the two transactional examples: ``SHOP_DATABASE``, which is a SQLite file unless you say otherwise.

``postgresql://user:password@host:5432/database`` puts the shop's rows, and the ledger beside them, into PostgreSQL.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

from examples.evidence import FOLDER

URL = os.environ.get("SHOP_DATABASE", f"sqlite:///{FOLDER / 'shop.db'}")

_SQLITE = "sqlite:///"
_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg"}


def for_django() -> dict[str, Any]:
    """The value of Django's ``DATABASES``."""
    if URL.startswith(_SQLITE):
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": URL.removeprefix(_SQLITE), "OPTIONS": {"timeout": 20}}
    parts = urlsplit(URL)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.path.lstrip("/"),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parts.hostname or "",
        "PORT": str(parts.port or ""),
    }


def for_sqlalchemy() -> str:
    """The URL with the name of an async driver."""
    scheme, _, rest = URL.partition(":")
    return f"{_DRIVERS[scheme]}:{rest}"


@contextmanager
def one_worker_at_a_time() -> Generator[None, None, None]:
    """Workers that start at the same moment make the tables one after the other.

    A deployment makes them before it starts any worker, and needs none of this.
    """
    with closing(sqlite3.connect(FOLDER / "starting.db", timeout=60, isolation_level=None)) as lock:
        lock.execute("BEGIN EXCLUSIVE")
        yield
