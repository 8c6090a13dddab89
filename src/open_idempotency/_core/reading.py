"""Reads a request body for the callables of a policy: JSON, and the fields of a form.

Reading is strict, since a key is taken from what is read: a text that two parsers may understand differently cannot be
read. ``BodyUnreadable`` says why, in words that a client may be sent; nothing of the body is repeated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, NoReturn
from urllib.parse import parse_qsl

from open_idempotency.exceptions import BodyUnreadable

#: a form with more fields, or a query with more parameters, cannot be read
MAX_FIELDS = 1_000
# Media types of JSON that clients do not declare as JSON: fetch() sends text/plain for a string, and some send no type.
_READ_AS_JSON = frozenset({b"application/json", b"text/json", b"text/plain", b""})
_FORM = b"application/x-www-form-urlencoded"
_MULTIPART = b"multipart/form-data"
_BOUNDARY = re.compile(rb';\s*boundary=(?:"((?:[^"\\]|\\.){1,256})"|([^\s;"]{1,256}))', re.IGNORECASE)


def media_type(content_type: Iterable[bytes]) -> bytes:
    """The media type in the values of ``Content-Type``, in lower case and without parameters."""
    return b", ".join(content_type).partition(b";")[0].strip().lower()


def is_json(kind: bytes) -> bool:
    """Whether a body of this media type is parsed as JSON, if it can be (H-13). Forms and other types are not."""
    return kind in _READ_AS_JSON or kind.endswith(b"+json")


def read_json(raw: bytes, content_type: list[bytes]) -> Any:
    """The JSON value in a body. Raises ``BodyUnreadable``: another type, no JSON, a member name that is repeated."""
    kind = media_type(content_type)
    if not is_json(kind):
        raise BodyUnreadable(f"the body is {_shown(kind)}, not JSON")
    try:
        return _DECODER.decode(raw.decode("utf-8"))
    except BodyUnreadable:
        raise
    except (ValueError, RecursionError):
        raise BodyUnreadable("the body is not JSON in UTF-8") from None


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise BodyUnreadable("the JSON in the body repeats a member name")
    return members


def _refuse(constant: str) -> NoReturn:
    raise BodyUnreadable(f"the body has {constant}, which is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_members, parse_constant=_refuse)


def read_form(raw: bytes, content_type: list[bytes]) -> dict[str, list[str]]:
    """The fields of a form by name, each with its values in order; files of a multipart form are left out.

    Raises ``BodyUnreadable``: another type, more than ``MAX_FIELDS`` fields, or bytes that are not UTF-8.
    """
    kind = media_type(content_type)
    if kind == _FORM:
        return read_pairs(raw, "the form in the body")
    if kind != _MULTIPART:
        raise BodyUnreadable(f"the body is {_shown(kind)}, not a form")
    match = _BOUNDARY.search(b", ".join(content_type))
    if match is None:
        raise BodyUnreadable("the multipart body has no boundary")
    return _read_parts(raw, match[1] or match[2])


def read_pairs(raw: bytes, name: str) -> dict[str, list[str]]:
    """The names and values of a query or of a URL-encoded form. ``name``: what it is, for ``BodyUnreadable``."""
    found: dict[str, list[str]] = {}
    try:
        for field, value in parse_qsl(raw.decode("ascii"), True, errors="strict", max_num_fields=MAX_FIELDS):
            found.setdefault(field, []).append(value)
    except ValueError:
        raise BodyUnreadable(f"{name} has more than {MAX_FIELDS} fields, or is not UTF-8") from None
    return found


def _read_parts(raw: bytes, boundary: bytes) -> dict[str, list[str]]:
    """The fields between the boundaries (RFC 2046, section 5.1.1; RFC 7578)."""
    from email.parser import BytesHeaderParser
    from email.policy import HTTP

    *parts, end = (b"\r\n" + raw).split(b"\r\n--" + boundary)
    if not end.startswith(b"--") or not 1 <= len(parts) <= MAX_FIELDS + 1:
        raise BodyUnreadable(f"the multipart body has no end, or more than {MAX_FIELDS} parts")
    found: dict[str, list[str]] = {}
    for part in parts[1:]:
        head, separator, value = part.partition(b"\r\n\r\n")
        said = BytesHeaderParser(policy=HTTP).parsebytes(head.lstrip(b" \t").removeprefix(b"\r\n") + b"\r\n\r\n")
        name = said.get_param("name", header="content-disposition")
        if not separator or not isinstance(name, str):
            raise BodyUnreadable("a part of the multipart body has no name")
        if said.get_filename() is not None:
            continue
        try:
            found.setdefault(name, []).append(value.decode("utf-8"))
        except ValueError:
            raise BodyUnreadable("a field of the multipart body is not UTF-8") from None
    return found


def _shown(kind: bytes) -> str:
    """A media type as it can be sent back to the client that sent it."""
    text = "".join(char if "!" <= char <= "~" else "?" for char in kind.decode("latin-1"))[:80]
    return text or "of no type"


# JSON pointers (RFC 6901)


def pointer_steps(pointer: str) -> list[str]:
    """The reference tokens of a JSON pointer, unescaped. Raises ``ValueError`` for a text that is none."""
    if pointer and not pointer.startswith("/"):
        raise ValueError("a JSON pointer begins with a slash")
    if re.search(r"~(?![01])", pointer):
        raise ValueError("in a JSON pointer ~ is written ~0")
    return [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]


_is_index = re.compile(r"0|[1-9][0-9]{0,8}").fullmatch


def follow(value: Any, steps: Iterable[str]) -> Any:
    """The value at a pointer; None where there is nothing, or null."""
    for step in steps:
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and _is_index(step) and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value
