"""The examination of an SQLite file: its health, its permissions, the disk, and purging (P-17)."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from collections.abc import Iterator

from open_idempotency.backend import Finding, Level
from open_idempotency.backends._shared import findings
from open_idempotency.backends._shared.findings import MOST_COUNTED, megabytes

_EXPIRED = """
    SELECT count(*), coalesce(:now - min(expires_at), 0.0) FROM (
        SELECT expires_at FROM open_idempotency_records
        WHERE claimed_at + ttl <= :now AND expires_at <= :now LIMIT :most
    )
"""
#: bytes up to which a file is read whole to be checked
_CHECKED = 256 * 1024 * 1024
_LITTLE, _TOO_LITTLE = 1_000_000_000, 100_000_000


def examine(connection: sqlite3.Connection, path: str, now: float) -> list[Finding]:
    """Look at the file. Raises ``sqlite3.Error``."""
    found = [findings.server(f"SQLite {sqlite3.sqlite_version}"), *_file(path), _check(connection, path)]
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    if mode != "wal":
        cure = "PRAGMA journal_mode=wal, once; the file keeps it. On a network file system SQLite is not safe at all"
        found.append(Finding("journal", Level.WARNING, f"journal_mode is {mode}, so readers hold up writers", cure))
    row = connection.execute(_EXPIRED, {"now": now, "most": MOST_COUNTED + 1}).fetchone()
    return [*found, findings.purging(*row)]


def _file(path: str) -> Iterator[Finding]:
    size = sum(os.path.getsize(path + end) for end in ("", "-wal") if os.path.exists(path + end))
    free = shutil.disk_usage(os.path.dirname(path)).free
    found = f"{megabytes(size)} with its log; the disk has {megabytes(free)} left"
    level = Level.PROBLEM if free < _TOO_LITTLE else Level.WARNING if free < _LITTLE else Level.OK
    yield Finding(
        "disk", level, found, "make room: on a full disk every new key gets 503" if level is not Level.OK else ""
    )
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if os.name == "posix" and mode & 0o007:
        found = f"every user of this machine may open the file (mode {mode:04o})"
        yield Finding("permissions", Level.WARNING, found, f"chmod o= {path}; stored responses are in it")


def _check(connection: sqlite3.Connection, path: str) -> Finding:
    if os.path.getsize(path) > _CHECKED:
        return Finding("integrity", Level.UNKNOWN, "the file is too large to be checked here", "run PRAGMA quick_check")
    (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if said == "ok":
        return Finding("integrity", Level.OK, "quick_check found nothing")
    return Finding(
        "integrity", Level.PROBLEM, f"quick_check: {said}", "stop the workers, and restore or remake the file"
    )
