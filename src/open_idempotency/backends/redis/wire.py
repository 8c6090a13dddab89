"""The servers' protocol (RESP 2) as far as scripts need it: commands to bytes, and bytes to replies. No I/O here.

The client library has this too, for one command and one reply at a time, and there it is most of what a call costs.
"""

from __future__ import annotations

import re
from typing import Any

from redis._parsers import BaseParser
from redis.exceptions import InvalidResponse

from open_idempotency.backends.redis.topology import Command

_END = b"\r\n"
_ARRAY, _TEXT, _INTEGER, _SIMPLE, _ERROR = b"*$:+-"
_error_of: Any = BaseParser.parse_error


# The end of one word and the length of the next; nearly all words are short.
_LENGTHS = [b"\r\n$%d\r\n" % length for length in range(128)]


def packed(command: Command) -> bytes:
    """A command as it is sent; its words are bytes of any kind, text or whole numbers."""
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
    """Cuts what arrives into replies. What the server refused is an exception of the client library's, not raised."""

    __slots__ = ("_needed", "_rest")

    def __init__(self) -> None:
        self._rest = bytearray()
        # Of a large value every piece that arrives would else be looked through from its beginning.
        self._needed = 0

    def feed(self, data: bytes) -> list[Any]:
        """The replies that are complete now. Raises ``InvalidResponse``, and must not be fed any more then."""
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
    """``length``: how much is needed at least, from the beginning."""

    def __init__(self, length: int) -> None:
        self.length = length


#: a short array of numbers, as most answers are; behind it may be the reply to something else
_NUMBERS = re.compile(rb"\*(\d)\r\n((?::-?\d+\r\n)+)").match


def _reply(data: bytes, position: int) -> tuple[Any, int]:
    """The reply at ``position``, and where it ends. A loop, not a recursion: this is what each call pays."""
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
    """One value, where it ends, and how many values that follow belong into it."""
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
        return _error_of(data[position + 1 : line].decode("utf-8", "replace")), after, 0
    raise ValueError(f"byte {kind} at the start")
