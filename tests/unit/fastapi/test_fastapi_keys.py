"""``key=`` under FastAPI: its dependencies, its own reading of bodies, and its OpenAPI description."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI
from pydantic import BaseModel
from starlette.middleware.base import BaseHTTPMiddleware

from open_idempotency import idem, key_from, rules
from open_idempotency.asgi import IdempotencyMiddleware as PlainMiddleware
from open_idempotency.fastapi import IdempotencyMiddleware, IdempotencyRule, document_idempotency, exempt
from tests.django_project.calls import WatchedBackend

KEY = "evt_1PxQ4f2eZvKYlo2C0123"


@pytest.fixture(autouse=True)
def own_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules are registered for the process; those of this file say that a key may be anywhere, so they are removed."""
    monkeypatch.setattr(rules, "registry", rules.RuleRegistry())


class Event(BaseModel):
    """The body of the endpoints."""

    id: str
    amount: int = 0


def _post(app: Any, path: str, document: Any = None, **headers: str) -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return await client.post(
                path, content=json.dumps(document), headers={"content-type": "application/json", **named}
            )

    return asyncio.run(send())


def _app(**fields: Any) -> tuple[FastAPI, list[str], WatchedBackend]:
    app, ran, backend = FastAPI(), [], WatchedBackend()
    app.add_middleware(BaseHTTPMiddleware, dispatch=lambda request, call_next: call_next(request))
    app.add_middleware(IdempotencyMiddleware, backend=backend, **fields)

    def stage() -> None:
        ran.append(str(idem.run("checked", lambda: "dependency")))

    @app.post("/events", dependencies=[Depends(IdempotencyRule(key=key_from("json:/id")))])
    def events(event: Event) -> dict[str, str]:
        ran.append("view")
        return {"id": event.id}

    @app.post("/unread", dependencies=[Depends(IdempotencyRule(key=key_from("json:/id")))])
    async def unread() -> dict[str, int]:
        ran.append("view")
        return {"runs": len(ran)}

    @app.post("/orders", dependencies=[Depends(stage)])
    def orders(event: Event) -> dict[str, str]:
        ran.append("view")
        return {"id": event.id}

    @app.post("/plain")
    @exempt
    def plain(event: Event) -> dict[str, str]:
        ran.append("view")
        return {"id": event.id}

    return app, ran, backend


def test_a_body_that_fastapi_has_parsed_gives_the_key_and_a_body_that_nobody_reads() -> None:
    """H-15: an endpoint with a model, and an endpoint that does not read the body."""
    app, ran, _ = _app()
    for path in ("/events", "/unread"):
        ran.clear()
        first, again = _post(app, path, {"id": KEY + path}), _post(app, path, {"id": KEY + path})
        assert (first.status_code, again.json(), ran) == (200, first.json(), ["view"])
        assert again.headers["idempotent-replayed"] == "true"


def test_a_body_that_fastapi_refuses_makes_no_claim() -> None:
    """H-18, O-18: the client gets the 422 of FastAPI's validation, as on any route."""
    app, ran, backend = _app()
    assert _post(app, "/events", {"id": KEY, "amount": "x"}).status_code == 422
    assert (ran, backend.verbs) == ([], [])


def test_stages_of_a_dependency_run_plainly_on_a_route_that_no_key_can_protect() -> None:
    """H-20: the ``key=`` of another route does not affect a request without a key."""
    app, ran, _ = _app()
    assert _post(app, "/orders", {"id": KEY}).status_code == 200
    assert ran == ["dependency", "view"]
    assert _post(app, "/plain", {"id": KEY}).status_code == 200


def test_a_request_whose_stream_goes_on_after_the_claim_arrives_whole() -> None:
    """H-19: a request without a key reads the rest of its body from the server, and then its disconnect."""
    heard: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        heard.extend([await receive(), await receive()])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    messages = [
        {"type": "http.request", "body": b'{"a":', "more_body": True},
        {"type": "http.request", "body": b"1}", "more_body": False},
        {"type": "http.disconnect"},
    ]

    async def run() -> list[Any]:
        sent: list[Any] = []
        left = list(messages)

        async def receive() -> Any:
            return left.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": []}
        await PlainMiddleware(app, "memory://", key=key_from("json:/id"))(scope, receive, send)
        return sent

    sent = asyncio.run(run())
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert b"".join(message.get("body", b"") for message in heard) == b'{"a":1}'
    assert heard[-1]["type"] == "http.disconnect"


def test_the_description_has_no_header_where_the_key_is_elsewhere() -> None:
    """H-14, H-21: the 400 describes where the key is; an echoed key is described among the headers of responses."""
    app, _, _ = _app(echo_key=True)
    document_idempotency(app)
    paths = app.openapi()["paths"]
    hook, order = paths["/events"]["post"], paths["/orders"]["post"]
    assert "parameters" not in hook or not hook["parameters"]
    assert "the JSON body at /id" in hook["responses"]["400"]["description"]
    assert "Idempotency-Key" in hook["responses"]["200"]["headers"]
    assert [parameter["name"] for parameter in order["parameters"]] == ["Idempotency-Key"]
