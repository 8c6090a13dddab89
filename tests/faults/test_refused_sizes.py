"""Row 24: the server refuses a response for its size, although the policy would store it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from open_idempotency import idem
from open_idempotency.events import BackendFailed
from tests.faults.effects import Effects
from tests.faults.handlers import Steps
from tests.faults.records import on_redis
from tests.faults.site import BRISK, Order, Worker
from tests.http.behaviours import Behaviour, Call, Reply, Run
from tests.servers import Server

pytestmark = on_redis
LARGE = bytes(1_500_000)


@pytest.fixture(params=["reported", "not reported"])
def url(request: pytest.FixtureRequest, backend_kind: str) -> Iterator[str]:
    """A server with the lowest possible limit, which the client can or cannot read."""
    server = Server(backend_kind, "--proto-max-bulk-len", "1mb").start()
    try:
        with server.connect() as operator:
            operator.execute_command("ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all", "-config")
        reported = request.param == "reported"
        yield server.url if reported else server.url.replace("//", "//app:secret@")
    finally:
        server.stop()


def _large(effects: Effects) -> Behaviour:
    def handler(_: Call) -> Steps:
        yield Run("order", lambda: effects.add(f"run {idem.attempt}"))
        return Reply(201, [("Location", "/orders/1")], LARGE)

    return handler


@pytest.mark.fault("response over the server's limit", row=24, invariants=("I2", "I4", "I6"))
def test_a_response_that_the_server_refuses_for_its_size_does_not_run_again(
    url: str, effects: Effects, interface: str
) -> None:
    """B-17, O-11: the client gets it whole; a retry gets 409 with its status and location, and the reason is logged."""
    with Worker(interface, f"{url}?{BRISK}", max_response_bytes=4_000_000) as worker:
        order = Order(_large(effects))
        first = worker.post(order)
        assert (first.status, first.body, first.unrecorded) == (201, LARGE, False)
        assert worker.saw(BackendFailed)
        for _ in range(2):
            again = worker.post(order)
            problem = json.loads(again.body)
            assert (again.status, problem["type"].rpartition(":")[2]) == (409, "not-replayable")
            assert (problem["original_status"], problem["location"]) == (201, "/orders/1")
    assert effects.all() == ["run 1"]
