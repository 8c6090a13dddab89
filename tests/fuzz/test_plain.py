"""Generated requests to an application without stages, with and without the middleware.

``tests/fuzz/test_example.py`` says what this proves that the example cannot.
"""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import httpx
import requests
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode

from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.fastapi import IdempotencyMiddleware
from tests.effort import times
from tests.fuzz.plain_books import make_app

#: fields of one message: not stored, or set again
OWN = {b"set-cookie", b"content-length", b"idempotent-replayed"}
COVERED = {"/entries": "POST", "/echo": "POST"}
OPERATIONS = [
    *COVERED.items(),
    ("/entries/{number}", "PATCH"),
    ("/entries/{number}", "PUT"),
    ("/entries/{number}", "GET"),
]


def protected() -> FastAPI:
    """The application with the middleware."""
    app = make_app()
    app.add_middleware(IdempotencyMiddleware, backend=MemoryBackend())
    return app


def cases() -> st.SearchStrategy[Case]:
    """Requests that the description allows, and ones that it does not."""
    schema = schemathesis.openapi.from_dict(make_app().openapi())
    return st.one_of(
        schema[path][method].as_strategy(mode)
        for path, method in OPERATIONS
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    )


def prepared(case: Case, number: int | None) -> requests.PreparedRequest:
    """The request of a case, for an existing entry if there is a number."""
    if number is not None and "number" in case.path_parameters:
        case.path_parameters = {"number": number}
    return requests.Request(**case.as_transport_kwargs(base_url="http://test")).prepare()


def _bytes(text: Any) -> bytes:
    return text.encode("utf-8") if isinstance(text, str) else text or b""


async def response(app: FastAPI, sent: requests.PreparedRequest, key: str | None) -> tuple[int, Any, bytes]:
    """Status, fields in order, and body."""
    headers = [*sent.headers.items(), *([] if key is None else [("Idempotency-Key", f'"{key}"')])]
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport) as client:
        got = await client.request(
            str(sent.method),
            str(sent.url),
            headers=[(_bytes(name), _bytes(value)) for name, value in headers],
            content=_bytes(sent.body),
        )
        return got.status_code, got.headers.raw, got.content


async def same_responses(all_sent: list[requests.PreparedRequest]) -> set[int]:
    """Send each request to all three applications in turn, and compare; the statuses."""
    bare, free, keyed = make_app(), protected(), protected()
    statuses = set()
    for sent in all_sent:
        expected = await response(bare, sent, None)
        assert await response(free, sent, None) == expected
        key = str(uuid4())
        assert await response(keyed, sent, key) == expected
        await same_again(keyed, sent, key, expected)
        statuses.add(expected[0])
    return statuses


async def same_again(app: FastAPI, sent: requests.PreparedRequest, key: str, expected: tuple[int, Any, bytes]) -> None:
    """Check that a retry of a stored response is marked, and equal apart from fields of one message."""
    if sent.method not in ("POST", "PATCH") or expected[0] >= 500 or expected[0] == 409:
        return
    status, fields, body = await response(app, sent, key)
    assert (status, body) == (expected[0], expected[2])
    kept = [pair for pair in expected[1] if pair[0].lower() not in OWN]
    assert [pair for pair in fields if pair[0].lower() not in OWN] == kept
    if status not in (400, 422):  # FastAPI refuses invalid requests before the claim (O-18)
        assert (b"idempotent-replayed", b"true") in fields


def test_generated_requests_get_the_same_responses_as_without_the_middleware() -> None:
    """O-01, O-02, R-01: status, fields and body, with no key and with a new one each; then a replay."""
    order = requests.Request("POST", "http://test/entries", json={"title": "tea", "amount": 3}).prepare()
    bug = requests.Request("POST", "http://test/entries", json={"title": "tea", "amount": 999}).prepare()
    found = requests.Request("GET", "http://test/entries/1").prepare()
    wrong = requests.Request("POST", "http://test/entries", json={}).prepare()
    missing = requests.Request("GET", "http://test/entries/999").prepare()
    statuses: set[int] = set()

    @settings(max_examples=times(8), deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.builds(prepared, cases(), st.sampled_from([None, 1])), min_size=1, max_size=4))
    def check(sent: list[requests.PreparedRequest]) -> None:
        statuses.update(asyncio.run(same_responses([order, found, missing, wrong, *sent, bug])))

    check()
    assert statuses >= {200, 201, 404, 422, 500}
