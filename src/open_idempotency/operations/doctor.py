"""The doctor: whether the backend can be reached, and problems that endanger records or delay requests (P-17)."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence

import open_idempotency
from open_idempotency.backend import Backend, Finding, Level
from open_idempotency.operations.views import duration
from open_idempotency.policy import IdempotencyPolicy

#: seconds by which this machine's clock may differ from the backend's
_APART = 2.0
_SLOW = 0.25


def examine(backend: Backend, *, policy: IdempotencyPolicy | None = None) -> tuple[Finding, ...]:
    """Examine a backend (P-17). Findings of the level ``PROBLEM`` need action now.

    ``policy``: that of the application; its lease and retention are compared with the backend. Nothing is written.
    Raises ``BackendUnavailable`` if the backend does not reply. Since 0.1.
    """
    versions = f"open-idempotency {open_idempotency.__version__}, Python {platform.python_version()}"
    first = Finding("package", Level.OK, versions)
    found: Sequence[Finding] = backend.examine()
    # Without its tables a backend has no clock.
    works = not any(each.check == "migrations" and each.level is Level.PROBLEM for each in found)
    return (first, *found, *(_clock(backend) if works else ()), *_policy(backend, policy))


def _clock(backend: Backend) -> list[Finding]:
    backend.now()  # opens the connection, which must not be measured
    before = time.time()
    theirs = backend.now()
    after = time.time()
    reply = Finding(
        "reachable",
        Level.OK if after - before < _SLOW else Level.WARNING,
        f"a call takes {(after - before) * 1000:.1f} ms from here",
        "" if after - before < _SLOW else "each new key takes two such calls; bring the backend nearer",
    )
    apart = theirs - (before + after) / 2
    said = f"the backend's clock is {duration(apart)} {'ahead of' if apart > 0 else 'behind'} this machine's"
    if abs(apart) <= max(_APART, after - before):
        return [reply, Finding("clock", Level.OK, said)]
    cure = "leases use the backend's clock, so nothing is lost; check NTP on both, and compare logs with care"
    return [reply, Finding("clock", Level.WARNING, said, cure)]


def _policy(backend: Backend, policy: IdempotencyPolicy | None) -> list[Finding]:
    if policy is None:
        return []
    if backend.call_timeout and backend.call_timeout * 3 > policy.lease:
        return [
            Finding(
                "lease",
                Level.WARNING,
                f"lease={policy.lease:g} is less than three of the slowest calls ({backend.call_timeout:g} s each)",
                "raise lease=, or lower the backend's timeout=",
            )
        ]
    return [Finding("lease", Level.OK, f"lease={policy.lease:g}, ttl={policy.ttl:g} seconds")]
