"""The floor as WSGI middleware."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from benchmarks.floor.calls import Calls, fingerprint_of, framed, record_id_of, unframed
from benchmarks.interface import App


class FloorMiddleware:
    """Does for one ``POST`` with a key the least that has to be done, and passes everything else on."""

    def __init__(self, app: App, calls: Calls) -> None:
        self.app = app
        self.calls = calls

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        key = environ.get("HTTP_IDEMPOTENCY_KEY")
        if key is None or environ["REQUEST_METHOD"] != "POST":
            passed: Iterable[bytes] = self.app(environ, start_response)
            return passed
        status, headers, response = self._respond(key.encode("latin-1"), environ)
        fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
        start_response(f"{status} {HTTPStatus(status).phrase}", fields)
        return [response]

    def _respond(self, key: bytes, environ: dict[str, Any]) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        record_id, owner = record_id_of(key), os.urandom(16)
        found = self.calls.claim(record_id, fingerprint_of("POST", environ["PATH_INFO"], body), owner)
        if isinstance(found, int):
            return found, [(b"Content-Length", b"0")], b""
        if found is not None:
            return unframed(found)
        status, headers, response = self._captured(environ, body)
        self.calls.complete(record_id, owner, framed(status, headers, response))
        return status, headers, response

    def _captured(self, environ: dict[str, Any], body: bytes) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        environ["wsgi.input"] = io.BytesIO(body)
        started: list[Any] = []

        def start_response(status: str, headers: list[tuple[str, str]], exc_info: object = None) -> None:
            started[:] = int(status[:3]), headers

        iterable = self.app(environ, start_response)
        try:
            response = b"".join(iterable)
        finally:
            if hasattr(iterable, "close"):
                iterable.close()
        status, headers = started
        return status, [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers], response
