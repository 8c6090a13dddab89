"""What the hidden blocks of the pages check: a real client sends, and each view's answer differs from run to run.

Every check makes a key of its own, so that examples of one page may share a database.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import httpx


def posted_over_asgi(app: Any, path: str, body: object = None, *, times: int, key: str | None = None) -> list[Any]:
    """The answers to one request that is sent several times with one key; ``key=""``: without any."""
    sent = str(uuid.uuid4()) if key is None else key
    headers = {"Idempotency-Key": sent} if sent else {}

    async def post() -> list[Any]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
            return [await client.post(path, json=body, headers=headers) for _ in range(times)]

    return asyncio.run(post())


def posted_over_wsgi(app: Any, path: str, body: object = None, *, times: int, key: str | None = None) -> list[Any]:
    """The same over WSGI; works on a Flask application too."""
    from werkzeug.test import Client

    sent = str(uuid.uuid4()) if key is None else key
    headers = {"Idempotency-Key": sent} if sent else {}
    client = Client(app)
    return [client.post(path, json=body, headers=headers) for _ in range(times)]


def posted_in_django(path: str, body: object = None, *, times: int, key: str | None = None) -> list[Any]:
    """The same with Django's own client."""
    from django.test import Client

    sent = str(uuid.uuid4()) if key is None else key
    headers = {"Idempotency-Key": sent} if sent else {}
    client = Client(raise_request_exception=False)
    text = json.dumps(body)
    return [client.post(path, text, content_type="application/json", headers=headers) for _ in range(times)]


def _body(answer: Any) -> bytes:
    return answer.data if hasattr(answer, "data") else answer.content


def _replays(first: Any, second: Any) -> None:
    assert 200 <= first.status_code < 300, _body(first)
    assert "Idempotent-Replayed" not in first.headers
    assert second.headers["Idempotent-Replayed"] == "true", _body(second)
    assert (second.status_code, _body(second)) == (first.status_code, _body(first))


def _requires_a_key(answer: Any) -> None:
    assert answer.status_code == 400, _body(answer)
    assert json.loads(_body(answer))["type"] == "urn:problem-type:open-idempotency:key-missing"


def _runs_each_time(first: Any, second: Any) -> None:
    assert 200 <= first.status_code == second.status_code < 300
    assert _body(first) != _body(second)


def replays_over_asgi(app: Any, path: str) -> None:
    _replays(*posted_over_asgi(app, path, {}, times=2))


def replays_over_wsgi(app: Any, path: str) -> None:
    _replays(*posted_over_wsgi(app, path, {}, times=2))


def replays_in_django(path: str) -> None:
    _replays(*posted_in_django(path, {}, times=2))


def requires_a_key_over_asgi(app: Any, path: str) -> None:
    _requires_a_key(*posted_over_asgi(app, path, {}, times=1, key=""))


def requires_a_key_over_wsgi(app: Any, path: str) -> None:
    _requires_a_key(*posted_over_wsgi(app, path, {}, times=1, key=""))


def requires_a_key_in_django(path: str) -> None:
    _requires_a_key(*posted_in_django(path, {}, times=1, key=""))


def runs_each_time_over_asgi(app: Any, path: str) -> None:
    _runs_each_time(*posted_over_asgi(app, path, {}, times=2))


def runs_each_time_over_wsgi(app: Any, path: str) -> None:
    _runs_each_time(*posted_over_wsgi(app, path, {}, times=2))


def runs_each_time_in_django(path: str) -> None:
    _runs_each_time(*posted_in_django(path, {}, times=2))
