"""What makes two requests the same: a versioned digest of method, path, query, media type and body.

The first byte is the version of these rules; a stored fingerprint of another version never matches. Parts are
length-prefixed, so that no component can run into the next (O-05).

JSON is compared in a canonical form. Member order and white space do not count. Numbers keep the lexeme they were
written with (``1`` is not ``1.0``), and arrays keep their order. With ``"jcs"`` the form is that of RFC 8785, in which
numbers count by their value as IEEE 754 doubles. A text that is invalid or repeats a member name has no canonical form,
since parsers disagree about what it means; its exact bytes count.

The client decides how much work this is, and the event loop does it. So the work is bounded in bytes and in steps.
Beyond the bounds the exact bytes count. Below them the form must never change, since stored fingerprints are compared
with it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from json.encoder import encode_basestring
from typing import Any

from open_idempotency._core.commands import Driver, Sleep, Steps
from open_idempotency._core.keys import digest
from open_idempotency._core.models import Body, Request
from open_idempotency._core.reading import is_json
from open_idempotency.exceptions import MissingExtra
from open_idempotency.policy import ALL_PARTS, IdempotencyPolicy

# Canonical JSON

#: deeper texts have no canonical form: Python's own limit depends on the depth of the call stack
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

    orjson drops repeated members and the lexemes of numbers. If it writes the same bytes again, nothing was dropped,
    and the members need only be sorted.
    """
    orjson = _orjson()
    # Most writers that use white space put it after a colon, and orjson does not write such a text back the same.
    if orjson is None or b'": ' in raw or raw.count(b"[") + raw.count(b"{") > MAX_DEPTH:
        return None
    try:
        value = orjson.loads(raw)
        if orjson.dumps(value) != raw:
            return None
        _remove_all(value, ignore)
        form: bytes = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except ValueError:  # orjson's own errors are ValueErrors; the standard library may read the text
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
    """The second half of ``by_standard_library``: the bytes. Raises ``NotCanonical``."""
    try:
        # Only half of a surrogate pair cannot be encoded, and JSON escapes it like this.
        return _write(value, 0).encode("utf-8", "backslashreplace")
    except (ValueError, RecursionError) as error:
        raise NotCanonical(str(error)) from None


# RFC 8785


def canonical_by_value(raw: bytes, ignore: Sequence[str] = ()) -> bytes:
    """The JCS form of a JSON text (RFC 8785), without the members in ``ignore``. Raises ``NotCanonical``.

    It also raises that for an integer that no double holds exactly, since two different amounts could become one value.
    """
    try:
        value = _JCS_DECODER.decode(raw.decode("utf-8"))
        _remove_all(value, ignore)
        _check_depth(value, 0)
        form: bytes = _rfc8785().dumps(value)
    except (ValueError, RecursionError) as error:
        raise NotCanonical(str(error)) from None
    return form


