"""The file of a SQLite database: made for its owner alone, and noticed when another file replaces it.

A connection stays on the file that it has opened, even if that file was removed or replaced by a cleaner of /tmp, a
deployment or a restored backup. Workers on different files would each run every key. So before each use the file at the
path is compared with that of the connection, by device and inode.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from open_idempotency._runtime.processes import PerProcess
from open_idempotency.exceptions import BackendUnavailable, first_line

#: device and inode
Identity = tuple[int, int]

# Closing a file releases all locks that the process has on it, also those of SQLite's connections. So no connection is
# opened between the two steps of making a file.
_making: PerProcess[threading.Lock] = PerProcess(threading.Lock)


def identity(path: str) -> Identity | None:
    """Which file is at the path; None if there is none."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def make(path: str) -> None:
    """Make the file, for its owner alone, if there is none; SQLite gives its log and index the same permissions.

    Raises ``BackendUnavailable``.
    """
    with _making.get():
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            pass
        except OSError as error:
            raise BackendUnavailable(f"SQLite: {path} cannot be created: {first_line(error)}") from error


def uri(path: str) -> str:
    """The URI by which SQLite opens an existing file and does not create one."""
    return f"{Path(path).as_uri()}?mode=rw"


def gone(path: str, then: str = "which make a new one") -> BackendUnavailable:
    """The error for a file that was removed while this process used it. ``then``: what happens at a restart."""
    return BackendUnavailable(
        f"SQLite: the database {path} was removed while this process used it, and its records are gone; put the file "
        f"back, or restart the workers, {then}"
    )


def replaced(path: str) -> BackendUnavailable:
    """The error for a file that another one replaced while it was being opened."""
    return BackendUnavailable(f"SQLite: the database {path} was replaced while it was being opened")


class Watched:
    """The file that the connections of a pool are on, for pools that belong to another library."""

    __slots__ = ("_file", "_path")

    def __init__(self) -> None:
        self._path = ""
        self._file: Identity | None = None

    @property
    def known(self) -> bool:
        """Whether a file was found before."""
        return self._file is not None

    def moved(self, path: str) -> bool:
        """Whether another file is at the path than at the last call, so that every connection has to be closed.

        To be called before each use of a connection. Raises ``BackendUnavailable`` where the file is gone.
        """
        found = identity(path)
        if path != self._path:
            self._path, self._file = path, None
        if found == self._file:
            return False
        if found is None:
            raise gone(path, "after a migration")
        before, self._file = self._file, found
        return before is not None
