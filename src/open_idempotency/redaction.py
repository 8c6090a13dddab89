"""Redaction of stored responses: ready-made hooks for the policy's ``redact=``.

A hook gets the response that is about to be stored and returns the one to store. The client's response stays as it is.
If a hook raises, a tombstone is stored instead, so that its failure stores nothing that it should remove.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from open_idempotency._core.models import Response
from open_idempotency.exceptions import ConfigurationError

__all__ = ["Response", "redact_json", "tombstone"]

_DECODER = json.JSONDecoder()
_NOT_SPACE = re.compile(r"[^ \t\n\r]|\Z")
# Digests of the original body, which are wrong for the redacted one.
_DIGESTS = frozenset({b"content-digest", b"repr-digest", b"digest", b"content-md5"})
Path = Sequence[str]


def tombstone(response: Response) -> Response:
    """The response without its body. A retry gets 409, which names the status of the completed request.

    Use it as ``redact=tombstone``, or within another hook. Since 0.1.
    """
    return replace(response, body=None)


def redact_json(*pointers: str, instead: object = None) -> Callable[[Response], Response]:
    """A hook that replaces the values that these JSON pointers (RFC 6901) name by ``instead``, any JSON value.

    ``*`` as a step stands for every element or member: ``"/items/*/card"``. All other bytes of the body stay as they
    are. The hook raises ``ValueError`` for a body that is not JSON or is compressed, so that a tombstone is stored.
    Raises ``ConfigurationError`` for an invalid pointer. Since 0.1.
    """
    for pointer in pointers:
        if not isinstance(pointer, str) or not pointer.startswith("/"):
            raise ConfigurationError(f"redact: {pointer!r} is not a JSON pointer such as '/card/number'")
    if not pointers:
        raise ConfigurationError("redact: redact_json() names nothing; pass JSON pointers such as '/card/number'")
    paths = [[_unescaped(step) for step in pointer.split("/")[1:]] for pointer in pointers]
    try:
        filler = json.dumps(instead, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"redact: instead={instead!r} is not JSON") from error

    def redact(response: Response) -> Response:
        if not response.body:
            return response
        if any(name.lower() == b"content-encoding" for name, _ in response.headers):
            raise ValueError("an encoded body cannot be redacted; compress outside of the idempotency middleware")
        body = _blanked(response.body, paths, filler)
        if body == response.body:
            return response
        headers = [(name, value) for name, value in response.headers if name.lower() not in _DIGESTS]
        return replace(response, headers=headers, body=body)

    return redact


def _unescaped(step: str) -> str:
    return step.replace("~1", "/").replace("~0", "~")


def _blanked(body: bytes, paths: Sequence[Path], filler: str) -> bytes:
    text = body.decode("utf-8")
    _DECODER.decode(text)  # the rest relies on valid JSON
    pieces, kept_to = [], 0
    for start, end in _named(text, _skip(text, 0), paths):
        pieces += [text[kept_to:start], filler]
        kept_to = end
    return "".join([*pieces, text[kept_to:]]).encode("utf-8")


def _named(text: str, at: int, paths: Sequence[Path]) -> Iterator[tuple[int, int]]:
    """The beginnings and ends of the named values below the value at ``at``, in order. Every repeated member counts."""
    if any(not path for path in paths):
        yield at, _end(text, at)
        return
    children = _CHILDREN.get(text[at])
    for name, start in children(text, at) if children is not None else ():
        below = [path[1:] for path in paths if path[0] in (name, "*")]
        if below:
            yield from _named(text, start, below)


def _members(text: str, at: int) -> Iterator[tuple[str, int]]:
    at = _skip(text, at + 1)
    while text[at] != "}":
        name, at = _DECODER.raw_decode(text, at)
        start = _skip(text, _skip(text, at) + 1)  # behind the colon
        yield name, start
        at = _behind(text, start)


def _elements(text: str, at: int) -> Iterator[tuple[str, int]]:
    at, index = _skip(text, at + 1), 0
    while text[at] != "]":
        yield str(index), at
        at, index = _behind(text, at), index + 1


_CHILDREN: dict[str, Callable[[str, int], Iterator[tuple[str, int]]]] = {"{": _members, "[": _elements}


def _behind(text: str, start: int) -> int:
    """The next element or member, or the closing bracket."""
    at = _skip(text, _end(text, start))
    return _skip(text, at + 1) if text[at] == "," else at


def _end(text: str, at: int) -> int:
    end: int = _DECODER.raw_decode(text, at)[1]
    return end


def _skip(text: str, at: int) -> int:
    match = _NOT_SPACE.search(text, at)
    return match.start() if match else len(text)
