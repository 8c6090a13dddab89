"""Where the database file is, checked at start rather than at the first request."""

from __future__ import annotations

import os

from open_idempotency.exceptions import ConfigurationError


def database_path(path: str) -> str:
    """The absolute path, so that a later change of directory does not matter. Raises ``ConfigurationError``."""
    path = os.fspath(path)
    if path in ("", ":memory:"):
        raise ConfigurationError(
            "backend: sqlite needs a file such as sqlite:///idem.db; for records in memory use memory://"
        )
    absolute = os.path.abspath(path)
    directory = os.path.dirname(absolute)
    if not os.path.isdir(directory):
        raise ConfigurationError(f"backend: sqlite: the directory {directory} does not exist; create it first")
    if os.path.isdir(absolute):
        raise ConfigurationError(f"backend: sqlite: {absolute} is a directory, not a database file")
    return absolute
