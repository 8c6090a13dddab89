"""The checkout for agents against the conformance runner, ACP and UCP; and the recommendations of ACP's section 6.8."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from open_idempotency.conformance.http import Result, Target, examine
from open_idempotency.conformance.http.cli import main
from tests.conformance import servers
from tests.conformance.looking import with_result

ORDER = json.dumps({"items": [{"id": "shirt", "quantity": 1}], "currency": "eur"}).encode()
PATHS = {"acp": "/checkout_sessions", "ucp": "/checkout-sessions"}


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example in a new folder, with enough goods for a run."""
    for name in [name for name in sys.modules if name.startswith("examples.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv("SHOP_FOLDER", str(tmp_path))
    monkeypatch.setenv("SHOP_DATABASE", f"sqlite:///{tmp_path / 'shop.db'}")
    monkeypatch.setenv("IDEMPOTENCY_BACKEND", "memory://")
    from examples import agentic_checkout

    return agentic_checkout


def _with_more(example: Any, protocol: str) -> Any:
    """The application with further routes that a run needs, behind the same middleware."""
    app = example.make_app(protocol, "memory://")
    numbers = count(1)

    async def other() -> dict[str, int]:
        return {"number": next(numbers)}

    async def slow() -> dict[str, int]:
        await asyncio.sleep(1.0)  # what is measured: a request that is in flight for a second
        return {"number": next(numbers)}

    async def failing() -> Any:
        from fastapi.responses import JSONResponse

        return JSONResponse({"number": next(numbers)}, 503)

    app.post("/other", status_code=201)(other)
    app.post("/slow", status_code=201)(slow)
    app.post("/failing")(failing)
    return app


def _target(protocol: str, url: str) -> dict[str, Any]:
    return {
        "url": url + PATHS[protocol],
        "profile": protocol,
        "data": ORDER,
        "other_data": ORDER.replace(b"1}", b"2}"),
        "headers": (("Authorization", "Bearer a"),),
        "other_caller": (("Authorization", "Bearer b"),),
        "slow_url": f"{url}/slow",
        "failing_url": f"{url}/failing",
        "other_url": f"{url}/other",
        "required": protocol == "acp",
    }


@pytest.mark.parametrize("protocol", PATHS)
def test_the_checkout_holds_every_statement_of_its_protocol(example: Any, protocol: str) -> None:
    """H-21, O-37, O-39, O-40: key required on each POST, scope, replay header, 400, 409 and 422, no 5xx stored."""
    with servers.asgi(_with_more(example, protocol)) as url:
        findings = examine(Target(**_target(protocol, url)))
    wrong = [(each.statement.id, each.verdict) for each in findings.findings if each.verdict.result is not Result.HOLDS]
    assert wrong == []


@pytest.mark.parametrize(("served", "asked"), [("acp", "ucp"), ("ucp", "acp")])
def test_the_two_protocols_are_distinguished(example: Any, served: str, asked: str) -> None:
    """O-40: requests that one protocol allows fail under the other, so a passing run is significant."""
    with servers.asgi(_with_more(example, served)) as url:
        target = {**_target(served, url), "profile": asked}
        failed = with_result(examine(Target(**target)), Result.FAILS)
    expected = {"ucp": {"raw-bytes", "reuse-refused"}, "acp": {"same-value", "reuse-refused", "echo", "in-flight"}}
    assert expected[asked] <= failed


def test_the_command_takes_the_profile(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """O-40: ``--profile acp``; statements of another profile cannot be skipped."""
    with servers.asgi(_with_more(example, "acp")) as url:
        options = ["--header", "Authorization: Bearer a", "--data", ORDER.decode(), "--profile", "acp"]
        assert main([url + PATHS["acp"], *options]) == 0
        assert "the Agentic Commerce Protocol, section 6" in capsys.readouterr().out
        assert main([url + PATHS["acp"], *options, "--skip", "string-taken"]) == 2


def test_a_worker_that_dies_after_the_charge_is_resumed_and_the_card_is_charged_once(tmp_path: Path) -> None:
    """S-04, S-06: recovery points, and the order in one transaction with its response (ACP 6.8)."""
    environment = {
        **os.environ,
        "SHOP_FOLDER": str(tmp_path),
        "SHOP_DATABASE": f"sqlite:///{tmp_path / 'shop.db'}",
        "IDEMPOTENCY_BACKEND": f"sqlite:///{tmp_path / 'idempotency.db'}",
        "IDEMPOTENCY_LEASE": "7",
        "PROVIDER_LATENCY": "0",
    }
    ran = subprocess.run(
        [sys.executable, "-c", _KILLED], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == -9, ran.stderr
    again = subprocess.run(
        [sys.executable, "-c", _RETRIED], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert again.returncode == 0, again.stderr
    session = json.loads(again.stdout.splitlines()[-1])
    assert session["status"] == "completed"
    with closing(sqlite3.connect(tmp_path / "provider.db")) as book:
        assert book.execute("SELECT count(*) FROM book WHERE outcome = 'charged'").fetchone() == (1,)
    with closing(sqlite3.connect(tmp_path / "shop.db")) as shop:
        assert shop.execute("SELECT count(*) FROM receipts").fetchone() == (1,)


_SEND = """
import asyncio, json, os, pathlib, signal
import httpx
from examples import agentic_checkout as example

async def call(client, path, key, body):
    headers = {"Authorization": "Bearer a", "Idempotency-Key": key}
    return await client.post(path, headers=headers, json=body)

async def main():
    async with example.lifespan(example.app):
        transport = httpx.ASGITransport(example.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            order = {"items": [{"id": "shirt", "quantity": 1}]}
            made = await call(client, "/checkout_sessions", "create-0123456789", order)
            path = "/checkout_sessions/" + made.json()["id"] + "/complete"
            pay = {"token": "tok_visa"}
"""
_KILLED = (
    _SEND
    + """
            charge = example.provider.charge_async
            async def charge_and_die(*args):
                await charge(*args)
                os.kill(os.getpid(), signal.SIGKILL)
            example.provider.charge_async = charge_and_die
            await call(client, path, "complete-0123456789", pay)
asyncio.run(main())
"""
)
_RETRIED = (
    _SEND
    + """
            reply = await call(client, path, "complete-0123456789", pay)
            while reply.status_code == 409:  # until the lease of the dead worker ends
                assert reply.json()["code"] == "idempotency_in_flight"
                await asyncio.sleep(int(reply.headers["retry-after"]))
                reply = await call(client, path, "complete-0123456789", pay)
            replay = await call(client, path, "complete-0123456789", pay)
            assert replay.headers["idempotent-replayed"] == "true" and replay.content == reply.content
            print(reply.text)
asyncio.run(main())
"""
)
