"""A stale worker sends the response that it has committed, rather than 409 (S-06c)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from open_idempotency import AlreadyCommitted, LeaseLost, idem
from open_idempotency._core.admission import Intake, admit
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.models import Response
from open_idempotency._core.settlement import Fate, abort, finish
from open_idempotency._engine.engine import new_owner
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.exceptions import BackendUnavailable
from tests.ledger.databases import AWAITED, BLOCKING, INSERT, Database, Open
from tests.unit.builders import Clock, body_of, request_of
from tests.unit.stages.stage_client import KEY, Client

LEASE = 30.0
PLACED = Response(201, [(b"x-order", b"1")], b"placed")


class FailingBackend(MemoryBackend):
    """A backend whose reads can be made to fail."""

    away = False

    def get(self, c: Any, /) -> Any:
        """Fail when the new owner's response is read."""
        if self.away:
            raise BackendUnavailable("away")
        return super().get(c)


class Site:
    """A client, and a manual clock that ends leases."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.backend = FailingBackend(clock=self.clock)
        self.client = Client(backend=self.backend, lease=LEASE, record_within=0.01)

    def take_over(self) -> Attempt:
        """Let a retry take over after the lease; its attempt."""
        self.clock.now += LEASE + 1
        intake = Intake(request_of(), [(b"idempotency-key", KEY)], new_owner(), lambda: None, lambda: body_of(b"{}"))
        attempt = self.client.engine.sync.run(admit(intake, self.client.engine.policy))
        assert isinstance(attempt, Attempt)
        return attempt

    def finish(self, attempt: Attempt, response: Response = PLACED) -> Fate | Response:
        """Finish an attempt with a response; its fate."""
        return self.client.engine.sync.run(finish(attempt, response))

    def abort(self, attempt: Attempt, error: BaseException) -> Response:
        """Abort an attempt with an error; the response that is sent."""
        found = self.client.engine.sync.run(abort(attempt, error))
        assert isinstance(found, Response)
        return found


@pytest.fixture
def site() -> Site:
    """A site for each test."""
    return Site()


def order(opened: Open) -> None:
    """Insert an order and respond."""
    with idem.atomic(opened.tx) as block:
        opened.execute(INSERT)
        block.respond(PLACED)


def is_superseded(response: Fate | Response) -> bool:
    """Whether it is the 409 of L-03, which is sent if no attempt has responded."""
    return isinstance(response, Response) and response.status == 409


def test_a_stale_worker_whose_commit_counted_sends_its_response(site: Site, kind: str, database: Database) -> None:
    """S-06c: the new owner finds the same response in the ledger and replays it."""
    with site.client.request() as stale:
        with BLOCKING[kind][1](database) as opened:
            order(opened)
        owner = site.take_over()
        assert site.finish(stale) is Fate.KEPT
    with site.client.bound(owner):
        with pytest.raises(AlreadyCommitted) as raised, BLOCKING[kind][1](database) as opened:
            order(opened)
        again = site.abort(owner, raised.value)
    assert (again.status, again.body) == (201, b"placed")
    assert database.orders() == 1


def test_a_stale_worker_that_is_stopped_behind_its_commit_sends_its_response(
    site: Site, kind: str, database: Database
) -> None:
    """S-06c, S-07: for example by its next stage."""
    with site.client.request() as stale:
        with BLOCKING[kind][1](database) as opened:
            order(opened)
        site.take_over()
        with pytest.raises(LeaseLost) as raised:
            idem.save_stage("notified")
        response = site.abort(stale, raised.value)
    assert (response.status, response.body) == (201, b"placed")


def test_the_new_owners_response_comes_first(site: Site, kind: str, database: Database) -> None:
    """L-03: if it is recorded, the stale worker sends it."""
    with site.client.request() as stale:
        with BLOCKING[kind][1](database) as opened:
            order(opened)
        owner = site.take_over()
        assert site.finish(owner) is Fate.KEPT
        response = site.finish(stale)
    assert isinstance(response, Response)
    assert (response.status, (b"idempotent-replayed", b"true") in response.headers) == (201, True)


def test_a_stale_worker_whose_records_cannot_be_read_sends_its_response(
    site: Site, kind: str, database: Database
) -> None:
    """S-06c: rather than 503."""
    with site.client.request() as stale:
        with BLOCKING[kind][1](database) as opened:
            order(opened)
        site.take_over()
        site.backend.away = True
        assert site.finish(stale) is Fate.KEPT


#: those that report a rollback
REPORTED = [name for name in BLOCKING if "psycopg" not in name and "Django" not in name]


@pytest.mark.parametrize("kind", REPORTED)
def test_a_stale_worker_whose_rows_were_rolled_back_gets_409(site: Site, kind: str, database: Database) -> None:
    """L-03: its response will not be the final one."""
    with site.client.request() as stale:
        with BLOCKING[kind][1](database) as opened:
            order(opened)
            opened.tx.rollback()
        site.take_over()
        assert is_superseded(site.finish(stale))
    assert database.orders() == 0


def test_a_stale_worker_that_returns_something_else_sends_what_it_has_committed(
    site: Site, new_database: Callable[[str], Database]
) -> None:
    """S-06c: a view may turn ``LeaseLost`` into an error response."""
    database = new_database("sqlite")
    database.make_tables()
    with site.client.request() as stale:
        with BLOCKING["session on SQLite"][1](database) as opened:
            order(opened)
        site.take_over()
        response = site.finish(stale, Response(500, [], b"error"))
    assert isinstance(response, Response)
    assert (response.status, response.body) == (201, b"placed")


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_awaited_a_stale_worker_whose_commit_counted_sends_its_response(
    site: Site, awaited_kind: str, awaited_database: Database
) -> None:
    """S-06c."""
    with site.client.request() as stale:
        async with AWAITED[awaited_kind][1](awaited_database) as opened, idem.atomic(opened.tx) as block:
            await opened.execute(INSERT)
            block.respond(PLACED)
        site.take_over()
        assert await site.client.engine.aio.run(finish(stale, PLACED)) is Fate.KEPT
        response = await site.client.engine.aio.run(abort(stale, LeaseLost("taken over")))
    assert isinstance(response, Response)
    assert (response.status, response.body) == (201, b"placed")
    assert await asyncio.to_thread(awaited_database.orders) == 1
