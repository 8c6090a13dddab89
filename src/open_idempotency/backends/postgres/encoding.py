"""PostgreSQL's binary formats: parameters as the server takes them, and rows as it sends them. Pure.

The client library's own adaptation inspects each value of each call, which costs more than the call of a small
function. Here a statement names the type of each parameter once.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any, Protocol

Encoder = Callable[[Any], bytes]
Row = tuple[Any, ...]

_long = struct.Struct(">i")
_two_longs = struct.Struct(">2i")
_array = struct.Struct(">5i")
_NULL = _long.pack(-1)

#: the types' numbers on every server
_BOOL, _BYTEA, _BIGINT, _INTEGER, _TEXT, _DOUBLE, _BYTEAS, _INTEGERS = 16, 17, 20, 23, 25, 701, 1001, 1007


def _packed(code: str) -> Encoder:
    return struct.Struct(f">{code}").pack


def _of_bytes(values: Sequence[bytes | None]) -> bytes:
    parts = [_array.pack(1, int(None in values), _BYTEA, len(values), 1)]
    for value in values:
        if value is None:
            parts.append(_NULL)
        else:
            parts += (_long.pack(len(value)), value)
    return b"".join(parts)


def _of_numbers(oid: int, code: str) -> Encoder:
    """An array of numbers of one size, none of them NULL."""
    size = struct.calcsize(f">{code}")

    def encode(values: Sequence[Any]) -> bytes:
        flat = [part for value in values for part in (size, value)]
        return _array.pack(1, 0, oid, len(values), 1) + struct.pack(">" + f"i{code}" * len(values), *flat)

    return encode


_ENCODERS: dict[str, Encoder] = {
    "bytea": lambda value: value,
    "integer": _packed("i"),
    "bigint": _packed("q"),
    "double precision": _packed("d"),
    "boolean": _packed("?"),
    "bytea[]": _of_bytes,
    "integer[]": _of_numbers(_INTEGER, "i"),
    "bigint[]": _of_numbers(_BIGINT, "q"),
    "double precision[]": _of_numbers(_DOUBLE, "d"),
    "boolean[]": _of_numbers(_BOOL, "?"),
}


class Statement:
    """A statement whose parameters are written as ``{type}``; no value ever becomes part of it."""

    __slots__ = ("_encoders", "formats", "name", "text")

    def __init__(self, text: str) -> None:
        types: list[str] = []

        def numbered(found: re.Match[str]) -> str:
            types.append(found[1])
            return f"${len(types)}::{found[1]}"

        self.text = re.sub(r"\{([^}]+)\}", numbered, text).encode()
        #: the name under which it may be prepared. It depends on the text alone, so a prepared statement of this name
        #: on a shared connection is this very statement, whoever prepared it
        self.name = b"open_idempotency_" + hashlib.sha256(self.text).hexdigest()[:32].encode()
        self._encoders = [_ENCODERS[kind] for kind in types]
        #: every parameter is binary
        self.formats = [1] * len(types)

    def encoded(self, values: Sequence[Any]) -> list[bytes | None]:
        """The values of the parameters as the server takes them; None is NULL."""
        return [None if value is None else encode(value) for encode, value in zip(self._encoders, values, strict=True)]


def _elements(data: bytes) -> list[bytes | None]:
    """What an array of one dimension holds."""
    dimensions, _, _ = struct.unpack_from(">3i", data)
    if not dimensions:
        return []
    count, _ = _two_longs.unpack_from(data, 12)
    values: list[bytes | None] = []
    at = 20
    for _ in range(count):
        (size,) = _long.unpack_from(data, at)
        at += 4
        if size < 0:
            values.append(None)
        else:
            values.append(data[at : at + size])
            at += size
    return values


def _unpacked(code: str) -> Callable[[bytes], Any]:
    unpack = struct.Struct(f">{code}").unpack
    return lambda data: unpack(data)[0]


_integer = _unpacked("i")
_DECODERS: dict[int, Callable[[bytes], Any]] = {
    _BOOL: _unpacked("?"),
    _BYTEA: bytes,
    _BIGINT: _unpacked("q"),
    _INTEGER: _integer,
    _TEXT: bytes.decode,
    _DOUBLE: _unpacked("d"),
    _BYTEAS: _elements,
    _INTEGERS: lambda data: [None if value is None else _integer(value) for value in _elements(data)],
}


class Result(Protocol):
    """The part of the client library's result that is used; its columns are binary."""

    @property
    def ntuples(self) -> int: ...
    @property
    def nfields(self) -> int: ...
    def ftype(self, column_number: int) -> int: ...
    def get_value(self, row_number: int, column_number: int) -> bytes | None: ...


def rows(result: Result) -> list[Row]:
    """The rows of a result, each value by its column's type; of a type that is not known here, as bytes."""
    columns = [(number, _DECODERS.get(result.ftype(number), bytes)) for number in range(result.nfields)]
    get = result.get_value
    return [
        tuple([None if (data := get(row, number)) is None else decode(data) for number, decode in columns])
        for row in range(result.ntuples)
    ]
