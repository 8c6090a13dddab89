"""What docs/frameworks/quart.md says about Quart beyond its examples: hooks, sessions, exceptions, CORS, lifespan."""

from __future__ import annotations

import asyncio
import logging
from itertools import count
from typing import Any

import pytest
from quart import Quart, Response, abort, request, session
from quart_cors import cors

from open_idempotency import idem
from open_idempotency.asgi import IdempotencyMiddleware
from open_idempotency.backends.memory import MemoryBackend
from tests.frameworks.calls import REPLAYED, posted, start

PAGE = "https://app.example"


class Shop:
    """A Quart application with the middleware, and a list of the functions that ran."""

    def __init__(self, **policy: Any) -> None:
        self.runs: list[str] = []
        self.app = Quart("shop")
        self.app.secret_key = "of the tests"
        self.backend = MemoryBackend()
        self.app.asgi_app = IdempotencyMiddleware(self.app.asgi_app, self.backend, **policy)  # type: ignore[method-assign]  # as Quart says
        self.app.before_request(self._before)
        self.app.after_request(self._after)
        self.app.post("/charges")(self._charge)
        self._numbers = count(1)

    async def _before(self) -> None:
        self.runs.append("before_request")
        if "X-Denied" in request.headers:
            abort(403)

    async def _after(self, response: Response) -> Response:
        self.runs.append("after_request")
        response.headers["X-Number"] = str(next(self._numbers))
        return response

    async def _charge(self) -> dict[str, Any]:
        self.runs.append("view")
        return {"run": next(self._numbers), "body": await request.get_json(), "user": session.get("user_id")}


def test_a_replay_runs_none_of_quarts_hooks() -> None:
    """O-02: changes by after_request are stored, and replayed."""
    shop = Shop()
    first, second = posted(shop.app, ("/charges", {}), ("/charges", {}))
    assert first.json()["body"] == {}
    assert (second.content, second.headers["x-number"]) == (first.content, first.headers["x-number"])
    assert second.headers[REPLAYED] == "true"
    assert shop.runs == ["before_request", "view", "after_request"]


def test_before_request_refuses_no_retry() -> None:
    """As the page says; the function of ``scope=`` runs for each request."""
    shop = Shop()
    denied = {"X-Denied": "1"}
    refused, made, replayed = posted(shop.app, ("/charges", denied), ("/charges", {}), ("/charges", denied))
    assert (refused.status_code, made.status_code, replayed.status_code) == (403, 200, 200)
    assert replayed.headers[REPLAYED] == "true"


def test_the_session_of_quart_is_not_read_and_a_warning_says_that(caplog: pytest.LogCaptureFixture) -> None:
    """O-19: it is decoded inside, so its cookie does not identify the caller."""
    shop = Shop()
    serializer = shop.app.session_interface.get_signing_serializer(shop.app)  # type: ignore[attr-defined]  # of the default
    cookie = {"Cookie": f"session={serializer.dumps({'user_id': 7})}"}
    (made,) = posted(shop.app, ("/charges", cookie))
    assert made.json()["user"] == 7
    assert "CallerUnidentified" in caplog.text


def test_a_404_of_quarts_is_stored() -> None:
    """O-13: the middleware does not know Quart's routes."""
    missing, again = posted(Shop().app, ("/none", {}), ("/none", {}))
    assert (missing.status_code, again.status_code, again.headers[REPLAYED]) == (404, 404, "true")


@pytest.mark.parametrize("testing", [False, True])
def test_an_exception_fails_the_attempt_and_the_next_one_resumes(
    testing: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """O-08: also in Quart's testing mode."""
    shop = Shop()
    shop.app.testing = testing
    caplog.set_level(logging.CRITICAL, shop.app.logger.name)
    stages: list[str] = []
    attempts = count(1)

    @shop.app.post("/broken")
    async def broken() -> str:
        await idem.arun("charge", stages.append, "charged")
        if next(attempts) == 1:
            raise RuntimeError("the first time")
        return "done"

    assert [each.status_code for each in posted(shop.app, ("/broken", {}), ("/broken", {}))] == [500, 200]
    assert stages == ["charged"]


def test_quart_cors_is_reported_at_start(caplog: pytest.LogCaptureFixture) -> None:
    """R-12: it is an after_request function, so problems lack its headers."""
    shop = Shop()
    cors(shop.app, allow_origin=PAGE)
    assert asyncio.run(start(shop.app)) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert "QuartCORS is inside IdempotencyMiddleware" in caplog.text
    (problem,) = posted(shop.app, ("/charges", {"Origin": PAGE, "Idempotency-Key": '"'}))
    assert problem.status_code == 400
    assert "access-control-allow-origin" not in problem.headers


def test_quart_without_cors_is_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    """R-12: any other after_request function is not CORS."""
    asyncio.run(start(Shop().app))
    assert "is inside" not in caplog.text
