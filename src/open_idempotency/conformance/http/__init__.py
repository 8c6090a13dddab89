"""Statements about idempotency keys, held against a live HTTP endpoint: draft-ietf-httpapi-idempotency-key-header-07.

``examine(Target(url))`` sends a bounded number of requests and returns one finding for each statement;
``python -m open_idempotency.conformance URL`` prints them. Standard library only: it looks at any server, from
outside, and knows nothing of the rest of this package.
"""

from __future__ import annotations

from open_idempotency.conformance.http.run import Findings, examine
from open_idempotency.conformance.http.target import Target
from open_idempotency.conformance.http.verdicts import CouldNotRun, Finding, Level, Result, Statement

__all__ = ["CouldNotRun", "Finding", "Findings", "Level", "Result", "Statement", "Target", "examine"]
