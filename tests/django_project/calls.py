"""Helpers of the Django tests: a project for one test, its backend, and a request with a key."""

# ruff: noqa: E402 (Django has to be set up before what needs its settings is imported)
from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.django_project import set_up

set_up()

from django.test import AsyncClient, override_settings
from django.urls import path

from open_idempotency._core.commands import Claim, Complete
from open_idempotency.backends.memory import MemoryBackend

OURS = "open_idempotency.django.IdempotencyMiddleware"
PATIENCE = 20
KEY = "8e03978e-40d5-43e8-bc93-6894a57f9324"
REPLAYED = "Idempotent-Replayed"


class WatchedBackend(MemoryBackend):
    """The memory backend, which also notes its claims and completions."""

    def __init__(self) -> None:
        super().__init__()
        self.verbs: list[str] = []

    def claim(self, c: Claim, /) -> Any:
        self.noted("claim")
        return super().claim(c)

    def complete(self, c: Complete, /) -> Any:
        self.noted("complete")
        return super().complete(c)

    def noted(self, verb: str) -> None:
        self.verbs.append(verb)


@contextmanager
def project(*views: Any, **options: Any) -> Iterator[WatchedBackend]:
    """Settings with these views at ``/0``, ``/1``, ...; ``options`` are further settings."""
    backend = options.setdefault("IDEMPOTENCY_BACKEND", WatchedBackend())
    options.setdefault("MIDDLEWARE", [OURS])
    urls = type("Urls", (), {"urlpatterns": [path(str(place), view) for place, view in enumerate(views)]})
    with override_settings(ROOT_URLCONF=urls, **options):
        yield backend


def post(client: Any, place: str = "/0", data: Any = None, key: str | None = KEY, **extra: Any) -> Any:
    """Send a POST, with JSON unless there is a ``content_type``; awaitable with an ``AsyncClient``."""
    headers = {**({"Idempotency-Key": key} if key else {}), **extra.pop("headers", {})}
    if "content_type" not in extra:
        data, extra["content_type"] = json.dumps(data), "application/json"
    if isinstance(client, AsyncClient):
        # Django 4.2's own reading of ``headers`` for this client sends names with underscores.
        return client.post(place, data, **headers, **extra)
    return client.post(place, data, headers=headers, **extra)


class AsgiCall:
    """One POST to an ASGI application, as a server sends it. ``left``: set it for the client's disconnect."""

    def __init__(self, body: bytes = b"", content_type: bytes = b"text/plain") -> None:
        self._request = body
        self._content_type = content_type
        self.left = asyncio.Event()
        self.sent: list[dict[str, Any]] = []
        self.body_came = asyncio.Event()
        self._asked = False

    async def run(self, app: Callable[..., Awaitable[None]]) -> None:
        """Send the request, and wait until the application has ended."""
        scope = {
            "type": "http", "method": "POST", "path": "/0", "raw_path": b"/0", "query_string": b"", "scheme": "http",
            "headers": [
                (b"idempotency-key", KEY.encode()), (b"host", b"testserver"), (b"content-type", self._content_type),
                (b"content-length", b"%d" % len(self._request)),
            ],
        }  # fmt: skip
        await asyncio.wait_for(app(scope, self._receive, self._send), PATIENCE)

    async def _receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self._request, "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)
        if message.get("body"):
            self.body_came.set()

    @property
    def body(self) -> bytes:
        """The body received so far."""
        return b"".join(message.get("body", b"") for message in self.sent)
