"""Log messages about a failed backend: enough for an operator to act, and no data of a request."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import httpx
import pytest

from open_idempotency import events
from open_idempotency.asgi import IdempotencyMiddleware
from open_idempotency.exceptions import BackendUnavailable


def test_the_log_names_the_command_that_makes_missing_tables(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bad input: the operator sees what to do, and the client sees nothing of it."""
    app = IdempotencyMiddleware(_never, f"sqlalchemy+sqlite:///{tmp_path}/none.db")
    with caplog.at_level(logging.WARNING, "open_idempotency"):
        response = asyncio.run(_posted(app))
    assert response.status_code == 503
    assert "migrate" not in response.text
    assert "run `open-idempotency migrate`" in caplog.text


def test_what_a_database_says_is_cut_to_its_first_line() -> None:
    """Later lines of the message may quote the row."""
    error = BackendUnavailable("no room\nDETAIL: Failing row contains (secret)")
    error.__cause__ = OSError("full")
    event = events.BackendFailed.of("0123456789ab", "claim", error)
    assert event == events.BackendFailed("0123456789ab", "claim", "OSError", "no room")


@pytest.mark.parametrize(
    ("said", "reported"),
    [("a\x1b[2Jb\rc", "a?[2Jb?c"), ("x" * 1000, "x" * 300)],
    ids=["control characters", "too long"],
)
def test_what_a_database_says_fits_into_a_line_of_a_log(said: str, reported: str) -> None:
    """This prevents log injection."""
    assert events.BackendFailed.of("0123456789ab", "claim", BackendUnavailable(said)).detail == reported


async def _posted(app: IdempotencyMiddleware) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:
        return await client.post("/charges", headers={"Idempotency-Key": "8e03978e-40d5-43e8-bc93-6894a57f9324"})


async def _never(scope: object, receive: object, send: object) -> None:
    raise AssertionError("it must not run")
