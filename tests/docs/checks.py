"""Checks for the hidden blocks of the pages: a real client sends requests to views whose responses differ in each run.

Every check makes its own key, so that examples of one page may share a database.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx

from open_idempotency.testing import Kit, NoResponse


def posted_over_asgi(app: Any, path: str, body: object = None, *, times: int, key: str | None = None) -> list[Any]:
    """The responses to one request that is sent several times with one key; ``key=""``: without a key."""
    sent = str(uuid.uuid4()) if key is None else key
    headers = {"Idempotency-Key": sent} if sent else {}

    async def post() -> list[Any]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
            return [await client.post(path, json=body, headers=headers) for _ in range(times)]

    return asyncio.run(post())


def posted_over_wsgi(app: Any, path: str, body: object = None, *, times: int, key: str | None = None) -> list[Any]:
    """``posted_over_asgi`` for WSGI, and for a Flask application."""
    from werkzeug.test import Client

    sent = str(uuid.uuid4()) if key is None else key
    headers = {"Idempotency-Key": sent} if sent else {}
    client = Client(app)
    return [client.post(path, json=body, headers=headers) for _ in range(times)]


def posted_in_django(path: str, body: object = None, *, times: int, key: str | None = None) -> list[Any]:
    """``posted_over_asgi`` with Django's test client."""
    from django.test import Client

    sent = str(uuid.uuid4()) if key is None else key
    headers = {"Idempotency-Key": sent} if sent else {}
    client = Client(raise_request_exception=False)
    text = json.dumps(body)
    return [client.post(path, text, content_type="application/json", headers=headers) for _ in range(times)]


def _body(response: Any) -> bytes:
    return response.data if hasattr(response, "data") else response.content


def _replays(first: Any, second: Any) -> None:
    assert 200 <= first.status_code < 300, _body(first)
    assert "Idempotent-Replayed" not in first.headers
    assert second.headers["Idempotent-Replayed"] == "true", _body(second)
    assert (second.status_code, _body(second)) == (first.status_code, _body(first))


def _requires_a_key(response: Any) -> None:
    assert response.status_code == 400, _body(response)
    assert json.loads(_body(response))["type"] == "urn:problem-type:open-idempotency:key-missing"


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


@asynccontextmanager
async def _started(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a started application: some frameworks accept no request before startup."""
    received: asyncio.Queue[Any] = asyncio.Queue()
    sent: asyncio.Queue[Any] = asyncio.Queue()
    scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
    lifespan = asyncio.create_task(app(scope, received.get, sent.put))
    try:
        for moment in ("startup", "shutdown"):
            received.put_nowait({"type": f"lifespan.{moment}"})
            getting = asyncio.create_task(sent.get())
            await asyncio.wait({getting, lifespan}, timeout=20, return_when=asyncio.FIRST_COMPLETED)
            if not getting.done():
                getting.cancel()
                lifespan.result()  # what it has raised; InvalidStateError if it hangs
            message = getting.result()
            assert message["type"] == f"lifespan.{moment}.complete", message
            if moment == "startup":
                transport = httpx.ASGITransport(app, raise_app_exceptions=True)
                async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
                    yield client
        await asyncio.wait_for(lifespan, 20)
    finally:
        lifespan.cancel()


def is_idempotent_over_asgi(app: Any, path: str, effects: Any) -> None:
    """One effect and one response: for sequential and concurrent duplicates, and after a crash at each stage."""

    async def check() -> None:
        async with _started(app) as client:
            await _refuses_duplicates(client, path)
            with Kit() as kit:
                await kit.aassert_idempotent(client, f"POST {path}", json={}, effects=effects)

    asyncio.run(check())


def resumes_over_asgi(app: Any, path: str, stage: str, effects: Any) -> None:
    """Duplicates are refused, and an attempt that died after a stage is resumed without running it again.

    For a framework that reports no exception to its server, so that the other crashes cannot be simulated.
    """

    async def check() -> None:
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        async with _started(app) as client:
            await _refuses_duplicates(client, path)
            with Kit() as kit:
                before = len(effects)
                with kit.crash_at(stage), suppress(NoResponse):
                    await client.post(path, json={}, headers=headers)
                assert (await client.post(path, json={}, headers=headers)).status_code == 409
                kit.end_leases()
                resumed = await client.post(path, json={}, headers=headers)
                assert 200 <= resumed.status_code < 300, resumed.content
                assert "Idempotent-Replayed" not in resumed.headers
                assert len(effects) == before + 1

    asyncio.run(check())


async def _refuses_duplicates(client: httpx.AsyncClient, path: str) -> None:
    """A retry is replayed, and refused while the first request is in flight."""
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    _replays(*[await client.post(path, json={}, headers=headers) for _ in range(2)])
    with Kit() as kit:
        _is_refused(*await kit.aduplicate_in_flight(client, f"POST {path}", json={}))


def is_idempotent_over_wsgi(app: Any, path: str, effects: Any) -> None:
    """``is_idempotent_over_asgi`` for WSGI."""
    from werkzeug.test import Client

    replays_over_wsgi(app, path)
    _is_idempotent(Client(app), path, effects)


def is_idempotent_in_django(path: str, effects: Any) -> None:
    """``is_idempotent_over_asgi`` with Django's test client."""
    from django.test import Client

    _is_idempotent(Client(), path, effects)


def _is_idempotent(client: Any, path: str, effects: Any) -> None:
    with Kit() as kit:
        kit.assert_idempotent(client, f"POST {path}", json={}, effects=effects)
    with Kit() as kit:
        _is_refused(*kit.duplicate_in_flight(client, f"POST {path}", json={}))


def _is_refused(first: Any, duplicate: Any) -> None:
    assert 200 <= first.status_code < 300, _body(first)
    assert duplicate.status_code == 409, _body(duplicate)
    assert json.loads(_body(duplicate))["type"] == "urn:problem-type:open-idempotency:in-progress"
