"""What to examine: an endpoint, a request that it accepts, and what its documentation promises."""

from __future__ import annotations

import json
import math
import re
import secrets
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from open_idempotency.conformance.http.verdicts import CouldNotRun
from open_idempotency.conformance.http.wire import Call

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_OWN = frozenset({"content-length", "transfer-encoding", "connection"})

Fields = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Target:
    """An endpoint and a request that it accepts. Raises ``CouldNotRun`` for what cannot be sent.

    ``url``: http or https. ``headers``: sent with every request, such as ``Authorization``. ``data``: the payload,
    ``other_data``: another one that is accepted too (None: made from a JSON object, by one more member).
    ``slow_url``: a path that takes a second or more. ``failing_url``: one that answers 5xx.
    ``other_caller``: fields that make the request another caller's. ``required``: it is documented to require a key.
    ``timeout``: seconds for each step. ``ca_file``: certificates to trust, PEM. ``skip``: ids of statements left out.
    """

    url: str
    method: str = "POST"
    headers: Fields = ()
    data: bytes = b"{}"
    content_type: str = "application/json"
    other_data: bytes | None = None
    slow_url: str | None = None
    failing_url: str | None = None
    other_caller: Fields = ()
    required: bool = False
    header_name: str = "Idempotency-Key"
    timeout: float = 10.0
    ca_file: str | None = None
    skip: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for url in (self.url, self.slow_url, self.failing_url):
            if url is not None:
                _check_url(url)
        for token in (self.method, self.header_name):
            if not _TOKEN.fullmatch(token):
                raise CouldNotRun(f"not a method or field name: {token!r}")
        for name, value in (*self.headers, *self.other_caller, ("Content-Type", self.content_type)):
            self._check_field(name, value)
        if self.other_data == self.data:
            raise CouldNotRun("the other payload is the same as the first")
        if not (math.isfinite(self.timeout) and 0 < self.timeout <= 3600):
            raise CouldNotRun("timeout is a number of seconds, above 0 and up to 3600")

    def _check_field(self, name: str, value: str) -> None:
        if not _TOKEN.fullmatch(name) or re.search(r"[\r\n\0]", value):
            raise CouldNotRun(f"not a header field: {name!r}")
        if name.lower() in _OWN or name.lower() == self.header_name.lower():
            raise CouldNotRun(f"{name} is set by the runner")

    def call(
        self,
        keys: tuple[bytes, ...],
        *,
        url: str | None = None,
        body: bytes | None = None,
        field: str | None = None,
        others: Fields = (),
    ) -> Call:
        """The request with one field line for each of ``keys``; ``others`` replace fields of the same name."""
        replaced = {name.lower() for name, _ in others}
        fields = [pair for pair in self.headers if pair[0].lower() not in replaced] + list(others)
        if self.content_type and "content-type" not in {name.lower() for name, _ in fields}:
            fields.append(("Content-Type", self.content_type))
        encoded = [(name.encode("ascii"), value.encode("utf-8")) for name, value in fields]
        name = (field or self.header_name).encode("ascii")
        lines = tuple(encoded) + tuple((name, key) for key in keys)
        return Call(self.method, url or self.url, lines, self.data if body is None else body)

    def other_payload(self) -> bytes | None:
        """A payload that differs from ``data``; None where none was given and none can be made."""
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
