"""Every error that open-idempotency raises, under one root.

Each class has a stable ``code`` for programs, and an HTTP ``status`` for code that turns it into a response.
``NotStarted`` and ``AlreadyCompleted`` carry the error names of the Open-Idempotency System. Client libraries'
own errors are never raised: a backend wraps them once and keeps them as ``__cause__``.
"""

from __future__ import annotations

import re
from typing import ClassVar

__all__ = [
    "AlreadyCommitted",
    "AlreadyCompleted",
    "BackendUnavailable",
    "BodyTooLarge",
    "BodyUnreadable",
    "ConfigurationError",
    "IdempotencyError",
    "InProgress",
    "KeyNested",
    "KeyRejected",
    "KeyRequired",
    "KeyReused",
    "KeyUnknown",
    "LeaseLost",
    "LedgerMissing",
    "MissingExtra",
    "NotAuthenticated",
    "NotCommitted",
    "NotStarted",
    "OutcomeUnknown",
    "PayloadRejected",
    "RecordTooLarge",
    "RecordUnreadable",
    "ScopeUnknown",
    "StageConflict",
    "StageValueError",
    "SyncAsyncMismatch",
    "TooManyKeys",
]

#: the default challenge of a 401, with a realm, since RFC 6750 (section 3) requires a parameter after the scheme
CHALLENGE = 'Bearer realm="api"'
_CHALLENGE = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?: [ -~]*)?")


def first_line(error: BaseException) -> str:
    """The first line of an error. In further lines a database may repeat the statement or the row."""
    return str(error).strip().partition("\n")[0].rstrip()


def is_challenge(value: object) -> bool:
    """Whether a value is valid as ``WWW-Authenticate``: printable ASCII after a scheme (RFC 9110, 11.6.1)."""
    return isinstance(value, str) and _CHALLENGE.fullmatch(value) is not None


class IdempotencyError(Exception):
    """Root of all errors of this package."""

    code: ClassVar[str] = "ERR_IDEMPOTENCY"
    status: ClassVar[int] = 500


class ConfigurationError(IdempotencyError, ValueError):
    """The set-up is wrong; raised at start, naming the field and what to do."""

    code = "ERR_CONFIGURATION"


class MissingExtra(ConfigurationError, ImportError):
    """An optional dependency is not installed; the message has the pip command."""

    code = "ERR_MISSING_EXTRA"


class LedgerMissing(ConfigurationError):
    """The database that ``tx=`` names lacks the ledger's tables; the message says how to create them."""

    code = "ERR_LEDGER_MISSING"


class KeyRejected(IdempotencyError):
    """The idempotency key of a request, or of a ``Once`` call, cannot be used. Raised before any backend call."""

    code = "ERR_KEY_MALFORMED"
    status = 400


class KeyRequired(KeyRejected):
    """The route requires an idempotency key and the request has none."""

    code = "ERR_KEY_MISSING"


class BodyUnreadable(KeyRejected):
    """The key is in the body or the query, which cannot be read: another type, not JSON, or a repeated name.

    If a key is required, the request gets 400 ``key-missing``; otherwise it runs as a request without a key.
    """

    code = "ERR_BODY_UNREADABLE"


class KeyUnknown(IdempotencyError):
    """The ``key=`` callable failed, or returned neither a string nor None; the request does not run unprotected."""

    code = "ERR_KEY_UNKNOWN"


class BodyTooLarge(IdempotencyError):
    """The request body is over ``max_request_bytes``; a request with a key never runs unprotected."""

    code = "ERR_BODY_TOO_LARGE"
    status = 413


class ScopeUnknown(IdempotencyError):
    """The ``scope=`` callable failed or returned no name. Unknown callers never share one scope."""

    code = "ERR_SCOPE_UNKNOWN"


class NotAuthenticated(IdempotencyError):
    """Raised by a ``scope=`` callable for a request whose caller it does not know: 401 ``not-authenticated``.

    Nothing is claimed, and no backend call is made. ``message``: the problem's ``detail``, which the client reads.
    ``challenge``: the value of ``WWW-Authenticate``, which a 401 must have (RFC 9110, section 15.5.2). Raises
    ``ConfigurationError`` for a challenge that is no header value. Since 0.1.
    """

    code = "ERR_NOT_AUTHENTICATED"
    status = 401

    def __init__(
        self, message: str = "This request has no credentials that name its caller.", challenge: str = CHALLENGE
    ) -> None:
        if not is_challenge(challenge):
            raise ConfigurationError(
                f"challenge: {challenge!r} is not a value of WWW-Authenticate; pass one such as {CHALLENGE!r}"
            )
        super().__init__(message)
        self.challenge = challenge


class NotStarted(IdempotencyError):
    """``idem`` was used outside of an idempotent request (ERR_NOT_STARTED)."""

    code = "ERR_NOT_STARTED"


class AlreadyCompleted(IdempotencyError):
    """``idem`` was used after the response was recorded (ERR_COMPLETED)."""

    code = "ERR_COMPLETED"


