"""JSON with the freedom of writing taken out: member order and white space do not count, everything else does.

Numbers keep the lexeme they were written with (``1`` is not ``1.0``), arrays their order. A text that is invalid or
repeats a member name has no canonical form, since readers disagree about what it means.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

#: deeper texts have no canonical form: the interpreter's own limit depends on who calls
MAX_DEPTH = 100


class NotCanonical(ValueError):
    """The text is not JSON, or it means different things to different readers."""


class _Number(str):
    """A number as it was written."""

    __slots__ = ()


def canonical_json(raw: bytes, ignore: Sequence[str] = ()) -> bytes:
    """The canonical form of a JSON text, without the members at the JSON pointers in ``ignore`` (RFC 6901).

    An ignored element of an array counts as null. Raises ``NotCanonical``.
    """
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_members,
            parse_int=_Number,
            parse_float=_Number,
            parse_constant=_refuse,
        )
        for pointer in ignore:
            _remove(value, [_unescape(step) for step in pointer.split("/")[1:]])
        return _write(value).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError) as error:
        raise NotCanonical(str(error)) from None


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise NotCanonical("a member name is repeated")
    return members


def _refuse(constant: str) -> None:
    raise NotCanonical(f"{constant} is not JSON")


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


def _write(value: Any, depth: int = 0) -> str:
    if depth > MAX_DEPTH:
        raise NotCanonical(f"nested deeper than {MAX_DEPTH}")
    if isinstance(value, _Number):
        return str(value)
    if isinstance(value, dict):
        members = (f"{json.dumps(name)}:{_write(value[name], depth + 1)}" for name in sorted(value))
        return "{" + ",".join(members) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_write(item, depth + 1) for item in value) + "]"
    return json.dumps(value)
