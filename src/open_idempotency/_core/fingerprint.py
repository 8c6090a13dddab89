"""What makes two requests the same request: a versioned digest of method, path, query, media type and body.

The first byte is the version of these rules; a stored fingerprint of another version never matches. Parts are
length-prefixed, so that no component can run into the next (SPEC section 5).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from open_idempotency._core.canonical_json import NotCanonical, canonical_json
from open_idempotency._core.keys import digest
from open_idempotency._core.requests import Body, Request
from open_idempotency.policy import IdempotencyPolicy

VERSION = b"\x01"
_BOUNDARY = re.compile(rb';\s*boundary=(?:"((?:[^"\\]|\\.)+)"|([^\s;"]+))', re.IGNORECASE)


def fingerprint(request: Request, policy: IdempotencyPolicy) -> bytes:
    """The request's fingerprint: 33 bytes, a version byte and a SHA-256 (HMAC when the policy has a secret)."""
    content_type = b", ".join(request.header(b"content-type"))
    media_type = content_type.partition(b";")[0].strip().lower()
    return VERSION + digest(
        policy.secret,
        request.method.encode(),
        request.path,
        request.query,
        media_type,
        _body(request, policy, media_type, content_type),
        *(_headers(request, policy.fingerprint_headers) if policy.fingerprint_headers else ()),
    )


def _headers(request: Request, fields: Sequence[str]) -> list[bytes]:
    """One part for each field, so that the values of one cannot pass for another field."""
    names = [field.lower().encode() for field in fields]
    return [digest(None, name, *request.header(name)) for name in names]


def _body(request: Request, policy: IdempotencyPolicy, media_type: bytes, content_type: bytes) -> bytes:
    """The body's part of the fingerprint; the first byte tells the ways of making it apart."""
    if callable(policy.fingerprint):
        return b"c" + policy.fingerprint(request)
    body = request.body
    if policy.fingerprint == "none" or body is None:
        return b"n"
    if media_type.startswith(b"multipart/"):
        return _multipart(body, content_type)
    if policy.fingerprint == "json" and _is_json(media_type):
        return _json(body, policy)
    return b"x" + _exact(body)


def _exact(body: Body) -> bytes:
    chunks = iter(body.chunks())
    sha = hashlib.sha256(next(chunks, b""))
    for chunk in chunks:
        sha.update(chunk)
    return sha.digest()


def _is_json(media_type: bytes) -> bool:
    return media_type == b"application/json" or media_type.endswith(b"+json")


def _json(body: Body, policy: IdempotencyPolicy) -> bytes:
    raw = body.read()
    try:
        return b"j" + canonical_json(raw, policy.fingerprint_ignore)
    except NotCanonical:
        return b"x" + _exact(body)


def _multipart(body: Body, content_type: bytes) -> bytes:
    """Digest of the parts between the boundaries: clients choose a new boundary for each attempt (RFC 2046, 5.1)."""
    match = _BOUNDARY.search(content_type)
    if match is None:
        return b"x" + _exact(body)
    boundary = match[1] or match[2]
    parts = (b"\r\n" + body.read()).split(b"\r\n--" + boundary)
    return b"m" + digest(None, *parts)
