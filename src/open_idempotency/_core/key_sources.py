"""Keys that are not in the header: the callable ``key=`` of a policy, and ``key_from``, which makes one.

A key that is made here has the limits of one in a header, and is refused with the same problems, before any backend
call (H-15 to H-20). Where the request cannot be read, a route that requires a key refuses the request, and any other
route runs it as a request without a key, which an event reports.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

from open_idempotency import events
from open_idempotency._core.commands import Call, Steps
from open_idempotency._core.keys import check_key, parse_value
from open_idempotency._core.models import Body, Request
from open_idempotency._core.notify import warn
from open_idempotency._core.reading import follow, pointer_steps, read_pairs
from open_idempotency.exceptions import (
    BodyTooLarge,
    BodyUnreadable,
    ConfigurationError,
    KeyRejected,
    KeyRequired,
    KeyUnknown,
)
from open_idempotency.policy import IdempotencyPolicy

__all__ = ["KeySource", "key_from"]

_HOW = 'such as key_from("json:/id"), key_from("header:X-GitHub-Delivery") or key_from("query:event")'
_is_token = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_HEADERS = (b"idempotency-key", b"x-idempotency-key")

Read = Callable[[Request], str | None]


class KeySource:
    """The callable for ``key=`` that ``key_from`` returns. Two with the same sources are equal."""

    __slots__ = ("_reads", "reads_body", "sources")

    def __init__(self, sources: tuple[str, ...]) -> None:
        made = [_source(source) for source in sources]
        self.sources = sources
        self._reads = [read for read, _ in made]
        #: whether the body has to be received before the call
        self.reads_body = any(source.startswith(("json:", "form:")) for source in sources)

    def __call__(self, request: Request) -> str | None:
        """The key in the first source that has one; None where none has one. Raises ``KeyRejected``."""
        for read in self._reads:
            key = read(request)
            if key is not None:
                return key
        return None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeySource) and other.sources == self.sources

    def __hash__(self) -> int:
        return hash(self.sources)

    def __repr__(self) -> str:
        return f"key_from({', '.join(map(repr, self.sources))})"

    def __str__(self) -> str:
        """Where a client puts the key, in words."""
        return " or in ".join(_source(source)[1] for source in self.sources)


def key_from(source: str, *others: str) -> KeySource:
    """A ``key=`` that takes the key from one part of the request; of several the first that has one counts.

    ``source``: ``"header:X-GitHub-Delivery"`` (the rules of the key's own header hold: one line, bare or a String of
    RFC 9651), ``"query:event"``, ``"json:/data/id"`` (a pointer of RFC 6901 to a string or an integer) or
    ``"form:name"`` (a field of a URL-encoded or multipart form). A name that is there twice, an empty value and a value
    of another type are 400. A JSON ``null`` is no key. Raises ``ConfigurationError`` for another source. Since 0.1.
    """
    return KeySource((source, *others))


def _source(source: object) -> tuple[Read, str]:
    """The function that reads the source, and the name of the source in words."""
    kind, colon, name = source.partition(":") if isinstance(source, str) else ("", "", "")
    if not colon:
        raise ConfigurationError(f"key_from: {source!r} names no part of a request; name one, {_HOW}")
    if kind == "header" and _is_token(name):
        return _from_header(name.lower().encode("ascii")), f"the header {name}"
    if kind == "query" and name:
        return _from_pairs(name, lambda request: read_pairs(request.query, "the query")), f"the parameter {name}"
    if kind == "form" and name:
        return _from_pairs(name, Request.form), f"the form field {name}"
    if kind == "json":
        try:
            return _from_json(pointer_steps(name)), f"the JSON body at {name or 'its root'}"
        except ValueError as error:
            raise ConfigurationError(f"key_from: {source!r}: {error} (RFC 6901)") from None
    raise ConfigurationError(f"key_from: {source!r} names no part of a request; name one, {_HOW}")


def _from_header(name: bytes) -> Read:
    shown = name.decode("ascii")

    def read(request: Request) -> str | None:
        values = request.header(name)
        if len(values) > 1:
            raise KeyRejected(f"send one {shown} header, not {len(values)}")
        return parse_value(values[0], "lenient") if values else None

    return read


def _from_pairs(name: str, pairs: Callable[[Request], dict[str, list[str]]]) -> Read:
    def read(request: Request) -> str | None:
        values = pairs(request).get(name, [])
        if len(values) > 1:
            raise KeyRejected(f"{name} is there {len(values)} times; send it once")
        return values[0] if values else None

    return read


def _from_json(steps: list[str]) -> Read:
    def read(request: Request) -> str | None:
        value = follow(request.json(), steps)
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return _digits(value)
        raise KeyRejected("the key in the body has to be a string or an integer")

    return read


def _digits(number: int) -> str:
    try:
        return str(number)
    except ValueError:  # sys.set_int_max_str_digits: Python writes no number of more digits
        raise KeyRejected("the key in the body is too long") from None


def reads_body(key: Callable[[Request], str | None]) -> bool:
    """Whether ``key=`` may need the body. Then the body is received before the call."""
    return not isinstance(key, KeySource) or key.reads_body


def find_key(
    request: Request, receive: Callable[[], Body | Awaitable[Body]], policy: IdempotencyPolicy
) -> Steps[str | None]:
    """The key that ``key=`` makes of a request; None where the request runs as one without a key.

    Raises ``KeyRejected``, ``KeyUnknown``, and ``BodyTooLarge`` where a key is required.
    """
    assert policy.key is not None
    try:
        if reads_body(policy.key):
            request.body = yield Call(receive)
        key = _call(policy.key, request)
    except (BodyTooLarge, BodyUnreadable) as error:
        if policy.required:
            raise
        too_large = isinstance(error, BodyTooLarge)
        yield from warn(policy, events.KeyUnreadable("", "the body is too large" if too_large else str(error)))
        return None
    if key is not None:
        check_key(key, policy)
    elif policy.required:
        raise KeyRequired(f"send the idempotency key{_where(policy)}; this route requires it")
    elif any(request.header(name) for name in _HEADERS):
        yield from warn(policy, events.KeyUnreadable("", "its Idempotency-Key header is not read on this route"))
    return key


def _where(policy: IdempotencyPolicy) -> str:
    return f" in {policy.key}" if isinstance(policy.key, KeySource) else ""


def _call(key: Callable[[Request], Any], request: Request) -> str | None:
    try:
        found = key(request)
    except (BodyTooLarge, KeyRejected):
        raise
    except Exception as error:
        raise KeyUnknown(f"the key= callable raised {type(error).__name__}; {_NO_KEY}") from error
    if found is not None and not isinstance(found, str):
        if isinstance(found, Awaitable) and callable(close := getattr(found, "close", None)):
            close()  # a coroutine that nobody will await
        raise KeyUnknown(f"the key= callable returned {type(found).__name__}; {_NO_KEY}")
    return found


_NO_KEY = (
    "it has to return the key as a string, or None for a request without one, or to raise open_idempotency.KeyRejected "
    "(400) for a request that it refuses"
)
