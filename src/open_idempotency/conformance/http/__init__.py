"""A conformance test for HTTP endpoints that take idempotency keys (draft-ietf-httpapi-idempotency-key-header-07).

``examine(Target(url=...))`` sends a bounded number of requests and returns one finding for each statement of the draft
and of this package; ``python -m open_idempotency.conformance URL`` prints the findings. The endpoint may run on any
server in any language. This package uses the standard library only, and nothing else of ``open_idempotency``.
"""

from __future__ import annotations

from open_idempotency.conformance.http.cli import Finding, Findings, examine
from open_idempotency.conformance.http.observations import Result
from open_idempotency.conformance.http.profiles import Level, Statement
from open_idempotency.conformance.http.target import CouldNotRun, Target

__all__ = ["CouldNotRun", "Finding", "Findings", "Level", "Result", "Statement", "Target", "examine"]
