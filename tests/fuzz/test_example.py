"""Generated requests to an application, with and without the middleware: the same responses.

Schemathesis generates valid and invalid requests from the application's OpenAPI description. Each goes to three forms
of an application, with separate books: without the middleware, with it and no key, with it and a new key each time.

Here the application is the FastAPI example. Its views save stages, which need a covered request, so its form without
the middleware has no stages either: the test proves that middleware and stages together change no response.
``test_plain`` has an application without stages, whose first form lacks nothing but the middleware.
"""

from __future__ import annotations

import asyncio
import copy
import importlib
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from starlette.middleware import Middleware

from open_idempotency.backends.memory import MemoryBackend
from tests.effort import times

STAGES = ("reserve", "charge_card", "write_receipt")
OPERATIONS = [("/charges", "POST"), ("/charges/{charge_id}", "GET")]
#: values that exist in the shop; generated ones rarely do
KNOWN = {"sku": ["mug", "shirt", "last-poster"], "card": ["tok_visa", "tok_declined"], "quantity": [1, 2, 100]}
_CHARGE_ID = re.compile(rb"ch_[0-9A-Za-z_-]{12}")


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example's module. It keeps its books in the working directory."""
    monkeypatch.chdir(tmp_path)
    return importlib.import_module("examples.payments_fastapi")


@dataclass
class Form:
    """The example in one of its three forms. ``parts``: attributes of its module while this form responds."""

    example: ModuleType
    app: Any
    parts: dict[str, Any]
    keyed: bool

    async def response(self, prepared: requests.PreparedRequest) -> httpx.Response:
        """The form's response to the request."""
        before = {name: vars(self.example)[name] for name in self.parts}
        vars(self.example).update(self.parts)
        try:
            return await self._response(prepared)
        finally:
            vars(self.example).update(before)

    async def _response(self, prepared: requests.PreparedRequest) -> httpx.Response:
        headers = [*prepared.headers.items(), *([("Idempotency-Key", f'"{uuid4()}"')] if self.keyed else [])]
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport) as client:
            return await client.request(
                str(prepared.method),
                str(prepared.url),
                headers=[(_bytes(name), _bytes(value)) for name, value in headers],
                content=_bytes(prepared.body),
            )


def _bytes(text: Any) -> bytes:
    return text.encode("utf-8") if isinstance(text, str) else text or b""


def forms(example: ModuleType, folder: Path) -> tuple[Form, Form, Form]:
    """Without the middleware, with it and no key, with it and a new key each time."""
    (entry,) = example.app.user_middleware
    protected = with_middleware(example, Middleware(entry.cls, **{**entry.kwargs, "backend": MemoryBackend()}))
    bare = {**{name: vars(example)[name].__wrapped__ for name in STAGES}, "idem": Keys}
    return (
        Form(example, with_middleware(example), {**bare, **books(example, folder / "bare")}, keyed=False),
        Form(example, protected, books(example, folder / "free"), keyed=False),
        Form(example, protected, books(example, folder / "keyed"), keyed=True),
    )


class Keys:
    """Replaces ``idem``: a new key for the provider each time."""

    @staticmethod
    def key_for(name: str) -> str:
        return uuid4().hex


def with_middleware(example: ModuleType, *middleware: Middleware) -> Any:
    """The application with this middleware in place of its own."""
    app = copy.copy(example.app)
    app.user_middleware, app.middleware_stack = list(middleware), None
    return app


def books(example: ModuleType, folder: Path) -> dict[str, Any]:
    """A shop and a payment provider at the start of their day."""
    folder.mkdir()
    return {"shop": example.Shop(folder), "provider": example.PaymentProvider(folder, latency=0)}


def cases(example: ModuleType) -> st.SearchStrategy[Case]:
    """Requests that the description allows, and ones that it does not."""
    schema = schemathesis.openapi.from_dict(example.app.openapi())
    return st.one_of(
        schema[path][method].as_strategy(mode)
        for path, method in OPERATIONS
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    )


def prepared(case: Case, known: Mapping[str, Any]) -> requests.PreparedRequest:
    """The request of a case, with some ids that exist in the shop."""
    if isinstance(case.body, dict):
        case.body = {**case.body, **{name: value for name, value in known.items() if name in case.body}}
    case.headers.pop("Idempotency-Key", None)
    return requests.Request(**case.as_transport_kwargs(base_url="http://test")).prepare()


def seen(response: httpx.Response) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """The response without the charge's number, which differs in each form."""
    headers = [(name.lower(), _CHARGE_ID.sub(b"ch_", value)) for name, value in response.headers.raw]
    return response.status_code, headers, _CHARGE_ID.sub(b"ch_", response.content)


async def same_responses(example: ModuleType, sent: list[requests.PreparedRequest]) -> set[int]:
    """Send each request to all three forms in turn, and compare; the statuses."""
    statuses = set()
    with tempfile.TemporaryDirectory() as folder:
        bare, free, keyed = forms(example, Path(folder))
        for request in sent:
            expected = seen(await bare.response(request))
            assert seen(await free.response(request)) == expected
            assert seen(await keyed.response(request)) == expected
            statuses.add(expected[0])
        left = {form.parts["shop"].available("mug") for form in (bare, free, keyed)}
    assert len(left) == 1
    return statuses


def test_generated_requests_get_the_same_responses_as_without_middleware_and_stages(example: ModuleType) -> None:
    """O-01: status, fields and body of the example, with no key and with a new one each.

    Without the middleware the views run without their stages, which would raise ``NotStarted``.
    """
    known = st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in KNOWN.items()})
    order = requests.Request("POST", "http://test/charges", json={"sku": "mug", "quantity": 2, "card": "tok_visa"})
    wrong = requests.Request("POST", "http://test/charges", json={}).prepare()
    missing = requests.Request("GET", "http://test/charges/none").prepare()
    statuses: set[int] = set()

    @settings(max_examples=times(8), deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.builds(prepared, cases(example), known), min_size=1, max_size=3))
    def check(sent: list[requests.PreparedRequest]) -> None:
        statuses.update(asyncio.run(same_responses(example, [*sent, wrong, missing, order.prepare()])))

    check()
    assert statuses >= {201, 404, 422}
