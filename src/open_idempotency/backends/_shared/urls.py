"""Reading backend URLs: options with names and types, and errors that never repeat credentials."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from open_idempotency.exceptions import ConfigurationError

Parser = Callable[[str], Any]


def split(url: str) -> SplitResult:
    """The parts of a URL. Raises ``ConfigurationError`` without repeating the URL, which may hold a password."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ConfigurationError("backend: the URL is malformed (host or port)") from None
    return parts


def path(parts: SplitResult) -> str:
    """What follows the slash after the host: ``relative`` of ``scheme:///relative``, ``/x`` of ``scheme:////x``."""
    return unquote(parts.path[1:])


def options(parts: SplitResult, known: Mapping[str, Parser]) -> dict[str, Any]:
    """The options after the ``?``, each once and read by its parser. Raises ``ConfigurationError`` by name."""
    read: dict[str, Any] = {}
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        if name not in known:
            raise ConfigurationError(
                f"backend: {parts.scheme}:// has no option {name!r}; known: {', '.join(sorted(known)) or 'none'}"
            )
        if name in read:
            raise ConfigurationError(f"backend: option {name} is given twice")
        try:
            read[name] = known[name](text)
        except ValueError as error:
            raise ConfigurationError(f"backend: option {name}: {error}") from None
    if parts.fragment:
        raise ConfigurationError("backend: the URL has a # part; write # as %23")
    return read


def seconds(text: str) -> float:
    """A duration in seconds, above 0. Raises ``ValueError``."""
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"expected seconds, got {text!r}") from None
    return positive(value)


def positive(value: float) -> float:
    """The duration if it is above 0 and finite. Raises ``ValueError``."""
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"must be more than 0 seconds, got {value}")
    return value


def count(text: str) -> int:
    """A whole number, at least 1. Raises ``ValueError``."""
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise ValueError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def yes_or_no(text: str) -> bool:
    """``yes`` or ``no``. Raises ``ValueError``."""
    return bool(choice("yes", "no")(text) == "yes")


def choice(*allowed: str) -> Parser:
    """A parser for one of a few words."""

    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"{text!r} is none of {', '.join(allowed)}")
        return text

    return parse
