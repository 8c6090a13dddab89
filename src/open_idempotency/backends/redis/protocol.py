"""The servers' protocol (RESP 2): commands to bytes, bytes to replies, and what an error reply means. No I/O here.

redis-py has this too, for one command and one reply at a time, and there it is most of what a call costs. Error replies
become redis-py's public classes by their code, the first word of the reply. No decision depends on the words after it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any

from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    InvalidResponse,
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

#: the words of a command
Command = Sequence[Any]

#: what redis-py raises; that of its Cluster client is no RedisError
ERRORS = (RedisError, RedisClusterException, OSError)
#: what a node of a Cluster replies where it does not have all keys of a script; ``MovedError`` is an ``AskError``
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
# Redis 6.2 wraps the error reply of a command that a script ran into one of its own. The code stands behind the hyphen.
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
    """Whether a server refused a command with no code of its own, as what it cannot parse."""
    return type(error) is ResponseError and code_of(error) == "ERR"


_END = b"\r\n"
_ARRAY, _TEXT, _INTEGER, _SIMPLE, _ERROR = b"*$:+-"
# The end of one word and the length of the next; nearly all words are short.
_LENGTHS = [b"\r\n$%d\r\n" % length for length in range(128)]


def packed(command: Command) -> bytes:
    """A command as it is sent. Its words are bytes of any kind, text or whole numbers."""
    pieces = [b"*%d" % len(command)]
    for word in command:
        if type(word) is not bytes:
            word = b"%d" % word if type(word) is int else _octets(word)
        length = len(word)
        pieces.append(_LENGTHS[length] if length < len(_LENGTHS) else b"\r\n$%d\r\n" % length)
        pieces.append(word)
    pieces.append(_END)
    return b"".join(pieces)


def _octets(word: Any) -> bytes:
    return word.encode() if isinstance(word, str) else bytes(word)


class Replies:
    """Cuts received bytes into replies. An error reply is an exception of redis-py's, which is not raised."""

    __slots__ = ("_needed", "_rest")

    def __init__(self) -> None:
        self._rest = bytearray()
        # Without it, each piece of a large value would be parsed from the beginning of the value.
        self._needed = 0

    def feed(self, data: bytes) -> list[Any]:
        """The replies that are complete now. After ``InvalidResponse`` it must not be fed again."""
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return []
            data = bytes(self._rest)
        found: list[Any] = []
        position, end = 0, len(data)
        try:
            while position < end:
                reply, position = _reply(data, position)
                found.append(reply)
        except _Incomplete as incomplete:
            self._needed = incomplete.length - position
        except ValueError as error:
            raise InvalidResponse(f"not a reply: {error}") from error
        self._rest = bytearray(data[position:])
        return found


class _Incomplete(Exception):
    """A reply is not complete. ``length``: how many bytes are needed at least, from the beginning."""

    def __init__(self, length: int) -> None:
        self.length = length


#: a short array of numbers, as most replies are; the next reply may follow it
_NUMBERS = re.compile(rb"\*(\d)\r\n((?::-?\d+\r\n)+)").match


def _reply(data: bytes, position: int) -> tuple[Any, int]:
    """The reply at ``position``, and where it ends. It is a loop, not a recursion, because every call pays for it."""
    numbers = _NUMBERS(data, position)
    if numbers is not None:
        found = numbers[2][1:-2].split(b"\r\n:")
        if len(found) == int(numbers[1]):
            return [*map(int, found)], numbers.end()
    open_arrays: list[tuple[list[Any], int]] = []
    while True:
        value, position, missing = _value(data, position)
        if missing:
            open_arrays.append((value, missing))
            continue
        while open_arrays:
            array, size = open_arrays[-1]
            array.append(value)
            if len(array) < size:
                break
            value = open_arrays.pop()[0]
        else:
            return value, position


def _value(data: bytes, position: int) -> tuple[Any, int, int]:
    """One value, where it ends, and how many of the following values belong to it."""
    line = data.find(_END, position)
    if line < 0:
        raise _Incomplete(len(data) + 1)
    kind, after = data[position], line + 2
    if kind == _INTEGER:
        return int(data[position + 1 : line]), after, 0
    if kind == _TEXT:
        length = int(data[position + 1 : line])
        if length < 0:
            return None, after, 0
        end = after + length
        if len(data) < end + 2:
            raise _Incomplete(end + 2)
        return data[after:end], end + 2, 0
    if kind == _ARRAY:
        length = int(data[position + 1 : line])
        return (None if length < 0 else []), after, max(0, length)
    if kind == _SIMPLE:
        return data[position + 1 : line], after, 0
    if kind == _ERROR:
        return error_of(data[position + 1 : line].decode("utf-8", "replace")), after, 0
    raise ValueError(f"byte {kind} at the start")