class LeaseLost(IdempotencyError):
    """Another attempt owns the record by now; this attempt must stop and has changed nothing."""

    code = "ERR_LEASE_LOST"
    status = 409


class OutcomeUnknown(IdempotencyError):
    """A stage cannot resume from its record.

    It was begun and its end is not on record, so it is unknown whether its effect happened (S-04); or it was done and
    its value could not be stored (S-02a). Also raised for a ``Once`` call whose result could not be stored, or that is
    not attempted again.

    In a request the response is 409 ``outcome-unknown`` unless the view catches the error. ``retryable``: whether a
    later retry may succeed.
    """

    code = "ERR_OUTCOME_UNKNOWN"
    status = 409

    def __init__(self, message: str, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class KeyReused(IdempotencyError):
    """The key was used for something else.

    The ledger in the application's database has the key from another request, whose record was lost (S-06); or the key
    of a ``Once`` call was used with another payload.

    In a request the response is 422 ``key-reused`` unless the view catches the error.
    """

    code = "ERR_KEY_REUSED"
    status = 422


class AlreadyCommitted(IdempotencyError):
    """The ledger has the response that an earlier attempt, or this one, committed with the application's rows (S-06).

    Raised when ``idem.atomic`` is entered, so that nothing runs again; the middleware sends that response. Do not catch
    it.
    """

    code = "ERR_ALREADY_COMMITTED"

    def __init__(self, frame: bytes) -> None:
        super().__init__("this request's response was committed before; it is sent again")
        self.frame = frame


class InProgress(IdempotencyError):
    """Another attempt with the key of this ``Once`` call is running. Raised before the function is called.

    ``retry_after``: seconds after which to try again with the same key. ``wait=`` waits instead. Since 0.1.
    """

    code = "ERR_IN_PROGRESS"
    status = 409

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[type[InProgress], tuple[str, float]]:
        """For task queues, which pickle the errors of tasks."""
        return type(self), (str(self), self.retry_after)


class TooManyKeys(IdempotencyError):
    """The scope of this ``Once`` has ``max_live_keys`` live keys already. Raised before the function is called.

    ``retry_after``: seconds after which one of them may have expired. Since 0.1.
    """

    code = "ERR_TOO_MANY_KEYS"
    status = 429

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[type[TooManyKeys], tuple[str, float]]:
        """See ``InProgress``."""
        return type(self), (str(self), self.retry_after)


class KeyNested(IdempotencyError, RuntimeError):
    """A ``Once`` key was used inside its own call, which would wait for itself. Since 0.1."""

    code = "ERR_KEY_NESTED"


class PayloadRejected(IdempotencyError, ValueError):
    """The payload of a ``Once`` call is not JSON, so it cannot be compared with that of a later call.

    Raised before the function is called. ``payload=`` names other values to compare. Since 0.1.
    """

    code = "ERR_PAYLOAD"
    status = 400


class NotCommitted(IdempotencyError):
    """The function of a ``Once`` call returned before its work was done, so its result is not stored.

    Its transaction (``tx=``, ``idem.atomic``) was left open or rolled back, or a stage was never awaited. The next call
    resumes. Since 0.1.
    """

    code = "ERR_NOT_COMMITTED"


class StageConflict(IdempotencyError):
    """One attempt used the same stage name and key twice; give each its own ``key=``."""

    code = "ERR_STAGE_CONFLICT"


class StageValueError(IdempotencyError, ValueError):
    """A stage value cannot be stored or read back: not JSON, too large, or its type is not declared.

    Raised before the effect if the declared type shows it, and for a stage with ``tx=``, whose transaction it rolls
    back. Otherwise such a stage is done without its value (S-02a). ``kind``: the name of the type. ``cure``: what to
    do.
    """

    code = "ERR_STAGE_VALUE"

    def __init__(self, message: str, kind: str = "", cure: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.cure = cure


class SyncAsyncMismatch(IdempotencyError, RuntimeError):
    """A sync verb of ``idem`` was called on an event loop, or an ``a…`` verb outside one."""

    code = "ERR_SYNC_ASYNC_MISMATCH"


class BackendUnavailable(IdempotencyError):
    """The backend did not reply, or refused the call; the driver's error is the ``__cause__``."""

    code = "ERR_BACKEND_UNAVAILABLE"
    status = 503


class RecordTooLarge(IdempotencyError):
    """The backend refuses a response or a stage for its size, and would refuse it each time.

    Raised by ``complete``, ``fail`` and ``save_stage`` of a backend, never in a view. A tombstone, or a stage without
    its value, is recorded instead (O-11, S-02a).
    """

    code = "ERR_RECORD_TOO_LARGE"


class RecordUnreadable(IdempotencyError):
    """A stored record is corrupt, foreign or of a newer version. Nothing runs, and the record is not overwritten."""

    code = "ERR_RECORD_UNREADABLE"
    status = 503
