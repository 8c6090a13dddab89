"""The contract of ``claim``: which caller gets the lease, and what every other caller gets."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from open_idempotency.backend import (
    MOST_ABOUT,
    Backend,
    Busy,
    Claim,
    Complete,
    Fail,
    Finished,
    Free,
    Freed,
    Get,
    Lease,
    Leased,
    Mismatch,
    Record,
    Refusal,
    Refused,
    Release,
    Renew,
    Renewal,
    SaveStage,
    Status,
)
from open_idempotency.conformance.support import (
    LEASE,
    TTL,
    AsyncVerbs,
    ManualClock,
    claim_of,
    existing,
    lease_of,
    leased,
    stage_of,
)
from open_idempotency.exceptions import LeaseLost

OTHER = b"\x01 another request"
Prepare = Callable[[AsyncVerbs, ManualClock, bytes], Awaitable[None]]


async def _running(verbs: AsyncVerbs, clock: ManualClock, record_id: bytes) -> None:
    await lease_of(verbs, record_id)


async def _abandoned(verbs: AsyncVerbs, clock: ManualClock, record_id: bytes) -> None:
    await lease_of(verbs, record_id)
    clock.advance(LEASE)


async def _completed(verbs: AsyncVerbs, clock: ManualClock, record_id: bytes) -> None:
    await verbs.complete(Complete(await lease_of(verbs, record_id), b"response"))


async def _failed(verbs: AsyncVerbs, clock: ManualClock, record_id: bytes) -> None:
    await verbs.fail(Fail(await lease_of(verbs, record_id)))


async def _final(verbs: AsyncVerbs, clock: ManualClock, record_id: bytes) -> None:
    await verbs.fail(Fail(await lease_of(verbs, record_id), final=True, response=b"failure"))


STATES: dict[str, Prepare] = {
    "running": _running,
    "abandoned": _abandoned,
    "completed": _completed,
    "failed": _failed,
    "final": _final,
}


class ClaimContract:
    """B-01, B-02, B-08, and the outcomes of ``claim`` behind O-02 to O-10."""

    async def test_a_free_record_is_leased(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """B-01: the first claim is attempt 1 without stages, and its lease repeats what the claim asked for."""
        c = claim_of(record_id)
        outcome = await leased(verbs, c)
        assert outcome.stages == ()
        lease = outcome.lease
        assert (lease.record_id, lease.owner, lease.fingerprint) == (record_id, c.owner, c.fingerprint)
        assert (lease.attempt, lease.duration, lease.ttl) == (1, LEASE, TTL)
        assert lease.token > 0

    async def test_a_claim_is_busy_while_the_owner_runs(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-01: the outcome reports the seconds since the claim and the seconds until the lease ends."""
        await lease_of(verbs, record_id)
        clock.advance(7)
        outcome = await verbs.claim(claim_of(record_id))
        assert isinstance(outcome, Busy)
        assert outcome.elapsed == pytest.approx(7, abs=0.001)
        assert outcome.remaining == pytest.approx(LEASE - 7, abs=0.001)

    async def test_a_claim_sent_again_by_its_owner_is_leased_again(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-08: the owner gets the same token and attempt, the stages so far, and a lease that starts now."""
        c = claim_of(record_id)
        first = await leased(verbs, c)
        await verbs.save_stage(SaveStage(first.lease, stage_of("reserve")))
        clock.advance(20)
        again = await leased(verbs, c)
        assert again.lease == first.lease
        assert again.stages == (stage_of("reserve"),)
        record = await existing(verbs, record_id)
        assert record.lease_end == pytest.approx(clock() + LEASE, abs=0.001)
        assert record.claimed_at == pytest.approx(clock() - 20, abs=0.001)

    async def test_a_claim_sent_again_after_its_lease_ended_is_still_its_owners(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-08: without a takeover this is no new attempt, even where the claim refuses takeovers."""
        c = claim_of(record_id, resume_abandoned=False, max_attempts=1)
        first = await leased(verbs, c)
        clock.advance(LEASE + 5)
        assert (await leased(verbs, c)).lease == first.lease

    async def test_a_claim_sent_again_after_a_takeover_is_not_leased(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-08, L-03: the takeover made the first owner stale."""
        c = claim_of(record_id)
        await leased(verbs, c)
        clock.advance(LEASE)
        await lease_of(verbs, record_id)
        assert isinstance(await verbs.claim(c), Busy)

    @pytest.mark.parametrize("response", [b"", b"\x00\xff\r\n", b"\x80" * 1024 * 1024], ids=["empty", "binary", "1MiB"])
    async def test_a_completed_record_returns_the_stored_bytes(
        self, verbs: AsyncVerbs, record_id: bytes, response: bytes
    ) -> None:
        """B-01, B-07, R-01: the claim itself returns the response, byte for byte, so a replay needs no other call."""
        await verbs.complete(Complete(await lease_of(verbs, record_id), response))
        assert await verbs.claim(claim_of(record_id)) == Finished(response)

    @pytest.mark.parametrize("state", STATES)
    async def test_another_request_with_the_key_changes_nothing(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes, state: str
    ) -> None:
        """O-05: another fingerprint is a mismatch in every state, also while the first request runs."""
        await STATES[state](verbs, clock, record_id)
        before = await existing(verbs, record_id)
        clock.advance(1)
        assert await verbs.claim(claim_of(record_id, fingerprint=OTHER)) == Mismatch()
        assert await existing(verbs, record_id) == before

    async def test_another_request_of_the_same_owner_is_a_mismatch(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """O-05, B-08: the fingerprint is compared even if the owner is the same."""
        c = claim_of(record_id)
        await leased(verbs, c)
        assert await verbs.claim(claim_of(record_id, owner=c.owner, fingerprint=OTHER)) == Mismatch()

    @pytest.mark.parametrize("state", ["running", "completed", "final"])
    async def test_a_refused_duplicate_changes_nothing(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes, state: str
    ) -> None:
        """B-01: a refused duplicate never changes the record."""
        await STATES[state](verbs, clock, record_id)
        before = await existing(verbs, record_id)
        clock.advance(1)
        assert not isinstance(await verbs.claim(claim_of(record_id)), Leased)
        assert await existing(verbs, record_id) == before

    async def test_an_abandoned_record_is_taken_over_with_its_stages(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-02, O-09: a takeover succeeds once the lease has ended, with a larger token and the stages in order."""
        first = await lease_of(verbs, record_id)
        stages = [stage_of("z"), stage_of("a"), stage_of("m", "2"), stage_of("m", "1")]
        for stage in stages:
            await verbs.save_stage(SaveStage(first, stage))
        clock.advance(LEASE - 0.5)
        assert isinstance(await verbs.claim(claim_of(record_id)), Busy)
        clock.advance(0.5)
        second = await leased(verbs, claim_of(record_id))
        assert second.lease.attempt == 2
        assert second.lease.token > first.token
        assert list(second.stages) == stages

    async def test_a_takeover_counts_its_time_from_itself(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """O-03: the elapsed time counts from the takeover, not from the abandoned claim."""
        await _abandoned(verbs, clock, record_id)
        await lease_of(verbs, record_id)
        clock.advance(2)
        outcome = await verbs.claim(claim_of(record_id))
        assert isinstance(outcome, Busy)
        assert outcome.elapsed == pytest.approx(2, abs=0.001)

    async def test_a_failed_record_runs_again_with_its_stages(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """O-08: the next attempt may start at once; it gets the failed attempt's stages, not its response."""
        first = await lease_of(verbs, record_id)
        await verbs.save_stage(SaveStage(first, stage_of("reserve")))
        await verbs.fail(Fail(first, response=b"failure"))
        second = await leased(verbs, claim_of(record_id))
        assert (second.lease.attempt, second.stages) == (2, (stage_of("reserve"),))
        assert second.lease.token > first.token
        record = await existing(verbs, record_id)
        assert (record.status, record.response) == (Status.IN_PROGRESS, None)

    @pytest.mark.parametrize("response", [None, b"failure"])
    async def test_a_failed_record_is_refused_if_the_claim_does_not_resume(
        self, verbs: AsyncVerbs, record_id: bytes, response: bytes | None
    ) -> None:
        """O-08: a claim that does not resume gets the number of the attempt, and its response if one is stored."""
        await verbs.fail(Fail(await lease_of(verbs, record_id), response=response))
        outcome = await verbs.claim(claim_of(record_id, resume_failed=False))
        assert outcome == Refused(Refusal.FAILED, 1, response)

    async def test_an_abandoned_record_is_refused_if_the_claim_does_not_resume(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """O-09: a claim that does not resume abandoned attempts is refused."""
        await _abandoned(verbs, clock, record_id)
        outcome = await verbs.claim(claim_of(record_id, resume_abandoned=False))
        assert outcome == Refused(Refusal.ABANDONED, 1, None)

    async def test_attempts_stop_at_max_attempts(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """O-10: ``max_attempts`` attempts run, and the next claim is refused."""
        await verbs.fail(Fail(await lease_of(verbs, record_id, max_attempts=2)))
        await verbs.fail(Fail(await lease_of(verbs, record_id, max_attempts=2)))
        outcome = await verbs.claim(claim_of(record_id, max_attempts=2))
        assert outcome == Refused(Refusal.ATTEMPTS, 2, None)

    async def test_an_abandoned_attempt_counts_as_an_attempt(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """O-10: an abandoned attempt counts towards ``max_attempts``."""
        await _abandoned(verbs, clock, record_id)
        outcome = await verbs.claim(claim_of(record_id, max_attempts=1))
        assert outcome == Refused(Refusal.ATTEMPTS, 1, None)

    async def test_a_final_failure_refuses_every_claim(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """B-01: the refusal carries the stored response."""
        await verbs.fail(Fail(await lease_of(verbs, record_id), final=True, response=b"\x00no"))
        assert await verbs.claim(claim_of(record_id)) == Refused(Refusal.FAILED, 1, b"\x00no")

    @pytest.mark.parametrize("ending", ["deleted", "released", "expired"])
    async def test_the_token_grows_after_the_record_is_gone(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes, ending: str
    ) -> None:
        """B-02: tokens grow with the backend's clock, even across a deletion; attempts start again at 1."""
        first = await lease_of(verbs, record_id)
        if ending == "deleted":
            await verbs.delete(record_id)
        elif ending == "released":
            await verbs.release(Release(first))
        clock.advance(LEASE + TTL if ending == "expired" else 1)
        second = await lease_of(verbs, record_id)
        assert second.token > first.token
        assert second.attempt == 1

    async def test_the_token_grows_while_the_clock_stands_still(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """B-02: claims in the same microsecond get different tokens."""
        tokens: list[int] = []
        for _ in range(3):
            lease = await lease_of(verbs, record_id)
            tokens.append(lease.token)
            await verbs.fail(Fail(lease))
        assert tokens[0] < tokens[1] < tokens[2]

    @pytest.mark.parametrize("raw", [b"\x00", b"\xff\xfe:{}*?[]\r\n", bytes(range(256))])
    async def test_ids_owners_and_fingerprints_are_any_bytes(
        self, verbs: AsyncVerbs, record_id: bytes, raw: bytes
    ) -> None:
        """B-07: the backend does not interpret them."""
        c = claim_of(record_id + raw, owner=raw, fingerprint=raw)
        await leased(verbs, c)
        record = await existing(verbs, record_id + raw)
        assert (record.owner, record.fingerprint) == (raw, raw)
        assert isinstance(await verbs.claim(claim_of(record_id + raw, fingerprint=raw)), Busy)

    async def test_records_do_not_touch_each_other(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """I10: a record id that extends another one names a different record."""
        await verbs.complete(Complete(await lease_of(verbs, record_id), b"one"))
        longer = await lease_of(verbs, record_id + b"\x00")
        assert longer.attempt == 1

    async def test_what_a_claim_says_about_itself_is_read_with_the_record(
        self, verbs: AsyncVerbs, record_id: bytes
    ) -> None:
        """P-01: ``about`` is any bytes; it stays while the attempt runs, saves stages, is renewed and completes."""
        about = bytes(range(MOST_ABOUT))
        lease = await lease_of(verbs, record_id, about=about)
        assert (await existing(verbs, record_id)).about == about
        await verbs.save_stage(SaveStage(lease, stage_of("charge")))
        await verbs.renew(Renew([lease]))
        assert (await existing(verbs, record_id)).about == about
        await verbs.complete(Complete(lease, b"response"))
        assert (await existing(verbs, record_id)).about == about
        assert [record.about async for record in verbs.scan() if record.record_id == record_id] == [about]

    async def test_a_claim_that_is_refused_does_not_change_what_the_record_is_about(
        self, verbs: AsyncVerbs, record_id: bytes
    ) -> None:
        """P-01: not while the record is busy, not for another request, and not for a replay."""
        lease = await lease_of(verbs, record_id, about=b"first")
        assert isinstance(await verbs.claim(claim_of(record_id, about=b"busy")), Busy)
        assert isinstance(await verbs.claim(claim_of(record_id, fingerprint=b"other", about=b"other")), Mismatch)
        await verbs.complete(Complete(lease, b"response"))
        assert isinstance(await verbs.claim(claim_of(record_id, about=b"replay")), Finished)
        assert (await existing(verbs, record_id)).about == b"first"

    @pytest.mark.parametrize("about", [b"second", b""])
    async def test_a_takeover_says_anew_what_the_record_is_about(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes, about: bytes
    ) -> None:
        """P-01: the takeover of an abandoned, failed or expired record stores its own ``about``."""
        await leased(verbs, claim_of(record_id, about=b"first"))
        clock.advance(LEASE + 1)
        lease = await lease_of(verbs, record_id, about=about)
        assert (await existing(verbs, record_id)).about == about
        await verbs.fail(Fail(lease))
        assert (await existing(verbs, record_id)).about == about
        await leased(verbs, claim_of(record_id, about=b"third"))
        assert (await existing(verbs, record_id)).about == b"third"
        clock.advance(LEASE + TTL + 1)
        await leased(verbs, claim_of(record_id, about=about))
        assert (await existing(verbs, record_id)).about == about

    async def test_each_of_many_claims_at_once_keeps_its_own_about(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """P-01: each of the claims that share a batch or a transaction is stored with its own ``about``."""
        claims = [claim_of(record_id + bytes([number]), about=b"%d" % number) for number in range(32)]
        await verbs.claim_at_once(claims)
        records = [await existing(verbs, c.record_id) for c in claims]
        assert [record.about for record in records] == [c.about for c in claims]

    async def test_of_many_claims_at_once_one_wins(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """B-01: ``claim`` is atomic."""
        outcomes = await verbs.claim_at_once([claim_of(record_id) for _ in range(64)])
        kinds = [type(outcome) for outcome in outcomes]
        assert (kinds.count(Leased), kinds.count(Busy)) == (1, 63)

    async def test_of_many_takeovers_at_once_one_wins(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-01, L-02: a takeover is atomic."""
        await _abandoned(verbs, clock, record_id)
        outcomes = await verbs.claim_at_once([claim_of(record_id) for _ in range(16)])
        winners = [outcome.lease.attempt for outcome in outcomes if isinstance(outcome, Leased)]
        assert winners == [2]

    async def test_one_claim_sent_many_times_at_once_is_one_lease(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """B-08: all copies of one claim get the same lease."""
        c = claim_of(record_id, owner=os.urandom(16))
        copies = [Claim(**{name: getattr(c, name) for name in Claim.__slots__}) for _ in range(16)]
        outcomes = await verbs.claim_at_once(copies)
        tokens = {outcome.lease.token for outcome in outcomes if isinstance(outcome, Leased)}
        assert len(outcomes) == 16
        assert len(tokens) == 1
        assert all(isinstance(outcome, Leased) for outcome in outcomes)


# The contract of ``free``: an operator frees a key, but never from an attempt unseen by the operator.

Write = Callable[[AsyncVerbs, Lease], Awaitable[object]]

_WRITES: dict[str, Write] = {
    "save_stage": lambda verbs, lease: verbs.save_stage(SaveStage(lease, stage_of("late"))),
    "complete": lambda verbs, lease: verbs.complete(Complete(lease, b"late")),
    "fail": lambda verbs, lease: verbs.fail(Fail(lease, final=True)),
    "release": lambda verbs, lease: verbs.release(Release(lease)),
}


def _seen(record: Record, *, keep_stages: bool = False, alive: bool = False) -> Free:
    return Free(record.record_id, record.token, record.status, keep_stages, alive)


async def _left_behind(verbs: AsyncVerbs, clock: ManualClock, record_id: bytes) -> Lease:
    """The lease of an attempt that has saved a stage, and whose lease has ended."""
    lease = await lease_of(verbs, record_id)
    await verbs.save_stage(SaveStage(lease, stage_of("charge")))
    clock.advance(LEASE + 1)
    return lease


class FreeContract:
    """P-20: what ``free`` changes, and what stays. Skipped for a backend without ``frees``."""

    @pytest.fixture
    def operator(self, verbs: AsyncVerbs) -> Backend:
        """The sync backend, as operators use it."""
        operator = verbs.to_sync()
        if not operator.frees:
            pytest.skip("the backend has no free()")
        return operator

    @pytest.mark.parametrize("keep_stages", [False, True])
    async def test_nothing_is_freed_where_there_is_no_record(
        self, verbs: AsyncVerbs, operator: Backend, clock: ManualClock, record_id: bytes, keep_stages: bool
    ) -> None:
        """P-20: an absent record, and one that has expired."""
        lease = await lease_of(verbs, record_id)
        seen = _seen(await existing(verbs, record_id), keep_stages=keep_stages, alive=True)
        await verbs.complete(Complete(lease, b"response"))
        clock.advance(lease.ttl + 1)
        assert operator.free(seen) is Freed.ABSENT
        assert operator.free(replace(seen, record_id=record_id[::-1])) is Freed.ABSENT

    @pytest.mark.parametrize("keep_stages", [False, True])
    async def test_a_live_attempt_is_spared(
        self, verbs: AsyncVerbs, operator: Backend, record_id: bytes, keep_stages: bool
    ) -> None:
        """P-20: unless the operator says otherwise."""
        lease = await lease_of(verbs, record_id)
        before = await existing(verbs, record_id)
        assert operator.free(_seen(before, keep_stages=keep_stages)) is Freed.ALIVE
        assert await existing(verbs, record_id) == before
        assert await verbs.renew(Renew([lease])) == [Renewal.OWNED]

    @pytest.mark.parametrize("keep_stages", [False, True])
    async def test_a_worker_that_renews_in_time_is_spared(
        self, verbs: AsyncVerbs, operator: Backend, clock: ManualClock, record_id: bytes, keep_stages: bool
    ) -> None:
        """P-20: the attempt was abandoned when it was seen, but its worker is alive."""
        lease = await _left_behind(verbs, clock, record_id)
        seen = _seen(await existing(verbs, record_id), keep_stages=keep_stages)
        await verbs.renew(Renew([lease]))
        assert operator.free(seen) is Freed.ALIVE

    @pytest.mark.parametrize("keep_stages", [False, True])
    @pytest.mark.parametrize("end", ["completed", "failed", "taken over"])
    async def test_a_record_that_has_changed_since_is_left_alone(
        self,
        verbs: AsyncVerbs,
        operator: Backend,
        clock: ManualClock,
        record_id: bytes,
        keep_stages: bool,
        end: str,
    ) -> None:
        """P-20: token and status are compared with those that were seen, in one atomic call."""
        lease = await _left_behind(verbs, clock, record_id)
        seen = _seen(await existing(verbs, record_id), keep_stages=keep_stages, alive=True)
        if end == "completed":
            await verbs.complete(Complete(lease, b"response"))
        elif end == "failed":
            await verbs.fail(Fail(lease))
        else:
            await lease_of(verbs, record_id)
        before = await existing(verbs, record_id)
        assert operator.free(seen) is Freed.CHANGED
        assert await existing(verbs, record_id) == before

    async def test_a_completed_record_is_forgotten_and_never_reopened(
        self, verbs: AsyncVerbs, operator: Backend, record_id: bytes
    ) -> None:
        """P-20: its response would be lost."""
        await verbs.complete(Complete(await lease_of(verbs, record_id), b"response"))
        record = await existing(verbs, record_id)
        assert operator.free(_seen(record, keep_stages=True)) is Freed.CHANGED
        assert await verbs.claim(claim_of(record_id)) == Finished(b"response")
        assert operator.free(_seen(record)) is Freed.DONE
        assert await verbs.get(Get(record_id)) is None

    async def test_a_forgotten_record_is_gone_with_its_stages(
        self, verbs: AsyncVerbs, operator: Backend, clock: ManualClock, record_id: bytes
    ) -> None:
        """P-20: the next claim is a first attempt, with a larger token."""
        lease = await _left_behind(verbs, clock, record_id)
        assert operator.free(_seen(await existing(verbs, record_id))) is Freed.DONE
        assert await verbs.get(Get(record_id)) is None
        again = await leased(verbs, claim_of(record_id))
        assert (again.lease.attempt, again.stages) == (1, ())
        assert again.lease.token > lease.token

    @pytest.mark.parametrize("state", ["alive", "abandoned", "failed", "final", "again"])
    async def test_a_freed_key_is_claimed_at_once_with_its_stages(
        self, verbs: AsyncVerbs, operator: Backend, clock: ManualClock, record_id: bytes, state: str
    ) -> None:
        """P-20: whatever the policy says about failed and abandoned attempts, and about their number."""
        lease = await lease_of(verbs, record_id)
        await verbs.save_stage(SaveStage(lease, stage_of("charge")))
        if state in ("failed", "final"):
            await verbs.fail(Fail(lease, state == "final", b"failed response"))
        elif state != "alive":
            clock.advance(LEASE + 1)
        if state == "again":
            await lease_of(verbs, record_id)
        seen = _seen(await existing(verbs, record_id), keep_stages=True, alive=True)
        assert operator.free(seen) is Freed.DONE
        record = await existing(verbs, record_id)
        assert (record.status, record.attempt, record.final, record.response) == (Status.FAILED, 0, False, None)
        strict = claim_of(record_id, resume_failed=False, resume_abandoned=False, max_attempts=1)
        outcome = await verbs.claim(strict)
        assert isinstance(outcome, Leased)
        assert (outcome.lease.attempt, outcome.stages) == (1, (stage_of("charge"),))
        assert outcome.lease.token > record.token > seen.token

    async def test_a_freed_record_stays_without_stages(
        self, verbs: AsyncVerbs, operator: Backend, record_id: bytes
    ) -> None:
        """P-20: so that its old owner notices that it was fenced off, and does not create the record again."""
        await lease_of(verbs, record_id)
        operator.free(_seen(await existing(verbs, record_id), keep_stages=True, alive=True))
        assert (await existing(verbs, record_id)).status is Status.FAILED

    @pytest.mark.parametrize("write", _WRITES)
    @pytest.mark.parametrize("stages", [0, 1])
    async def test_the_worker_that_was_taken_for_dead_is_fenced_off(
        self, verbs: AsyncVerbs, operator: Backend, record_id: bytes, write: str, stages: int
    ) -> None:
        """P-20: it can neither renew nor write, before and after the next claim."""
        lease = await lease_of(verbs, record_id)
        if stages:
            await verbs.save_stage(SaveStage(lease, stage_of("charge")))
        operator.free(_seen(await existing(verbs, record_id), keep_stages=True, alive=True))
        for _ in range(2):
            before = await existing(verbs, record_id)
            assert await verbs.renew(Renew([lease])) == [Renewal.LOST]
            with pytest.raises(LeaseLost):
                await _WRITES[write](verbs, lease)
            assert await existing(verbs, record_id) == before
            await verbs.claim(claim_of(record_id))

    async def test_operators_find_records_by_the_beginning_of_their_ids(
        self, verbs: AsyncVerbs, operator: Backend, record_id: bytes
    ) -> None:
        """B-09: all live records with this beginning, and no others."""
        neighbour = record_id[:6] + record_id[6:][::-1]
        for each in (record_id, neighbour):
            await lease_of(verbs, each)
        assert set(operator.ids(record_id[:6])) == {record_id, neighbour}
        assert {record_id, neighbour} <= set(operator.ids())
        assert list(operator.ids(record_id)) == [record_id]
        assert list(operator.ids(record_id[:6] + b"\0\0\0\0")) == []
        operator.delete(neighbour)
        assert list(operator.ids(record_id[:6])) == [record_id]

    async def test_operators_read_the_clock_that_decides(self, operator: Backend, clock: ManualClock) -> None:
        """B-09: ages and leases are measured by it."""
        before = operator.now()
        clock.advance(5)
        assert operator.now() == pytest.approx(before + 5, abs=0.001)
