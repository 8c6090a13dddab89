"""Options of backends, from URLs and from Python keywords: names, types, and errors that never repeat credentials.

A parser takes the text of a URL, or the value that a keyword has in Python: ``timeout=2`` is read as ``?timeout=2``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from open_idempotency.exceptions import ConfigurationError

Parser = Callable[[Any], Any]
#: a duration as a keyword: seconds, or a ``timedelta``
Seconds = float | timedelta
#: seconds; no wait for a backend is longer
_DAY = 86_400


def split(url: str) -> SplitResult:
    """The parts of a URL. Raises ``ConfigurationError`` without repeating the URL, which may hold a password."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ConfigurationError("backend: the URL is malformed (host or port)") from None
    return parts


def path(parts: SplitResult) -> str:
    """The text after the path's first slash: ``relative`` of ``scheme:///relative``, ``/x`` of ``scheme:////x``."""
    return unquote(parts.path[1:])


def options(parts: SplitResult, known: Mapping[str, Parser]) -> dict[str, Any]:
    """The options after the ``?``, each once and read by its parser. Raises ``ConfigurationError`` by name."""
    read: dict[str, Any] = {}
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        if name in read:
            raise ConfigurationError(f"backend: option {name} is given twice")
        read[name] = _read(f"{parts.scheme}://", name, text, known)
    if parts.fragment:
        raise ConfigurationError("backend: the URL has a # part; write # as %23")
    return read


def keywords(given: Mapping[str, Any], known: Mapping[str, Parser], where: str = "it") -> dict[str, Any]:
    """The options given as Python keywords, each read by its parser. Keywords that are None are left out.

    ``clock`` is for tests, and is no option of a URL. ``where``: the backend, for the error. Raises
    ``ConfigurationError`` by name.
    """
    return {
        name: value if name == "clock" else _read(where, name, value, known)
        for name, value in given.items()
        if value is not None
    }


def _read(where: str, name: str, value: Any, known: Mapping[str, Parser]) -> Any:
    if name not in known:
        raise ConfigurationError(
            f"backend: {where} has no option {name!r}; known: {', '.join(sorted(known)) or 'none'}"
        )
    try:
        return known[name](value)
    except ValueError as error:
        raise ConfigurationError(f"backend: option {name}: {error}") from None


def seconds(value: str | Seconds) -> float:
    """A duration in seconds, above 0 and at most a day. Raises ``ValueError``."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    try:
        if isinstance(value, bool):
            raise TypeError
        read = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"expected seconds, got {value!r}") from None
    if not (read > 0 and math.isfinite(read)):
        raise ValueError(f"must be more than 0 seconds, got {value}")
    if read > _DAY:  # the system's waits end with an error far beyond, and no call should take so long
        raise ValueError(f"must be at most {_DAY} seconds, a day, got {value}")
    return read


def count(value: str | int) -> int:
    """A whole number, at least 1. Raises ``ValueError``."""
    return _whole(value, 1)


def count_or_none(value: str | int) -> int:
    """A whole number, at least 0. Raises ``ValueError``."""
    return _whole(value, 0)


def _whole(value: object, least: int) -> int:
    text = str(int(value)) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not (text.isascii() and text.isdecimal()) or int(text) < least:
        raise ValueError(f"expected a whole number of at least {least}, got {value!r}")
    return int(text)


def text(value: str) -> str:
    """A text. Raises ``ValueError``."""
    if not isinstance(value, str):
        raise ValueError(f"expected a text, got {value!r}")
    return value


def yes_or_no(value: str | bool) -> bool:
    """``yes`` or ``no`` in a URL, true or false as a keyword. Raises ``ValueError``."""
    return value if isinstance(value, bool) else bool(choice("yes", "no")(value) == "yes")


def choice(*allowed: str) -> Parser:
    """A parser for one of a few words."""

    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"{text!r} is none of {', '.join(allowed)}")
        return text

    return parse
