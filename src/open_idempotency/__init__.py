"""Idempotency keys for Python web applications: a retried request runs once, and resumes after a crash.

This package holds the names that every application uses. Adapters are separate modules (``open_idempotency.asgi``,
``.wsgi``, ``.starlette``, ``.fastapi``, ``.flask``, ``.django``), so that importing this package loads no framework,
client library or event loop.
"""

from open_idempotency._core.intents import NOT_DONE, UNKNOWN, Finding, Found
from open_idempotency._core.key_sources import key_from
from open_idempotency._core.models import Status
from open_idempotency._engine.shutdown import drain
from open_idempotency.backends.registry import open_backend
from open_idempotency.exceptions import (
    AlreadyCommitted,
    AlreadyCompleted,
    BackendUnavailable,
    ConfigurationError,
    IdempotencyError,
    InProgress,
    KeyNested,
    KeyRejected,
    KeyReused,
    LeaseLost,
    LedgerMissing,
    NotAuthenticated,
    NotCommitted,
    NotStarted,
    OutcomeUnknown,
    PayloadRejected,
    RecordUnreadable,
    StageConflict,
    StageValueError,
    SyncAsyncMismatch,
    TooManyKeys,
)
from open_idempotency.idem import idem
from open_idempotency.once import Once, OnceStatus
from open_idempotency.policy import IdempotencyPolicy

__all__ = [
    "NOT_DONE",
    "UNKNOWN",
    "AlreadyCommitted",
    "AlreadyCompleted",
    "BackendUnavailable",
    "ConfigurationError",
    "Finding",
    "Found",
    "IdempotencyError",
    "IdempotencyPolicy",
    "InProgress",
    "KeyNested",
    "KeyRejected",
    "KeyReused",
    "LeaseLost",
    "LedgerMissing",
    "NotAuthenticated",
    "NotCommitted",
    "NotStarted",
    "Once",
    "OnceStatus",
    "OutcomeUnknown",
    "PayloadRejected",
    "RecordUnreadable",
    "StageConflict",
    "StageValueError",
    "Status",
    "SyncAsyncMismatch",
    "TooManyKeys",
    "drain",
    "idem",
    "key_from",
    "open_backend",
]

__version__ = "0.1.0"
