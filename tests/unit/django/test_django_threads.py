"""How many threads a request starts in Django under ASGI, compared with Django alone."""

from __future__ import annotations

import asyncio
import secrets
import threading
from pathlib import Path
from typing import Any

import pytest
from django.http import HttpRequest, HttpResponse

from tests.django_project.calls import OURS, AsgiCall, project

REQUESTS = 30
#: the heartbeat, and the threads in which a backend makes its calls
KEPT = 4


def _blocking(request: HttpRequest) -> HttpResponse:
    return HttpResponse("made", status=201)


async def _awaited(request: HttpRequest) -> HttpResponse:
    return HttpResponse("made", status=201)


def _started(view: Any, monkeypatch: pytest.MonkeyPatch, *, keyed: bool, **options: Any) -> int:
    """How many threads ``REQUESTS`` requests start."""
    from django.core.handlers.asgi import ASGIHandler  # needs configured settings

    names: list[str] = []
    start = threading.Thread.start

    def noting(self: threading.Thread) -> None:
        names.append(self.name)
        start(self)

    async def send() -> None:
        app = ASGIHandler()

        async def call(scope: Any, receive: Any, respond: Any) -> None:
            headers = [(b"host", b"testserver")]
            if keyed:
                headers.append((b"idempotency-key", secrets.token_hex(16).encode()))
            await app({**scope, "headers": headers}, receive, respond)

        await AsgiCall().run(call)
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", noting)
            for _ in range(REQUESTS):
                await AsgiCall().run(call)

    with project(view, **options):
        asyncio.run(send())
    return len(names)


@pytest.mark.parametrize("view", [_blocking, _awaited])
@pytest.mark.parametrize("backend", ["memory", "sqlite"])
def test_a_request_starts_no_thread_of_its_own(
    view: Any, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L-14: Django starts the same threads without the middleware."""
    urls = {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path}/records.db"}
    alone = _started(view, monkeypatch, keyed=False, MIDDLEWARE=[])
    ours = {"MIDDLEWARE": [OURS], "IDEMPOTENCY_BACKEND": urls[backend]}
    assert _started(view, monkeypatch, keyed=False, **ours) == alone
    assert _started(view, monkeypatch, keyed=True, **ours) <= alone + KEPT
