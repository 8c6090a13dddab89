"""Helpers of the Flask extension's tests: one route, one request, one look at the record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import (
    Flask,
)
from flask.testing import FlaskClient

from open_idempotency.backend import Record
from open_idempotency.backends.memory import MemoryBackend

KEY = "8e03978e-40d5-43e8-bc93-6894a57f9324"
HEADERS = {"Idempotency-Key": KEY}


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def view(app: Flask, function: Callable[..., Any], **options: Any) -> None:
    app.add_url_rule("/charges", view_func=function, methods=["POST", "GET"], endpoint="charges", **options)


def post(app: Flask, path: str = "/charges", client: FlaskClient | None = None, **options: Any) -> Any:
    """One POST with the key; return the response, with its body read and closed."""
    options.setdefault("headers", HEADERS)
    with (client or app.test_client()).post(path, **options) as response:
        response.get_data()
        return response


def only_record(backend: MemoryBackend) -> Record:
    (record,) = backend.scan()
    return record


def replayed(response: Any) -> bool:
    return response.headers.get("Idempotent-Replayed") == "true"