def _check_depth(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise NotCanonical(f"nested deeper than {MAX_DEPTH}")
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return
    for child in value:
        if isinstance(child, dict | list):
            _check_depth(child, depth + 1)


@cache
def _rfc8785() -> Any:
    try:
        import rfc8785
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "rfc8785":
            raise
        raise MissingExtra(
            "fingerprint: \"jcs\" needs the rfc8785 package: pip install 'open-idempotency[jcs]'"
        ) from error
    return rfc8785


def prepare(fingerprint: object) -> None:
    """Load what this kind of fingerprint needs, so that no request waits for it. Raises ``MissingExtra``."""
    if fingerprint == "json":
        _orjson()
    elif fingerprint == "jcs":
        _rfc8785()


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
_JCS_DECODER = json.JSONDecoder(object_pairs_hook=_members, parse_constant=_refuse)


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


# The digest of a request (O-05)

VERSION = b"\x01"
#: a longer JSON body, or one with more punctuation, counts by its exact bytes
JSON_BYTES = 128 * 1024
JSON_MARKS = 10_000
#: the same limits with ``"jcs"``, whose library takes several times as long
JCS_MARKS = 2_000
#: a multipart body with more parts counts by its exact bytes, and so does one with a longer boundary (RFC 2046: 70)
MULTIPART_PARTS = 2_000
LONGEST_BOUNDARY = 256
#: bytes after which others may run
TURN = 256 * 1024
_BOUNDARY = re.compile(rb';\s*boundary=(?:"((?:[^"\\]|\\.)+)"|([^\s;"]+))', re.IGNORECASE)


def fingerprint(request: Request, policy: IdempotencyPolicy) -> bytes:
    """The request's fingerprint: 33 bytes, a version byte and a SHA-256 (HMAC when the policy has a secret)."""
    return Driver({Sleep: lambda _: None}).run(fingerprint_steps(request, policy))


def fingerprint_steps(request: Request, policy: IdempotencyPolicy) -> Steps[bytes]:
    """``fingerprint`` as steps that pause after each piece of work, so that no event loop is held up for long."""
    content_type = b", ".join(request.header(b"content-type"))
    media_type = content_type.partition(b";")[0].strip().lower()
    method, path, query = request.method.encode(), request.path, request.query
    counted = policy.fingerprint_parts
    if counted is not ALL_PARTS:
        method, path, query = (
            b"" if name not in counted else part
            for name, part in (("method", method), ("path", path), ("query", query))
        )
        media_type = media_type if "body" in counted else b""
    body = (yield from _body(request, policy, media_type, content_type)) if "body" in counted else b"n"
    return VERSION + digest(
        policy.secret,
        method,
        path,
        query,
        media_type,
        body,
        *(_headers(request, policy.fingerprint_headers) if policy.fingerprint_headers else ()),
    )


def _headers(request: Request, selected: Sequence[str]) -> list[bytes]:
    """One part for each header, so that the values of one cannot pass for those of another."""
    names = [name.lower().encode() for name in selected]
    return [digest(None, name, *request.header(name)) for name in names]


def _body(request: Request, policy: IdempotencyPolicy, media_type: bytes, content_type: bytes) -> Steps[bytes]:
    """The body's part of the fingerprint; the first byte says in which way it was made."""
    if callable(policy.fingerprint):
        return b"c" + policy.fingerprint(request)
    body = request.body
    if policy.fingerprint == "none" or body is None:
        return b"n"
    form: bytes | None = None
    if media_type.startswith(b"multipart/"):
        form = yield from _multipart(body, content_type)
    elif policy.fingerprint == "json" and is_json(media_type):
        form = yield from _json(body, policy)
    elif policy.fingerprint == "jcs" and is_json(media_type):
        form = _jcs(body, policy)
    return b"x" + body.digest() if form is None else form


# The forms below are None for a body that does not have one, which then counts byte by byte.


def _json(body: Body, policy: IdempotencyPolicy) -> Steps[bytes | None]:
    raw = _short(body, JSON_BYTES)
    if raw is None or (marks := _marks(raw)) > JSON_MARKS:
        return None
    try:
        if marks <= JSON_MARKS // 10:
            return b"j" + canonical_json(raw, policy.fingerprint_ignore)
        form = by_orjson(raw, policy.fingerprint_ignore)
        if form is None:
            value = parse(raw, policy.fingerprint_ignore)
            yield Sleep(0)
            form = write(value)
    except NotCanonical:
        return None
    return b"j" + form


def _jcs(body: Body, policy: IdempotencyPolicy) -> bytes | None:
    raw = _short(body, JSON_BYTES)
    if raw is None or _marks(raw) > JCS_MARKS:
        return None
    try:
        return b"r" + canonical_by_value(raw, policy.fingerprint_ignore)
    except NotCanonical:
        return None


def _short(body: Body, limit: int) -> bytes | None:
    """The bytes in one piece; None where there are more than ``limit``."""
    chunks, size = [], 0
    for chunk in body.chunks():
        size += len(chunk)
        if size > limit:
            return None
        chunks.append(chunk)
    return b"".join(chunks)


def _marks(raw: bytes) -> int:
    """How much work it may be to parse a JSON text, for both parsers: the number of its punctuation marks."""
    return sum(map(raw.count, (b",", b":", b"[", b"{")))


def _multipart(body: Body, content_type: bytes) -> Steps[bytes | None]:
    """Digest of the parts between the boundaries: clients choose a new boundary for each attempt (RFC 2046, 5.1).

    Each part is digested after its length, so the body is read twice.
    """
    match = _BOUNDARY.search(content_type)
    boundary = b"" if match is None else match[1] or match[2]
    if not boundary or len(boundary) > LONGEST_BOUNDARY:
        return None
    parts = yield from _find_parts(body, b"\r\n--" + boundary)
    if parts is None:
        return None
    return b"m" + (yield from _digest_parts(body, parts))


def _find_parts(body: Body, separator: bytes) -> Steps[list[tuple[int, int]] | None]:
    """Where the parts begin and end, as ``bytes.split`` makes them; None for more than ``MULTIPART_PARTS``.

    Offsets count in the body with a line break before it, since the first boundary may be at its very beginning.
    """
    parts: list[tuple[int, int]] = []
    begin = offset = 0  # of the part; of the window
    window = b""
    for piece in _in_turns(body):
        if piece is None:
            yield Sleep(0)
            continue
        window += piece
        start = 0
        while (found := window.find(separator, start)) >= 0:
            parts.append((begin, offset + found))
            if len(parts) >= MULTIPART_PARTS:
                return None
            start = found + len(separator)
            begin = offset + start
        # What may be the beginning of a separator stays in the window.
        start = max(start, len(window) - len(separator) + 1)
        offset += start
        window = window[start:]
    parts.append((begin, offset + len(window)))
    return parts


def _digest_parts(body: Body, parts: list[tuple[int, int]]) -> Steps[bytes]:
    """SHA-256 of the parts, each after its length: the same as ``digest`` of them, but piece by piece."""
    sha = hashlib.sha256()
    later = iter(parts)
    begin, end = next(later)
    sha.update(b"%d:" % (end - begin))
    offset = 0
    for piece in _in_turns(body):
        if piece is None:
            yield Sleep(0)
            continue
        stop = offset + len(piece)
        sha.update(piece[max(begin - offset, 0) : end - offset])
        while end <= stop:
            part = next(later, None)
            if part is None:
                break
            begin, end = part
            sha.update(b"%d:" % (end - begin))
            sha.update(piece[max(begin - offset, 0) : end - offset])
        offset = stop
    return sha.digest()


def _in_turns(body: Body) -> Iterator[memoryview | None]:
    """A line break and the body in pieces; None where other tasks may run."""
    yield memoryview(b"\r\n")
    worked = 0
    for chunk in body.chunks():
        view = memoryview(chunk)
        for start in range(0, len(view), TURN):
            piece = view[start : start + TURN]
            yield piece
            worked += len(piece)
            if worked >= TURN:
                worked = 0
                yield None
