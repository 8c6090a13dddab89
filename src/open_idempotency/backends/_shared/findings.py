"""Findings that the examinations of several backends have in common. Each is for an operator to read (P-17)."""

from __future__ import annotations

from collections.abc import Sequence

from open_idempotency.backend import Finding, Level

#: expired records are counted up to here, so that an examination ends soon
MOST_COUNTED = 10_000
#: purging is behind from this number of expired records on, or from this many seconds since the oldest expired
_MANY, _LATE = 5_000, 86_400.0
_PURGE = "run `open-idempotency purge` with the backend's URL, or `manage.py idempotency purge`, and then do so daily"


def server(text: str) -> Finding:
    """The finding with the version of the server or the library."""
    return Finding("server", Level.OK, text)


def migrations(missing: Sequence[str], cure: str) -> Finding:
    """The finding about missing tables or migrations. ``cure``: what to do."""
    if not missing:
        return Finding("migrations", Level.OK, "all are applied")
    return Finding("migrations", Level.PROBLEM, f"missing: {', '.join(missing)}", cure)


def purging(expired: int, oldest: float) -> Finding:
    """How far purging is behind. ``oldest``: seconds since the first of the expired records expired."""
    count = f"more than {MOST_COUNTED}" if expired > MOST_COUNTED else str(expired)
    if expired < _MANY and oldest < _LATE:
        return Finding("purging", Level.OK, f"{count} expired records wait to be purged")
    hours = oldest / 3600
    found = f"{count} expired records wait to be purged, the oldest for {hours:.1f} hours"
    return Finding("purging", Level.WARNING, found, _PURGE)


def denied(check: str, said: str, cure: str = "") -> Finding:
    """A finding that this user may not look at something. ``said``: the error; ``cure``: what to do."""
    return Finding(check, Level.UNKNOWN, said, cure)


def replica(found: str) -> Finding:
    """The finding that the server takes no writes."""
    return Finding("role", Level.PROBLEM, found, "let the URL lead to the primary")


def megabytes(octets: int | float) -> str:
    """A number of bytes as text, in megabytes."""
    return f"{octets / 1_000_000:.1f} MB"
