"""The endpoint to examine, a request that it accepts, and what its documentation promises."""

from __future__ import annotations

import json
import math
import re
import secrets
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from open_idempotency.conformance.http.wire import Call

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
#: headers that the HTTP client of the runner sets itself
_SET_BY_CLIENT = frozenset({"content-length", "transfer-encoding", "connection"})

Headers = tuple[tuple[str, str], ...]


class CouldNotRun(Exception):
    """The run is not possible: no connection, a plain request that is refused, or an invalid option."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """An endpoint and a request that it accepts.

    ``url``: http or https. ``method``, ``headers``, ``data``, ``content_type``: the request; the headers are sent with
    every request. ``other_data``: another payload that the endpoint accepts; None adds a member to ``data`` if that is
    a JSON object. ``slow_url``: an endpoint that takes a second or more. ``failing_url``: one that responds 5xx.
    ``other_caller``: headers that replace those of the same name, and identify another caller. ``required``: whether
    the endpoint is documented to require a key. ``header_name``: the header that carries the key. ``timeout``: seconds
    for each step of a request, up to 3600. ``ca_file``: certificates to trust for https, PEM. ``draft``: the
    revision of the draft, two digits. ``skip``: ids of statements to leave out.

    Raises ``CouldNotRun`` if a value cannot be sent.
    """

    url: str
    method: str = "POST"
    headers: Headers = ()
    data: bytes = b"{}"
    content_type: str = "application/json"
    other_data: bytes | None = None
    slow_url: str | None = None
    failing_url: str | None = None
    other_caller: Headers = ()
    required: bool = False
    header_name: str = "Idempotency-Key"
    timeout: float = 10.0
    ca_file: str | None = None
    draft: str = "07"
    skip: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for url in (self.url, self.slow_url, self.failing_url):
            if url is not None:
                _check_url(url)
        for token in (self.method, self.header_name):
            if not _TOKEN.fullmatch(token):
                raise CouldNotRun(f"not a method or header name: {token!r}")
        for name, value in (*self.headers, *self.other_caller, ("Content-Type", self.content_type)):
            self._check_header(name, value)
        if self.other_data == self.data:
            raise CouldNotRun("other_data is the same payload as data; give a different one")
        if not (math.isfinite(self.timeout) and 0 < self.timeout <= 3600):
            raise CouldNotRun("timeout is a number of seconds, above 0 and up to 3600")

    def _check_header(self, name: str, value: str) -> None:
        if not _TOKEN.fullmatch(name) or re.search(r"[\r\n\0]", value):
            raise CouldNotRun(f"not a valid header: {name!r}")
        if name.lower() in _SET_BY_CLIENT or name.lower() == self.header_name.lower():
            raise CouldNotRun(f"{name} is set by the runner; leave it out")

    def call(
        self,
        keys: tuple[bytes, ...],
        *,
        url: str | None = None,
        body: bytes | None = None,
        header: str | None = None,
        replacing: Headers = (),
    ) -> Call:
        """The request, with one header line for each of ``keys``.

        ``url``, ``body``, ``header``: used instead of the target's own. ``replacing``: headers that replace those of
        the same name.
        """
        replaced = {name.lower() for name, _ in replacing}
        headers = [pair for pair in self.headers if pair[0].lower() not in replaced] + list(replacing)
        if self.content_type and "content-type" not in {name.lower() for name, _ in headers}:
            headers.append(("Content-Type", self.content_type))
        encoded = [(name.encode("ascii"), value.encode("utf-8")) for name, value in headers]
        name = (header or self.header_name).encode("ascii")
        lines = tuple(encoded) + tuple((name, key) for key in keys)
        return Call(self.method, url or self.url, lines, self.data if body is None else body)

    def other_payload(self) -> bytes | None:
        """A payload that differs from ``data``; None if none was given and ``data`` is no JSON object."""
        if self.other_data is not None:
            return self.other_data
        try:
            members: Any = json.loads(self.data)
        except ValueError:
            return None
        if not isinstance(members, dict):
            return None
        return json.dumps({**members, f"conformance-{secrets.token_hex(4)}": True}).encode()


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        known = False
    if not known or not url.isascii() or re.search(r"[\s\x00-\x1f\x7f]", url):
        raise CouldNotRun(f"not an http or https address: {url!r}")
