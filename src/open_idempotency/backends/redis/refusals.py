"""The meaning of error replies of servers and of redis-py's exceptions. No I/O here.

Error replies become redis-py's public classes by their code, the first word of the reply. No decision depends on the
words after it.
"""

from __future__ import annotations

import re
import time
from typing import Any

from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from open_idempotency.exceptions import BackendUnavailable

#: the exceptions that redis-py raises; that of its Cluster client is no RedisError
ERRORS = (RedisError, RedisClusterException, OSError)
#: the replies of a Cluster's node that does not have all keys of a script; ``MovedError`` is an ``AskError``
DIVIDED = (AskError, TryAgainError)
CLOSED = "the backend was closed during the call"

_RETRIED = (RedisConnectionError, ClusterDownError, TryAgainError)
_CLASSES: dict[str, Any] = {
    "ASK": AskError,
    "CLUSTERDOWN": ClusterDownError,
    "CROSSSLOT": ClusterCrossSlotError,
    "LOADING": BusyLoadingError,
    "MASTERDOWN": MasterDownError,
    "MOVED": MovedError,
    "NOAUTH": AuthenticationError,
    "NOPERM": NoPermissionError,
    "NOSCRIPT": NoScriptError,
    "OOM": OutOfMemoryError,
    "READONLY": ReadOnlyError,
    "TRYAGAIN": TryAgainError,
    "WRONGPASS": AuthenticationError,
}
# Redis 6.2 wraps the error reply to a script's command in another error reply. The code is after the hyphen.
_CODE_IN_SCRIPT = re.compile(r": -([A-Z]+) ").search


def wrapped(error: Exception) -> BackendUnavailable:
    """The ``BackendUnavailable`` for one of ``ERRORS``; the caller keeps ``error`` as its cause."""
    return BackendUnavailable(f"Redis: {type(error).__name__}: {error}")


def may_retry(error: Exception, started: float, seconds: float) -> bool:
    """Whether a second try makes sense: the connection broke, as after a restart, less than ``seconds`` after
    ``started``, which is a time of ``time.monotonic``.
    """
    return isinstance(error, _RETRIED) and time.monotonic() - started < seconds


def error_of(line: str) -> Exception:
    """The exception for an error reply, by its code. It is not raised. Raises ``ValueError`` where it is malformed."""
    code, _, message = line.partition(" ")
    kind = _CLASSES.get(code)
    if kind is None:
        return ResponseError(message if code == "ERR" else line)
    error: Exception = kind(message)
    return error


def code_of(error: Exception) -> str:
    """The code of a refusal, such as ``BUSY``; ``ERR`` where the server gave none of its own."""
    for code, kind in _CLASSES.items():
        if type(error) is kind:
            return code
    if type(error) is not ResponseError:
        return "ERR"
    text = str(error)
    found = _CODE_IN_SCRIPT(text)
    word = found[1] if found is not None else text.partition(" ")[0]
    return word if word.isalpha() and word.isupper() and word != "ERR" else "ERR"


def says_replica(error: Exception) -> bool:
    """Whether a refusal says that the server is a replica: it takes no writes, or waits for its primary."""
    return code_of(error) in ("READONLY", "MASTERDOWN")


def says_cut_off(error: Exception) -> bool:
    """Whether a primary refuses to write because its replicas have left it; they may follow another one."""
    return code_of(error) == "NOREPLICAS"


def is_without_code(error: Exception) -> bool:
    """Whether a server refused a command without a specific code, such as one that it cannot parse."""
    return type(error) is ResponseError and code_of(error) == "ERR"
