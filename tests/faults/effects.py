"""The oracle: a file of effects that lies outside everything that is tested, one line for each, whoever wrote it."""

from __future__ import annotations

import os
from pathlib import Path


class Effects:
    """Lines that are appended whole, by any thread or process, and never changed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, what: str) -> None:
        """Something happened."""
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, f"{what}\n".encode())
        finally:
            os.close(handle)

    def all(self) -> list[str]:
        """What happened, in order."""
        return self.path.read_text().splitlines() if self.path.exists() else []
