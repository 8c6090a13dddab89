"""Idempotency keys for Python web applications: a retried request runs once, and resumes after a crash.

This package holds the names that every application uses. Adapters are modules of their own
(``open_idempotency.asgi``, ``.wsgi``, ``.starlette``, ``.fastapi``, ``.flask``, ``.django``), so that importing this
one loads no framework, client library or event loop.
"""

from open_idempotency._core.models import Status
from open_idempotency.backends.registry import open_backend
from open_idempotency.exceptions import (
    AlreadyCompleted,
    BackendUnavailable,
    ConfigurationError,
    IdempotencyError,
    LeaseLost,
    NotStarted,
    RecordUnreadable,
    StageConflict,
    StageValueError,
    WrongColour,
)
from open_idempotency.idem import idem
from open_idempotency.policy import IdempotencyPolicy

__all__ = [
    "AlreadyCompleted",
    "BackendUnavailable",
    "ConfigurationError",
    "IdempotencyError",
    "IdempotencyPolicy",
    "LeaseLost",
    "NotStarted",
    "RecordUnreadable",
    "StageConflict",
    "StageValueError",
    "Status",
    "WrongColour",
    "idem",
    "open_backend",
]

__version__ = "0.1.0"
