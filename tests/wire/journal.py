"""Messages between test and server processes in files: lines that are appended, and gates that are opened.

The lines of a case are the oracle: every action of a handler appends one, with its process id.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

PATIENCE = 20.0  # seconds, less than a lease; nothing waits longer, so a lost signal is a failure and not a hang
_STEP = 0.005


class Journal:
    """The lines and gates of one case."""

    def __init__(self, folder: Path, case: str) -> None:
        self._folder = folder
        self._case = case
        self._path = folder / f"{case}.lines"

    def write(self, what: str) -> None:
        """Append a line, atomically."""
        handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, f"{os.getpid()} {what}\n".encode())
        finally:
            os.close(handle)

    def entries(self) -> list[tuple[int, str]]:
        """Process and text of each line, in order."""
        text = self._path.read_text() if self._path.exists() else ""
        return [(int(pid), what) for pid, _, what in (line.partition(" ") for line in text.splitlines())]

    def lines(self) -> list[str]:
        """The text of each line, in order."""
        return [what for _, what in self.entries()]

    def await_line(self, what: str) -> None:
        """Wait until a process has written this line."""
        deadline = time.monotonic() + PATIENCE
        while what not in self.lines():
            if time.monotonic() > deadline:
                raise AssertionError(f"no line {what!r} after {PATIENCE} s: {self.lines()}")
            time.sleep(_STEP)

    def gate(self, name: str = "go") -> FileGate:
        """A gate of this case."""
        return FileGate(self._folder / f"{self._case}.{name}")


class FileGate:
    """The part of ``threading.Event`` that the behaviours need, between processes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def set(self) -> None:
        """Open it."""
        self._path.touch()

    def wait(self, timeout: float) -> bool:
        """Whether it opens before the timeout."""
        deadline = time.monotonic() + timeout
        while not self._path.exists():
            if time.monotonic() > deadline:
                return False
            time.sleep(_STEP)
        return True
