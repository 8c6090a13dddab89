"""The endpoint to examine, and an HTTP client that sends bytes exactly as given.

A ``Target`` has a request that the endpoint accepts, and what its documentation promises. The ``Client`` records each
exchange. Each request has its own connection, since a server may close the connection after a malformed header.
Redirects are not followed, and no cookie is stored.
"""

from __future__ import annotations

import http.client
import json
import math
import re
import secrets
import ssl
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

# The HTTP client

MAX_BODY = 4 * 1024 * 1024
_AGENT = (b"User-Agent", b"open-idempotency-conformance")


@dataclass(frozen=True, slots=True)
class Call:
    """A request to send. The headers are sent in this order, with duplicates and with bytes that HTTP forbids."""

    method: str
    url: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and its response. Without a response ``status`` is 0 and ``error`` says why.

    ``seconds``: from the first byte sent to the last byte received, without the time to connect.
    """

    group: str
    call: Call
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    seconds: float
    error: str = ""
    #: whether there was a connection to send the request over
    connected: bool = True

    @property
    def success(self) -> bool:
        """Whether the status says that the request was carried out."""
        return 200 <= self.status < 400

    def all(self, name: str) -> list[str]:
        """All values of a header, by its name in lower case."""
        return [value for known, value in self.headers if known == name]

    def first(self, name: str) -> str:
        """The first value of a header; empty without one."""
        return next(iter(self.all(name)), "")

    def __str__(self) -> str:
        return str(self.status) if self.status else f"no response ({self.error})"


class Client:
    """Sends calls, and refuses to send more of a group than ``limits`` allows.

    ``timeout``: seconds for each step of a request. ``ca_file``: certificates to trust for https, PEM.
    """

    def __init__(self, limits: Mapping[str, int], timeout: float, ca_file: str | None = None) -> None:
        self.exchanges: list[Exchange] = []
        self._sent: Counter[str] = Counter()
        self._limits = limits
        self._timeout = timeout
        self._ca_file = ca_file

    def send(self, group: str, call: Call) -> Exchange:
        """Send one call and wait for its response. Network errors are recorded in the exchange, not raised."""
        (exchange,) = self.send_together(group, [call])
        return exchange

    def send_together(self, group: str, calls: Sequence[Call]) -> list[Exchange]:
        """Send several calls at the same time, over connections that were opened before."""
        self._sent[group] += len(calls)
        if self._sent[group] > self._limits[group]:
            raise RuntimeError(f"more requests than announced: {group}")
        start = threading.Barrier(len(calls))
        done: list[Exchange | None] = [None] * len(calls)

        def send_one(at: int) -> None:
            done[at] = self._exchange(group, calls[at], start)

        threads = [threading.Thread(target=send_one, args=(at,), daemon=True) for at in range(1, len(calls))]
        for thread in threads:
            thread.start()
        send_one(0)
        for thread in threads:
            thread.join(self._timeout * 4)
        late = [Exchange(group, call, 0, (), b"", 0.0, "too late") for call in calls]
        exchanges = [exchange or missing for exchange, missing in zip(done, late, strict=True)]
        self.exchanges.extend(exchanges)
        return exchanges

    def _exchange(self, group: str, call: Call, start: threading.Barrier) -> Exchange:
        started, connected = time.monotonic(), False
        try:
            connection = self._connect(call)
            connected = True
            try:
                start.wait(self._timeout)
                started = time.monotonic()
                _write(connection, call)
                return self._read(group, call, connection, started)
            finally:
                connection.close()
        except (OSError, http.client.HTTPException, threading.BrokenBarrierError) as error:
            start.abort()  # the other threads would wait for this one until their timeout
            seconds = time.monotonic() - started
            said = f"{type(error).__name__}: {error}".rstrip(": ")
            return Exchange(group, call, 0, (), b"", seconds, said, connected)

    def _connect(self, call: Call) -> http.client.HTTPConnection:
        parts = urlsplit(call.url)
        host = parts.hostname or ""
        if parts.scheme == "https":
            context = ssl.create_default_context(cafile=self._ca_file)
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, parts.port, timeout=self._timeout, context=context
            )
        else:
            connection = http.client.HTTPConnection(host, parts.port, timeout=self._timeout)
        try:
            connection.connect()
        except BaseException:
            connection.close()
            raise
        return connection

    def _read(self, group: str, call: Call, connection: http.client.HTTPConnection, started: float) -> Exchange:
        with connection.getresponse() as response:
            headers = tuple((name.lower(), value) for name, value in response.getheaders())
            body = b""
            # An endless stream is cut, and the pieces before the cut are compared.
            while len(body) < MAX_BODY and time.monotonic() < started + 2 * self._timeout:
                chunk = response.read1(65536)
                if not chunk:
                    break
                body += chunk
            return Exchange(group, call, response.status, headers, body, time.monotonic() - started)


def _write(connection: http.client.HTTPConnection, call: Call) -> None:
    parts = urlsplit(call.url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    given = {name.lower() for name, _ in call.headers}
    connection.putrequest(call.method, target, skip_host=b"host" in given, skip_accept_encoding=True)
    if b"user-agent" not in given:
        connection.putheader(*_AGENT)
    for name, value in call.headers:
        connection.putheader(name, value)
    connection.putheader(b"Content-Length", b"%d" % len(call.body))
    connection.putheader(b"Connection", b"close")
    connection.endheaders(call.body)


# The endpoint

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
    revision of the draft, two digits. ``profile``: whose statements to test, ``"draft"``, ``"acp"`` or ``"ucp"``; both
    protocols have bare keys. ``other_url``: another endpoint that accepts the same payload. ``skip``: ids of statements
    to leave out.

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
    profile: str = "draft"
    other_url: str | None = None
    skip: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for url in (self.url, self.slow_url, self.failing_url, self.other_url):
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
