"""Errors of operations. Each names the record and says what to do; ``exit_code`` is for shell commands."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import ClassVar

from open_idempotency.exceptions import BackendUnavailable, IdempotencyError, RecordUnreadable


class ExitCode(IntEnum):
    """The exit codes of ``open-idempotency``, and of ``manage.py idempotency``. They never change their meaning."""

    DONE = 0
    #: not done, for a reason that has no code of its own, such as a wrong URL
    FAILED = 1
    #: wrong usage: an unknown or missing command or option
    USAGE = 2
    #: no record has this id or key
    UNKNOWN = 3
    #: several records match
    SEVERAL = 4
    #: refused, since an attempt holds the record
    LIVE = 5
    #: refused, since the state of the record, or of the stage, does not allow it
    STATE = 6
    #: the backend did not reply
    DOWN = 7
    #: the backend refuses this user, or the file this process
    DENIED = 8
    #: a record that cannot be read: of a newer version, corrupt, or encrypted with keys that were not given
    UNREADABLE = 9
    #: the question was declined, or could not be asked
    UNCONFIRMED = 10
    #: the doctor found problems, or an erasure may have left records of the person
    PROBLEMS = 11
    #: interrupted with Ctrl-C
    INTERRUPTED = 130
    #: the reader of the output has closed the pipe
    PIPE = 141


class OperationRefused(IdempotencyError):
    """An operation was not carried out; nothing was changed. Since 0.1."""

    code = "ERR_OPERATION_REFUSED"
    exit_code: ClassVar[ExitCode] = ExitCode.STATE


class RecordUnknown(OperationRefused):
    """No live record has this id or key."""

    code = "ERR_RECORD_UNKNOWN"
    exit_code = ExitCode.UNKNOWN


class SeveralRecords(OperationRefused):
    """Several records match. ``record_ids``: those that were found, in hexadecimal digits."""

    code = "ERR_SEVERAL_RECORDS"
    exit_code = ExitCode.SEVERAL

    def __init__(self, message: str, record_ids: Sequence[str]) -> None:
        super().__init__(message)
        self.record_ids = tuple(record_ids)


class CallerNeeded(OperationRefused):
    """The key alone does not identify a record: the caller or the request must be named as well."""

    code = "ERR_CALLER_NEEDED"
    exit_code = ExitCode.USAGE


class RecordAlive(OperationRefused):
    """An attempt holds the record: its lease has not ended."""

    code = "ERR_RECORD_ALIVE"
    exit_code = ExitCode.LIVE


class RecordChanged(OperationRefused):
    """The record has changed since the operator has seen it."""

    code = "ERR_RECORD_CHANGED"


class NotInDoubt(OperationRefused):
    """The stage is not in doubt, so there is nothing to resolve."""

    code = "ERR_NOT_IN_DOUBT"


class RecordSealed(OperationRefused):
    """The record is encrypted, and the keys were not given."""

    code = "ERR_RECORD_SEALED"
    exit_code = ExitCode.UNREADABLE


#: names of the classes that client libraries raise if the backend refuses the user
_DENIALS = frozenset(
    {
        "AuthenticationError",
        "AuthenticationWrongNumberOfArgsError",
        "InsufficientPrivilege",
        "InsufficientPrivilegeError",
        "InvalidAuthorizationSpecification",
        "InvalidAuthorizationSpecificationError",
        "InvalidPassword",
        "InvalidPasswordError",
        "NoPermissionError",
        "PermissionError",
    }
)
#: the same as SQLSTATE codes, as error numbers of MySQL and MariaDB, and as words in messages of SQLite and Redis
_SQLSTATES = frozenset({"28000", "28P01", "42501"})
_MYSQL = frozenset({1044, 1045, 1142, 1143, 1227, 1370})
_WORDS = (
    "attempt to write a readonly database",
    "authentication failed",
    "NOPERM",
    "NOAUTH",
    "permission denied",
    "WRONGPASS",
)


def exit_code_of(error: BaseException) -> ExitCode:
    """The exit code for an error."""
    if isinstance(error, OperationRefused):
        return error.exit_code
    if isinstance(error, RecordUnreadable):
        return ExitCode.UNREADABLE
    if isinstance(error, BackendUnavailable):
        return ExitCode.DENIED if is_denial(error) else ExitCode.DOWN
    return ExitCode.FAILED


def is_denial(error: BaseException) -> bool:
    """Whether the backend refused this user, for a wrong password or a missing right. Looks at the causes too."""
    looked_at: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in looked_at:
        looked_at.append(cause)
        if _denies(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _denies(error: BaseException) -> bool:
    if any(kind.__name__ in _DENIALS for kind in type(error).__mro__) or getattr(error, "sqlstate", "") in _SQLSTATES:
        return True
    number = error.args[0] if error.args else None
    return (isinstance(number, int) and number in _MYSQL) or any(word in str(error) for word in _WORDS)
