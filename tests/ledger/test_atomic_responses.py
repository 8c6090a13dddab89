"""A whole response in the application's transaction (S-06), for each kind of ``tx=``.

See also the unit and proof tests.
"""

from __future__ import annotations

import pytest

from open_idempotency import AlreadyCommitted, ConfigurationError, LeaseLost, idem
from open_idempotency._core.models import Response
from tests.ledger.databases import AWAITED, BLOCKING, INSERT, Database, Open
from tests.unit.stages.stage_client import Client

RESPONSE = Response(201, [(b"content-type", b"text/plain")], b"placed")


def order(opened: Open, response: Response = RESPONSE) -> None:
    """Insert one order and respond, in one atomic block."""
    with idem.atomic(opened.tx) as block:
        opened.execute(INSERT)
        block.respond(response)


def lose_record(client: Client, attempt: object) -> None:
    """Delete the record, as a flushed cache does."""
    lease = getattr(attempt, "lease", None)
    assert lease is not None
    client.engine.backend.delete(lease.record_id)


def test_a_committed_response_is_the_response_although_the_record_is_lost(
    client: Client, kind: str, database: Database
) -> None:
    """S-06: the retry gets the committed response, and nothing runs again."""
    with client.request() as attempt, BLOCKING[kind][1](database) as opened:
        order(opened)
    lose_record(client, attempt)
    with client.request(), pytest.raises(AlreadyCommitted), BLOCKING[kind][1](database) as opened:
        order(opened)
    assert database.orders() == 1


def test_a_stage_in_a_transaction_notices_the_response_too(client: Client, kind: str, database: Database) -> None:
    """S-06: a stage with ``tx=`` stops the retry before the view comes to its atomic block."""
    with client.request() as attempt, BLOCKING[kind][1](database) as opened:
        order(opened)
    lose_record(client, attempt)
    with client.request(), pytest.raises(AlreadyCommitted), BLOCKING[kind][1](database) as opened:
        idem.run("notify", lambda: opened.execute(INSERT), tx=opened.tx)
    assert database.orders() == 1


def test_the_attempt_that_responded_may_go_on(client: Client, kind: str, database: Database) -> None:
    """S-06: a committed response does not stop the attempt that made it."""
    with client.request():
        with BLOCKING[kind][1](database) as opened:
            order(opened)
        with BLOCKING[kind][1](database) as opened, idem.stage("notify", tx=opened.tx) as stage:
            stage.save("done")
        assert stage.value == "done"


def test_a_rolled_back_response_is_none(client: Client, kind: str, database: Database) -> None:
    """S-06: after a rollback the retry runs."""

    def fail(_: object) -> None:
        raise ValueError

    with client.request(), pytest.raises(ValueError), BLOCKING[kind][1](database) as opened:
        fail(order(opened))
    with client.request(), BLOCKING[kind][1](database) as opened:
        order(opened)
    assert database.orders() == 1


def test_a_response_that_is_not_kept_is_not_in_the_ledger(client: Client, kind: str, database: Database) -> None:
    """S-06: 409 is never stored, so the retry runs."""
    for _ in range(2):
        with client.request(), BLOCKING[kind][1](database) as opened:
            order(opened, Response(409, [], b"not now"))
    assert database.orders() == 2


@pytest.mark.parametrize("kind", ["sqlite3", "psycopg"])
def test_a_stale_worker_that_commits_in_the_middle_does_not_keep_its_response(
    client: Client, kind: str, database: Database
) -> None:
    """S-05, I3: the first commit releases the fence's lock, so the token is compared once more."""
    with client.request() as stale:
        pass

    def commit_in_the_middle(opened: Open) -> None:
        with idem.atomic(opened.tx) as block:
            opened.tx.commit()
            with client.request(), BLOCKING[kind][1](database) as other:
                order(other)
            opened.execute(INSERT)
            block.respond(Response(201, [], b"stale"))

    with client.bound(stale), pytest.raises(LeaseLost), BLOCKING[kind][1](database) as opened:
        commit_in_the_middle(opened)
    assert stale.lost
    assert database.orders() == 1


@pytest.mark.parametrize("kind", ["sqlite3", "psycopg"])
def test_a_block_that_a_frozen_worker_enters_asks_whose_the_lease_is(
    client: Client, kind: str, database: Database
) -> None:
    """S-07, L-03: the block checks the lease, since the ledger has no entry of the attempt that took over."""
    with client.request() as stale:
        pass
    with client.request():
        stale.sure_until = 0.0
        with client.bound(stale), pytest.raises(LeaseLost), BLOCKING[kind][1](database) as opened:
            order(opened)
    assert database.orders() == 0


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_awaited_a_committed_response_is_the_response(
    client: Client, awaited_kind: str, awaited_database: Database
) -> None:
    """S-06."""

    async def once() -> None:
        async with AWAITED[awaited_kind][1](awaited_database) as opened, idem.atomic(opened.tx) as block:
            await opened.execute(INSERT)
            block.respond(RESPONSE)

    with client.request() as attempt:
        await once()
    lose_record(client, attempt)
    with client.request(), pytest.raises(AlreadyCommitted):
        await once()
    assert awaited_database.orders() == 1


# A block without a response


def silent(opened: Open) -> None:
    """A view that returns before it responds in its block."""
    with idem.atomic(opened.tx):
        opened.execute(INSERT)


@pytest.mark.parametrize("key", [b"0123456789abcdef", b""], ids=["", "without a key"])
def test_a_block_that_ends_without_a_response_is_reported_before_the_commit(
    client: Client, kind: str, database: Database, key: bytes
) -> None:
    """S-06: its rows would commit alone, and a retry would insert them again. Raised with and without a key."""
    reported = pytest.raises(ConfigurationError, match=r"block\.respond\(response\)")
    with client.request(key=key), reported, BLOCKING[kind][1](database) as opened:
        silent(opened)
    assert database.orders() == 0


def test_a_block_without_a_response_may_discard_it(client: Client, kind: str, database: Database) -> None:
    """S-06: ``discard`` ends a block without a response, and without an error."""
    with client.request(), BLOCKING[kind][1](database) as opened, idem.atomic(opened.tx):
        idem.discard()


def test_what_a_block_raises_is_what_is_raised(client: Client, kind: str, database: Database) -> None:
    """S-06: the view's own error is raised, not the one for a missing response."""

    def fail(opened: Open) -> None:
        with idem.atomic(opened.tx):
            raise ZeroDivisionError

    with client.request(), pytest.raises(ZeroDivisionError), BLOCKING[kind][1](database) as opened:
        fail(opened)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_awaited_a_block_that_ends_without_a_response_is_reported(
    client: Client, awaited_kind: str, awaited_database: Database
) -> None:
    """S-06."""
    with client.request(), pytest.raises(ConfigurationError, match=r"idem\.discard\(\)"):
        async with AWAITED[awaited_kind][1](awaited_database) as opened, idem.atomic(opened.tx):
            await opened.execute(INSERT)
    assert awaited_database.orders() == 0
