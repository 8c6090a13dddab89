"""The application in plain WSGI."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

from open_idempotency.backend import Backend
from open_idempotency.wsgi import IdempotencyMiddleware
from tests.http.behaviours import call_of, chunks, header_pairs, perform


def make(backend: Backend | str, fields: dict[str, Any]) -> Callable[..., Iterable[bytes]]:
    """The application behind the middleware."""
    return IdempotencyMiddleware(_app, backend, **fields)


def _app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    size = -1 if environ.get("wsgi.input_terminated") else int(environ.get("CONTENT_LENGTH") or 0)
    body = environ["wsgi.input"].read(size)
    call = call_of(
        environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["QUERY_STRING"], body, environ["HTTP_X_SCRIPT"]
    )
    reply = perform(call)
    headers = [(name.decode(), value.decode("latin-1")) for name, value in header_pairs(reply)]
    start_response(f"{reply.status} {HTTPStatus(reply.status).phrase}", headers)
    return [reply.body] if isinstance(reply.body, bytes) else chunks(reply.body)
