"""Applications that this package's middleware protects pass every statement, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from open_idempotency.asgi import IdempotencyMiddleware
from open_idempotency.conformance.http import Result, Target, examine
from open_idempotency.conformance.http.checks import HELD
from tests.conformance import protected, servers
from tests.conformance.looking import about, options, with_result

SERVED: dict[str, tuple[Callable[..., Any], Callable[[bool], Any]]] = {
    "asgi": (servers.asgi, protected.plain_asgi),
    "fastapi": (servers.asgi, protected.fastapi),
    "wsgi": (servers.wsgi, protected.plain_wsgi),
    "flask": (servers.wsgi, protected.flask),
}


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("required", [True, False], ids=["required", "optional"])
def test_the_middleware_passes_every_statement(name: str, required: bool) -> None:
    """H-01 to H-11, O-01 to O-03, O-05, O-06, O-08, R-01, R-02, and the statements of the draft, seen from outside."""
    serve, make = SERVED[name]
    with serve(make(required)) as url:
        findings = examine(Target(**options(url, required=required)))
    open_ones = [each for each in findings.findings if each.verdict.result is not Result.HOLDS]
    other_mode = {"missing-apart"} if required else {"missing-refused", "missing-explained"}
    assert {each.statement.id for each in open_ones} == other_mode, open_ones
    assert with_result(findings, Result.NOT_APPLICABLE) == other_mode


@pytest.mark.parametrize("name", SERVED)
def test_without_the_middleware_it_fails(name: str) -> None:
    """The key is in a header that the middleware does not read, so the statements above passed because of the
    middleware.
    """
    serve, make = SERVED[name]
    with serve(make(False)) as url:
        findings = examine(Target(**options(url, required=False, header_name="X-Not-The-Key", slow_url=None)))
    assert {"retry-result", "reuse-refused", "concurrent-once", "no-string"} <= with_result(findings, Result.FAILS)


def test_duplicates_that_wait_pass() -> None:
    """O-04, O-35: with ``wait=`` a duplicate waits, and gets the first response."""
    numbers = count(1)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/slow":
            await asyncio.sleep(HELD + 0.2)
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": str(next(numbers)).encode()})

    with servers.asgi(IdempotencyMiddleware(app, "memory://", required=True, wait=10)) as url:
        findings = examine(Target(**options(url, failing_url=None)))
    assert findings.passed, with_result(findings, Result.FAILS)
    assert "held for" in about(findings, "concurrent-conflict").verdict.seen
