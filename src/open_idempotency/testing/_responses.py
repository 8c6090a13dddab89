"""Whether two responses are equal for a client that retries."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from open_idempotency.testing._clients import Reply

#: headers that a client acts on. Others differ between responses and mean nothing: Date, Server-Timing, trace ids,
#: request ids, cookies
COMPARED = (
    "content-type", "content-language", "content-disposition", "location", "etag", "last-modified", "link",
)  # fmt: skip
_SHOWN = 200
_MOST = 5


def differences(first: Reply, second: Reply, headers: Sequence[str], ignore: Sequence[str]) -> list[str]:
    """The differences, one line each. ``headers``: names to compare in addition to ``COMPARED``."""
    found: list[str] = []
    if first.status != second.status:
        found.append(f"the status: {first.status}, then {second.status}")
    for name in (*COMPARED, *headers):
        one, two = first.header(name), second.header(name)
        if one != two:
            found.append(f"the header {name}: {_joined(one)}, then {_joined(two)}")
    return [*found, *body_differences(first.body, second.body, ignore)]


def body_differences(first: bytes | None, second: bytes | None, ignore: Sequence[str]) -> list[str]:
    """The differences of two bodies: JSON by its members, anything else as a whole."""
    if first == second or first is None or second is None:
        return []
    try:
        one, two = json.loads(first), json.loads(second)
    except ValueError:
        return [f"the body: {shown(first)}, then {shown(second)}"]
    lines = list(_json_differences(one, two, "", frozenset(ignore)))
    more = len(lines) - _MOST
    return [*lines[:_MOST], *([f"and {more} more"] if more > 0 else [])]


def _json_differences(one: Any, two: Any, where: str, ignore: frozenset[str]) -> Iterator[str]:
    if isinstance(one, dict) and isinstance(two, dict):
        for name in [*one, *(each for each in two if each not in one)]:
            path = f"{where}.{name}" if where else str(name)
            if name in ignore or path in ignore:
                continue
            if name not in one or name not in two:
                yield f"the body, {path}: only in the {'second' if name in two else 'first'} response"
            else:
                yield from _json_differences(one[name], two[name], path, ignore)
    elif isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        for index, (left, right) in enumerate(zip(one, two, strict=True)):
            yield from _json_differences(left, right, f"{where}[{index}]", ignore)
    elif one != two or type(one) is not type(two):
        yield f"the body{', ' + where if where else ''}: {_cut(repr(one))}, then {_cut(repr(two))}"


def shown(body: bytes) -> str:
    """The beginning of a body, for a message."""
    return _cut(body.decode("utf-8", "replace")) or "(empty)"


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _joined(values: list[str]) -> str:
    return ", ".join(values) or "(none)"
