"""The oracle: a file of effects outside of everything under test, with one line for each effect."""

from __future__ import annotations

import os
from pathlib import Path


class Effects:
    """Lines that any thread or process appends whole, and that never change."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, what: str) -> None:
        """Append an effect."""
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, f"{what}\n".encode())
        finally:
            os.close(handle)

    def all(self) -> list[str]:
        """The effects, in order."""
        return self.path.read_text().splitlines() if self.path.exists() else []
