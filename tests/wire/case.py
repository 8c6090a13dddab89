"""One test's request, with its own key and journal, so that tests share the servers and their records."""

from __future__ import annotations

import time
from collections.abc import Sequence
from uuid import uuid4

from tests.wire.client import Connection, Response
from tests.wire.journal import PATIENCE, Journal
from tests.wire.servers import Server

Lines = Sequence[bytes]


def store_failed(response: Response, log: str) -> bool:
    """Whether a response reports a failed backend; the server's log has to confirm it.

    Such a response says nothing about the record: the request did not run, or its response was not recorded. It is to
    be sent again.
    """
    unavailable = response.status == 503 and b":backend-unavailable" in response.body
    if not unavailable and response.values(b"idempotency-status") != [b"unrecorded"]:
        return False
    assert "BackendFailed" in log, f"nothing failed, and yet {response}: {log[-3000:]}"
    return True


class Case:
    """A key, an endpoint, and the journal of the endpoint's runs."""

    def __init__(
        self, server: Server, adapter: str, script: str, *, variant: str = "default", path: str = "/charges"
    ) -> None:
        self.server = server
        self.key = str(uuid4())
        self.script = script
        self.journal = Journal(server.folder, self.key)
        self._app = f"{adapter}/{variant}"
        self._path = path

    def head(self, *lines: bytes, method: str = "POST", key: bytes | None = b"own") -> bytes:
        """The request's head: the lines of every request of this case, and further lines."""
        fields = [
            f"{method} {self._path}?case={self.key} HTTP/1.1".encode(),
            b"Host: localhost",
            f"X-App: {self._app}".encode(),
            f"X-Script: {self.script}".encode(),
            b"Content-Type: application/octet-stream",
        ]
        if key is not None:
            fields.append(b"Idempotency-Key: " + (f'"{self.key}"'.encode() if key == b"own" else key))
        return b"\r\n".join([*fields, *lines]) + b"\r\n\r\n"

    def request(self, body: bytes = b"{}", *lines: bytes, method: str = "POST", key: bytes | None = b"own") -> bytes:
        """The whole request."""
        return self.head(b"Content-Length: %d" % len(body), *lines, method=method, key=key) + body

    def connect(self) -> Connection:
        """A connection of its own."""
        return Connection(self.server.connect())

    def begin(self, body: bytes = b"{}") -> Connection:
        """Send the request without reading the response."""
        connection = self.connect()
        connection.send(self.request(body))
        return connection

    def ask(self, body: bytes = b"{}", *lines: bytes, method: str = "POST", key: bytes | None = b"own") -> Response:
        """Send the request and read the response; again while the backend fails."""
        deadline = time.monotonic() + PATIENCE
        while True:
            response = self.exchange(self.request(body, *lines, method=method, key=key), bodiless=method == "HEAD")
            if not store_failed(response, self.server.log) or time.monotonic() > deadline:
                return response
            time.sleep(0.01)

    def exchange(self, data: bytes, *, bodiless: bool = False) -> Response:
        """Send these bytes and read the response."""
        with self.connect() as connection:
            connection.send(data)
            return connection.read(bodiless=bodiless)

    def ask_until_admitted(self, seconds: float = PATIENCE) -> tuple[list[int], Response]:
        """Ask again while the response is 409; those statuses, and the final response."""
        refusals: list[int] = []
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            response = self.ask()
            if response.status != 409:
                return refusals, response
            refusals.append(response.status)
            time.sleep(0.01)
        raise AssertionError(f"still refused after {seconds} s: {self.journal.lines()}")
