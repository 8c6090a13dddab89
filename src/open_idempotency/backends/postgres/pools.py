"""What a pool of the application's says about its server: how its connections are made.

Only its settings are read. Its connections are never used: handlers that hold all of them must not keep their own
records from being written.
"""

from __future__ import annotations

from typing import Any

from psycopg import ProgrammingError
from psycopg.conninfo import make_conninfo

from open_idempotency.exceptions import ConfigurationError

#: what ``psycopg.connect`` takes beside libpq's own options; they change nothing of where it connects
_OF_PSYCOPG = frozenset({"autocommit", "prepare_threshold", "row_factory", "cursor_factory", "context"})


def conninfo_of(pool: Any) -> str:
    """How a ``psycopg_pool`` pool connects, in libpq's form, with passwords. Raises ``ConfigurationError``."""
    name = f"{type(pool).__module__}.{type(pool).__qualname__}"
    try:
        conninfo, keywords = pool.conninfo, pool.kwargs or {}
    except AttributeError as error:
        raise ConfigurationError(
            f"backend: expected a URL, or a pool such as psycopg_pool.ConnectionPool, got {name} ({error})"
        ) from error
    if callable(conninfo) or callable(keywords):
        raise ConfigurationError(
            f"backend: {name} computes its settings anew for each connection, which may go elsewhere each time; pass a "
            "URL"
        )
    try:
        return make_conninfo(conninfo, **{key: value for key, value in keywords.items() if key not in _OF_PSYCOPG})
    except ProgrammingError as error:
        # libpq's message names the option that it does not know, and repeats nothing else.
        raise ConfigurationError(f"backend: the settings of {name}: {str(error).strip()}") from None
