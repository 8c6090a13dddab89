"""The part of a URL between ``//`` and ``?``: who logs in, where the servers are, what is behind the slash."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from open_idempotency.exceptions import ConfigurationError

_MALFORMED = "backend: the URL is malformed (host or port)"

Address = tuple[str, int]


class Authority(NamedTuple):
    """``addresses``: host and port of each server that is named, in order."""

    username: str | None
    password: str | None
    addresses: tuple[Address, ...]


def split(url: str) -> SplitResult:
    """The parts of a URL that may name several hosts. Raises ``ConfigurationError`` without repeating the URL."""
    try:
        return urlsplit(url)
    except ValueError:
        raise ConfigurationError(_MALFORMED) from None


def authority(netloc: str, default_port: int) -> Authority:
    """What stands before the path. Raises ``ConfigurationError`` without repeating it."""
    login, _, hosts = netloc.rpartition("@")
    username, _, password = login.partition(":")
    addresses = tuple(_address(host, default_port) for host in hosts.split(","))
    return Authority(unquote(username) or None, unquote(password) or None, addresses)


def _address(text: str, default_port: int) -> Address:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        colon, port = rest[:1], rest[1:]
    else:
        host, colon, port = text.partition(":")
        bracket = "]"
    if not bracket or colon not in ("", ":") or not (port == "" or _is_port(port)):
        raise ConfigurationError(_MALFORMED)
    return host.lower() or "localhost", int(port) if port else default_port


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and int(text) < 65536


def written(addresses: tuple[Address, ...]) -> str:
    """The addresses as a URL has them."""
    return ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in addresses)
