"""The policies that the servers run with. ``options``: the options of the backend's URL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LIMIT = 1000
BRISK_LEASE = 1.5
BRIEF_GRACE = 0.5

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    # The defaults except for two numbers, so that a failed backend is noticed within a test.
    "impatient": {"respond_within": 1.0, "options": "timeout=0.25"},
    "default-redis": {"options": "timeout=1"},
    "small": {"max_response_bytes": LIMIT},
    "spooling": {"max_request_bytes": 2**31, "spool_bytes": 2**20},
    # The slowest call, a multiple of the timeout, has to be shorter than the lease.
    "brisk": {"lease": BRISK_LEASE, "options": "timeout=0.25"},
    "in-memory": {"options": "max_records=1000"},
    "brief": {"stream_grace": BRIEF_GRACE},
    # PostgreSQL starts a process for each connection, and exchanges some messages.
    "brisk-postgres": {"lease": BRISK_LEASE, "options": "timeout=0.4"},
}
