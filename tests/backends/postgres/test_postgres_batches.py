"""Batches on PostgreSQL: one transaction for all commands, one winner for each key, no waiting for others' locks."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from open_idempotency.backend import (
    Busy,
    Claim,
    Complete,
    Completed,
    Fail,
    Finished,
    Get,
    Leased,
    Mismatch,
    Refusal,
    Refused,
    Release,
    SaveStage,
    Stage,
    StageSaved,
    Status,
    Withdraw,
)
from open_idempotency.backends.postgres import PostgresBackend
from open_idempotency.exceptions import BackendUnavailable, LeaseLost, RecordUnreadable
from tests.backends import holding
from tests.backends.postgres.on_postgres import PATIENCE, at_once, claim_of, leased, together
from tests.backends.postgres.test_postgres_server import SOON, waiting_until_notified
from tests.postgres_server import PostgresServer

MANY = 40


@pytest.fixture
def backend(postgres18: PostgresServer) -> Iterator[PostgresBackend]:
    """A backend on the shared server."""
    backend = PostgresBackend(postgres18.url(), timeout=30)
    yield backend
    backend.close()


@pytest.fixture
def own_url(postgres18: PostgresServer) -> str:
    """A database for this test alone, on the shared server."""
    url = postgres18.create_database(f"d{secrets.token_hex(8)}")
    PostgresBackend(url).migrate()
    return url


def transactions(server: PostgresServer, record_ids: Sequence[bytes]) -> int:
    """The number of transactions that wrote the current versions of these records."""
    with server.connect() as connection:
        row = connection.execute(
            "SELECT count(DISTINCT xmin::text), count(*) FROM open_idempotency.records WHERE record_id = ANY (%b)",
            (list(record_ids),),
        ).fetchone()
    assert row is not None
    assert row[1] == len(record_ids)
    return int(row[0])


def ids(claims: Sequence[Claim]) -> list[bytes]:
    """The ids of the records."""
    return [claim.record_id for claim in claims]


def next_transaction(server: PostgresServer) -> int:
    """The number of the next writing transaction; reading it uses none up."""
    with server.connect() as connection:
        row = connection.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint").fetchone()
        assert row is not None
        return int(row[0])


def test_what_is_asked_at_once_is_one_transaction(backend: PostgresBackend, postgres18: PostgresServer) -> None:
    """B-01, B-03: concurrent claims, then concurrent completions, with one commit each."""
    claims = [claim_of() for _ in range(MANY)]
    results = at_once(backend, [("claim", claim) for claim in claims])
    assert [result.lease.record_id for result in results] == [claim.record_id for claim in claims]
    assert transactions(postgres18, ids(claims)) == 1
    ends = [("complete", Complete(result.lease, b"response %d" % n)) for n, result in enumerate(results)]
    assert at_once(backend, ends) == [Completed()] * MANY
    assert transactions(postgres18, ids(claims)) == 1
    assert [backend.claim(claim_of(claim.record_id)) for claim in claims] == [
        Finished(b"response %d" % number) for number in range(MANY)
    ]


def test_without_coalescing_each_is_a_transaction(postgres18: PostgresServer) -> None:
    """With ``coalesce=no``."""
    backend = PostgresBackend(f"{postgres18.url()}?coalesce=no", timeout=30)
    claims = [claim_of() for _ in range(8)]
    at_once(backend, [("claim", claim) for claim in claims])
    assert transactions(postgres18, ids(claims)) == 8
    backend.close()


def test_of_one_key_many_times_in_a_batch_one_is_leased(backend: PostgresBackend, postgres18: PostgresServer) -> None:
    """I1: the other claims get Busy, or Mismatch for another fingerprint."""
    first = claim_of()
    commands = [first, claim_of(first.record_id, fingerprint=b"other")]
    commands += [claim_of(first.record_id) for _ in range(MANY)]
    before = next_transaction(postgres18)
    leased_, mismatch, *others = at_once(backend, [("claim", claim) for claim in commands])
    assert next_transaction(postgres18) == before + 1
    assert isinstance(leased_, Leased)
    assert mismatch == Mismatch()
    assert [type(other) for other in others] == [Busy] * MANY


def test_a_claim_that_was_sent_again_in_the_same_batch_is_leased_too(backend: PostgresBackend) -> None:
    """B-08: the owner gets its lease again, with the same token."""
    claim = claim_of()
    first, other, again = at_once(backend, [("claim", c) for c in (claim, claim_of(claim.record_id), claim)])
    assert isinstance(first, Leased)
    assert isinstance(other, Busy)
    assert again == first


def test_a_claim_that_was_sent_again_in_a_later_batch_is_leased_too(backend: PostgresBackend) -> None:
    """B-08."""
    claim = claim_of()
    (first,) = at_once(backend, [("claim", claim)])
    again, new = at_once(backend, [("claim", claim), ("claim", claim_of())])
    assert again == first
    assert isinstance(new, Leased)


def test_a_batch_that_only_reads_writes_nothing(backend: PostgresBackend, postgres18: PostgresServer) -> None:
    """B-11b: replays, 409 and 422 use no transaction number, so nothing is flushed to disk."""
    done, running = leased(backend), leased(backend)
    backend.complete(Complete(done, b"response"))
    commands = [
        ("claim", claim_of(done.record_id)),
        ("claim", claim_of(running.record_id)),
        ("claim", claim_of(running.record_id, fingerprint=b"other")),
    ] * 5
    before = next_transaction(postgres18)
    results = at_once(backend, commands)
    assert next_transaction(postgres18) == before
    assert [type(result) for result in results] == [Finished, Busy, Mismatch] * 5
    assert results[0] == Finished(b"response")


def test_every_verb_may_be_in_one_batch(backend: PostgresBackend, postgres18: PostgresServer) -> None:
    """B-03, B-06: each command gets its own result, of its own record."""
    staged, completed, failed, given_up, released, superseded = (leased(backend) for _ in range(6))
    new = claim_of()
    before = next_transaction(postgres18)
    results = at_once(
        backend,
        [
            ("save_stage", SaveStage(staged, Stage("charge", "k", b"frame"))),
            ("release", Release(released)),
            ("fail", Fail(failed)),
            ("complete", Complete(completed, b"response")),
            ("claim", new),
            ("fail", Fail(given_up, final=True, response=b"declined")),
            ("save_stage", SaveStage(staged, Stage("ship", "", b"second"))),
            ("claim", claim_of(completed.record_id)),
        ],
    )
    # The last command is for the record of another one, so it goes alone, after the batch.
    assert next_transaction(postgres18) == before + 1
    assert [*results[:4], *results[5:]] == [
        StageSaved(b"frame"), None, None, Completed(), None, StageSaved(b"second"), Finished(b"response"),
    ]  # fmt: skip
    assert isinstance(results[4], Leased)
    assert [stage.name for stage in backend.get(Get(staged.record_id)).stages] == ["charge", "ship"]
    assert backend.get(Get(released.record_id)) is None
    assert backend.get(Get(failed.record_id)).status is Status.FAILED
    final = backend.get(Get(given_up.record_id))
    assert (final.final, final.response) == (True, b"declined")
    assert backend.get(Get(superseded.record_id)).status is Status.IN_PROGRESS


def test_a_batch_notifies_waiting_duplicates(backend: PostgresBackend, postgres18: PostgresServer) -> None:
    """O-04: of a completion, a failure and a release, by the batch of another process."""
    other = PostgresBackend(postgres18.url(), timeout=30)
    completed, failed, released = leases = [leased(backend) for _ in range(3)]
    waiters = [waiting_until_notified(backend, lease) for lease in leases]
    at_once(
        other,
        [
            ("complete", Complete(completed, b"response")),
            ("fail", Fail(failed)),
            ("release", Release(released)),
        ],
    )
    for waiter in waiters:
        waiter.join(SOON)
    assert not any(waiter.is_alive() for waiter in waiters)
    other.close()


def test_a_lost_lease_is_reported_in_a_batch(backend: PostgresBackend) -> None:
    """B-03, I3: a stale owner changes nothing, and does not affect other commands of the batch."""
    stale = leased(backend, claim_of(lease=0.0))
    owner = leased(backend, claim_of(stale.record_id))
    fine = leased(backend)
    verbs = [
        ("complete", Complete(stale, b"late")),
        ("complete", Complete(fine, b"response")),
        ("save_stage", SaveStage(stale, Stage("late", "", b"frame"))),
        ("fail", Fail(stale)),
        ("release", Release(stale)),
    ]
    lost = at_once(backend, verbs)
    assert [type(result) for result in lost] == [LeaseLost, Completed, LeaseLost, LeaseLost, LeaseLost]
    record = backend.get(Get(stale.record_id))
    assert (record.token, record.status, record.stages) == (owner.token, Status.IN_PROGRESS, ())


def test_what_cannot_be_read_is_left_alone_by_a_batch(backend: PostgresBackend, postgres18: PostgresServer) -> None:
    """B-08b: typed error, no run, no overwrite; other commands of the batch are executed."""
    newer = [leased(backend) for _ in range(5)]
    fine = leased(backend)
    claimed, completed, staged, failed, released = newer
    with postgres18.connect() as connection:
        connection.execute(
            "UPDATE open_idempotency.records SET record_version = 2 WHERE record_id = ANY (%b)",
            ([lease.record_id for lease in newer],),
        )
    *unreadable, done = at_once(
        backend,
        [
            ("claim", claim_of(claimed.record_id)),
            ("complete", Complete(completed, b"response")),
            ("save_stage", SaveStage(staged, Stage("a", "", b"frame"))),
            ("fail", Fail(failed)),
            ("release", Release(released)),
            ("complete", Complete(fine, b"response")),
        ],
    )
    assert [type(result) for result in unreadable] == [RecordUnreadable] * len(newer)
    assert done == Completed()
    with postgres18.connect() as connection:
        connection.execute(
            "UPDATE open_idempotency.records SET record_version = 1 WHERE record_id = ANY (%b)",
            ([lease.record_id for lease in newer],),
        )
    for lease in newer:
        record = backend.get(Get(lease.record_id))
        assert (record.status, record.token, record.stages) == (Status.IN_PROGRESS, lease.token, ())


def test_a_batch_does_not_wait_for_a_row_that_somebody_holds(
    backend: PostgresBackend, postgres18: PostgresServer
) -> None:
    """B-10, I11: its owner gets an error in time, and the others of the batch a result at once."""
    held, *free = [leased(backend) for _ in range(10)]
    impatient = PostgresBackend(postgres18.url(), timeout=1.0)

    async def ask() -> list[Any]:
        awaited = impatient.to_async()
        waiting = asyncio.ensure_future(
            together(awaited, [("complete", Complete(lease, b"response")) for lease in [held, *free]])
        )
        # Concurrent callers get results too.
        while isinstance(await asyncio.to_thread(backend.claim, claim_of(free[-1].record_id)), Busy):
            await asyncio.sleep(0.01)
        assert not waiting.done()
        results = await waiting
        await awaited.close()
        return results

    with psycopg.connect(postgres18.url()) as locker:
        locker.execute("SELECT 1 FROM open_idempotency.records WHERE record_id = %b FOR UPDATE", (held.record_id,))
        refused, *others = asyncio.run(asyncio.wait_for(ask(), PATIENCE))
    assert isinstance(refused, BackendUnavailable)
    assert others == [Completed()] * len(free)
    assert transactions(postgres18, [lease.record_id for lease in free]) == 1
    impatient.close()


def test_a_batch_waits_only_shortly_for_a_record_that_somebody_is_inserting(
    backend: PostgresBackend, postgres18: PostgresServer
) -> None:
    """B-10, I11: the server refuses such a batch, and its commands are sent separately."""
    contested, *free = [claim_of() for _ in range(10)]
    impatient = PostgresBackend(postgres18.url(), timeout=1.0)
    with psycopg.connect(postgres18.url()) as inserter:
        inserter.execute(
            "SELECT open_idempotency.claim("
            "NULL, (%b, %b, 0, 0, %b, 30, 600)::open_idempotency.lease, true, true, NULL)",
            (contested.record_id, secrets.token_bytes(16), contested.fingerprint),
        )
        refused, *others = at_once(impatient, [("claim", claim) for claim in [contested, *free]])
        inserter.rollback()
    assert isinstance(refused, BackendUnavailable)
    assert [type(other) for other in others] == [Leased] * len(free)
    impatient.close()


def test_an_error_of_one_question_is_not_the_others(own_url: str) -> None:
    """B-10: the server refuses the whole statement, so each command is sent alone, with its own result."""
    with psycopg.connect(own_url, autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$"
        )
        connection.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON open_idempotency.records FOR EACH ROW"
            " WHEN (NEW.fingerprint = 'bad') EXECUTE FUNCTION public.refuse()"
        )
    backend = PostgresBackend(own_url, timeout=30)
    claims = [claim_of(), claim_of(fingerprint=b"bad"), claim_of()]
    good, bad, fine = at_once(backend, [("claim", claim) for claim in claims])
    assert isinstance(bad, BackendUnavailable)
    assert "refused" in str(bad)
    assert [type(good), type(fine)] == [Leased, Leased]
    backend.close()


def test_batches_of_several_processes_do_not_wait_for_each_other_in_a_circle(own_url: str) -> None:
    """B-10, I1: batches with the same keys in different orders do not deadlock."""
    backends = [PostgresBackend(own_url, timeout=30) for _ in range(3)]
    winners: list[bytes] = []

    async def contend(backend: PostgresBackend, record_ids: list[bytes], seed: int) -> None:
        order = random.Random(seed).sample(record_ids, len(record_ids))
        awaited = backend.to_async()
        results = await together(awaited, [("claim", claim_of(record_id)) for record_id in order])
        leases = [result.lease for result in results if isinstance(result, Leased)]
        winners.extend(lease.record_id for lease in leases)
        random.Random(seed).shuffle(leases)
        await together(awaited, [("save_stage", SaveStage(lease, Stage("a", "", b"f"))) for lease in leases])
        await together(awaited, [("complete", Complete(lease, b"response")) for lease in leases])

    async def all_rounds() -> None:
        for round_ in range(5):
            record_ids = [secrets.token_bytes(32) for _ in range(MANY)]
            contending = [contend(backend, record_ids, 10 * round_ + n) for n, backend in enumerate(backends)]
            await asyncio.wait_for(asyncio.gather(*contending), PATIENCE)
            assert sorted(winners[-MANY:]) == sorted(record_ids)
        for backend in backends:
            await backend.to_async().close()

    asyncio.run(all_rounds())
    assert len(winners) == 5 * MANY
    with psycopg.connect(own_url) as connection:
        row = connection.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").fetchone()
    assert row == (0,)


def test_a_batch_that_was_held_up_has_tokens_of_later(own_url: str) -> None:
    """B-02: an owner that claimed and released one of its records meanwhile has a lower token.

    A batch waits for a tenth of a second at most, too short a time to rely on, so it may wait for longer here.
    """
    backend = PostgresBackend(own_url, timeout=PATIENCE)
    claims = [claim_of() for _ in range(4)]
    with psycopg.connect(own_url, autocommit=True) as looking, holding.held(backend, "sync") as held:
        # There is one for each form of a claim: workers of an earlier version call theirs.
        functions = looking.execute("SELECT oid::regprocedure::text FROM pg_proc WHERE proname = 'claims'").fetchall()
        for (function,) in functions:
            looking.execute(f"ALTER FUNCTION {function} SET lock_timeout = '60s'")
        with ThreadPoolExecutor(1) as thread, held.hold(claims[2].record_id) as holder:
            batch = thread.submit(at_once, backend, [("claim", claim) for claim in claims])
            holder.wait_for_a_claim()
            waiting = "SELECT query FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = %s"
            assert "claims(" in str(looking.execute(waiting, (looking.info.dbname,)).fetchone())
            now = holder.now()
        results = batch.result(PATIENCE)
    assert [type(result) for result in results] == [Leased] * 4
    assert all(result.lease.token > now * 1_000_000 - 1 for result in results)
    records = [backend.get(Get(claim.record_id)) for claim in claims]
    assert [record.token for record in records if record] == [result.lease.token for result in results]
    assert all(record.lease_end >= now + 30 - 0.001 for record in records if record)
    backend.close()


def test_a_claim_that_comes_late_is_left_by_its_batch(backend: PostgresBackend) -> None:
    """B-08c: other claims of the batch are leased; the late one leaves no record."""
    late, *others = [claim_of() for _ in range(4)]
    backend.withdraw(Withdraw(late))
    results = at_once(backend, [("claim", claim) for claim in (others[0], late, *others[1:])])
    assert [type(result) for result in results] == [Leased, Refused, Leased, Leased]
    assert results[1] == Refused(Refusal.WITHDRAWN, 0)
    assert backend.get(Get(late.record_id)) is None
