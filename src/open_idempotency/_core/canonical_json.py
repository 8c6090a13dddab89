"""JSON with the freedom of writing taken out: member order and white space do not count, everything else does.

Numbers keep the lexeme they were written with (``1`` is not ``1.0``), arrays their order. A text that is invalid or
repeats a member name has no canonical form, since readers disagree about what it means.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from json.encoder import encode_basestring
from typing import Any

#: deeper texts have no canonical form: the interpreter's own limit depends on who calls
MAX_DEPTH = 100

_CONSTANTS = {True: "true", False: "false", None: "null"}


class NotCanonical(ValueError):
    """The text is not JSON, or it means different things to different readers."""


class _Number(str):
    """A number as it was written."""

    __slots__ = ()


def canonical_json(raw: bytes, ignore: Sequence[str] = ()) -> bytes:
    """The canonical form of a JSON text, without the members at the JSON pointers in ``ignore`` (RFC 6901).

    An ignored element of an array counts as null. It is the same with orjson and without. Raises ``NotCanonical``.
    """
    return by_orjson(raw, ignore) or by_standard_library(raw, ignore)


def by_orjson(raw: bytes, ignore: Sequence[str] = ()) -> bytes | None:
    """The canonical form of a text that orjson writes back byte for byte; None for another one, or without orjson.

    orjson drops repeated members and the lexemes of numbers. Where what it has read makes the same bytes again,
    there was nothing that it could drop, and sorting is all that is left to do.
    """
    orjson = _orjson()
    # White space behind a colon is what most writers that use any put there; such a text does not come back.
    if orjson is None or b'": ' in raw or raw.count(b"[") + raw.count(b"{") > MAX_DEPTH:
        return None
    try:
        value = orjson.loads(raw)
        if orjson.dumps(value) != raw:
            return None
        _remove_all(value, ignore)
        form: bytes = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except ValueError:  # orjson's own errors are; what it refuses, the other way may take
        return None
    return form


def by_standard_library(raw: bytes, ignore: Sequence[str] = ()) -> bytes:
    """The canonical form of any text that has one. Raises ``NotCanonical``."""
    return write(parse(raw, ignore))


def parse(raw: bytes, ignore: Sequence[str] = ()) -> Any:
    """The first half of ``by_standard_library``: what ``write`` takes. Raises ``NotCanonical``."""
    try:
        value = _DECODER.decode(raw.decode("utf-8"))
        _remove_all(value, ignore)
    except (ValueError, RecursionError) as error:
        raise NotCanonical(str(error)) from None
    return value


def write(value: Any) -> bytes:
    """The second half. Raises ``NotCanonical``."""
    try:
        # What cannot be encoded is half of a surrogate pair, and this is how JSON escapes it.
        return _write(value, 0).encode("utf-8", "backslashreplace")
    except (ValueError, RecursionError) as error:
        raise NotCanonical(str(error)) from None


def prepare() -> None:
    """Load what is loaded once, so that no request waits for it."""
    _orjson()


@cache
def _orjson() -> Any:
    """The module if it is installed. Not imported before it is needed: the package loads nothing optional."""
    try:
        import orjson
    except ImportError:
        return None
    return orjson


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise NotCanonical("a member name is repeated")
    return members


def _refuse(constant: str) -> None:
    raise NotCanonical(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_members, parse_int=_Number, parse_float=_Number, parse_constant=_refuse)


def _remove_all(value: Any, pointers: Sequence[str]) -> None:
    for pointer in pointers:
        _remove(value, [_unescape(step) for step in pointer.split("/")[1:]])


def _unescape(step: str) -> str:
    return step.replace("~1", "/").replace("~0", "~")


def _remove(value: Any, steps: list[str]) -> None:
    *parents, last = steps
    for step in parents:
        value = _child(value, step)
    if isinstance(value, dict):
        value.pop(last, None)
    elif isinstance(value, list) and _has(value, last):
        value[int(last)] = None  # not deleted: later pointers count on the positions


def _child(value: Any, step: str) -> Any:
    if isinstance(value, dict):
        return value.get(step)
    if isinstance(value, list) and _has(value, step):
        return value[int(step)]
    return None


def _has(items: list[Any], step: str) -> bool:
    return step.isdecimal() and int(step) < len(items)


def _write(value: Any, depth: int) -> str:
    if depth > MAX_DEPTH:
        raise NotCanonical(f"nested deeper than {MAX_DEPTH}")
    return _WRITERS[value.__class__](value, depth + 1)


def _write_members(members: dict[str, Any], depth: int) -> str:
    written = [f"{encode_basestring(name)}:{_write(members[name], depth)}" for name in sorted(members)]
    return "{" + ",".join(written) + "}"


def _write_items(items: list[Any], depth: int) -> str:
    return "[" + ",".join([_write(item, depth) for item in items]) + "]"


_WRITERS: Mapping[type, Callable[[Any, int], str]] = {
    dict: _write_members,
    list: _write_items,
    str: lambda text, _: encode_basestring(text),
    _Number: lambda lexeme, _: lexeme,
    bool: lambda value, _: _CONSTANTS[value],
    type(None): lambda value, _: _CONSTANTS[value],
}
