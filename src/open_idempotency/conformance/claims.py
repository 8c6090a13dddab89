"""The contract of ``claim``: who gets a lease, and what everybody else is told."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

import pytest

from open_idempotency.backend import (
    Busy,
    Claim,
    Complete,
    Fail,
    Finished,
    Leased,
    Mismatch,
    Refusal,
    Refused,
    Release,
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
    """B-01, B-02, B-08 and the answers behind O-02 to O-10."""

    async def test_a_free_record_is_leased(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """B-01: attempt 1, no stages, and the lease says what was asked for."""
        c = claim_of(record_id)
        answer = await leased(verbs, c)
        assert answer.stages == ()
        lease = answer.lease
        assert (lease.record_id, lease.owner, lease.fingerprint) == (record_id, c.owner, c.fingerprint)
        assert (lease.attempt, lease.duration, lease.ttl) == (1, LEASE, TTL)
        assert lease.token > 0

    async def test_while_the_owner_runs_others_are_told_since_when(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-01: in progress, with the time that has passed and that remains of the lease."""
        await lease_of(verbs, record_id)
        clock.advance(7)
        answer = await verbs.claim(claim_of(record_id))
        assert isinstance(answer, Busy)
        assert answer.elapsed == pytest.approx(7, abs=0.001)
        assert answer.remaining == pytest.approx(LEASE - 7, abs=0.001)

    async def test_a_claim_sent_again_by_its_owner_is_leased_again(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-08: the same token and attempt, the stages so far, and a lease that starts anew."""
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
        """B-08: nobody took it over, so it is no new attempt, even where takeovers are refused."""
        c = claim_of(record_id, resume_abandoned=False, max_attempts=1)
        first = await leased(verbs, c)
        clock.advance(LEASE + 5)
        assert (await leased(verbs, c)).lease == first.lease

    async def test_a_claim_sent_again_after_a_takeover_is_not_leased(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-08, L-03: the record has another owner by now."""
        c = claim_of(record_id)
        await leased(verbs, c)
        clock.advance(LEASE)
        await lease_of(verbs, record_id)
        assert isinstance(await verbs.claim(c), Busy)

    @pytest.mark.parametrize("response", [b"", b"\x00\xff\r\n", b"\x80" * 1024 * 1024], ids=["empty", "binary", "1MiB"])
    async def test_a_completed_record_answers_with_the_same_bytes(
        self, verbs: AsyncVerbs, record_id: bytes, response: bytes
    ) -> None:
        """B-01, B-07, R-01: the response is opaque, and a replay needs no other call."""
        await verbs.complete(Complete(await lease_of(verbs, record_id), response))
        assert await verbs.claim(claim_of(record_id)) == Finished(response)

    @pytest.mark.parametrize("state", STATES)
    async def test_another_request_with_the_key_changes_nothing(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes, state: str
    ) -> None:
        """O-05: a mismatch in every state, also while the first still runs."""
        await STATES[state](verbs, clock, record_id)
        before = await existing(verbs, record_id)
        clock.advance(1)
        assert await verbs.claim(claim_of(record_id, fingerprint=OTHER)) == Mismatch()
        assert await existing(verbs, record_id) == before

    async def test_another_request_of_the_same_owner_is_a_mismatch(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """O-05, B-08: being the owner does not make it the same request."""
        c = claim_of(record_id)
        await leased(verbs, c)
        assert await verbs.claim(claim_of(record_id, owner=c.owner, fingerprint=OTHER)) == Mismatch()

    @pytest.mark.parametrize("state", ["running", "completed", "final"])
    async def test_a_refused_duplicate_changes_nothing(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes, state: str
    ) -> None:
        """SPEC section 4: a refused duplicate never changes the record."""
        await STATES[state](verbs, clock, record_id)
        before = await existing(verbs, record_id)
        clock.advance(1)
        assert not isinstance(await verbs.claim(claim_of(record_id)), Leased)
        assert await existing(verbs, record_id) == before

    async def test_an_abandoned_record_is_taken_over_with_its_stages(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-02, O-09: at the lease's end, not before; the next attempt, a larger token, stages in order."""
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
        """O-03: the elapsed time is that of the attempt which runs."""
        await _abandoned(verbs, clock, record_id)
        await lease_of(verbs, record_id)
        clock.advance(2)
        answer = await verbs.claim(claim_of(record_id))
        assert isinstance(answer, Busy)
        assert answer.elapsed == pytest.approx(2, abs=0.001)

    async def test_a_failed_record_runs_again_with_its_stages(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """O-08: at once, as the next attempt, with the failed attempt's stages and without its response."""
        first = await lease_of(verbs, record_id)
        await verbs.save_stage(SaveStage(first, stage_of("reserve")))
        await verbs.fail(Fail(first, response=b"failure"))
        second = await leased(verbs, claim_of(record_id))
        assert (second.lease.attempt, second.stages) == (2, (stage_of("reserve"),))
        assert second.lease.token > first.token
        record = await existing(verbs, record_id)
        assert (record.status, record.response) == (Status.IN_PROGRESS, None)

    @pytest.mark.parametrize("response", [None, b"failure"])
    async def test_a_failed_record_is_refused_where_nobody_resumes_it(
        self, verbs: AsyncVerbs, record_id: bytes, response: bytes | None
    ) -> None:
        """O-08: on_failed other than resume is told the attempt, and the answer if one is kept."""
        await verbs.fail(Fail(await lease_of(verbs, record_id), response=response))
        answer = await verbs.claim(claim_of(record_id, resume_failed=False))
        assert answer == Refused(Refusal.FAILED, 1, response)

    async def test_an_abandoned_record_is_refused_where_nobody_resumes_it(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """O-09: on_abandoned other than resume."""
        await _abandoned(verbs, clock, record_id)
        answer = await verbs.claim(claim_of(record_id, resume_abandoned=False))
        assert answer == Refused(Refusal.ABANDONED, 1, None)

    async def test_the_last_attempt_is_the_one_that_was_allowed(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """O-10: max_attempts attempts run, one more does not."""
        await verbs.fail(Fail(await lease_of(verbs, record_id, max_attempts=2)))
        await verbs.fail(Fail(await lease_of(verbs, record_id, max_attempts=2)))
        answer = await verbs.claim(claim_of(record_id, max_attempts=2))
        assert answer == Refused(Refusal.ATTEMPTS, 2, None)

    async def test_attempts_count_where_the_last_one_was_abandoned(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """O-10: an abandoned attempt is an attempt."""
        await _abandoned(verbs, clock, record_id)
        answer = await verbs.claim(claim_of(record_id, max_attempts=1))
        assert answer == Refused(Refusal.ATTEMPTS, 1, None)

    async def test_a_final_failure_admits_nobody(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """B-01: failed for good, with the stored answer."""
        await verbs.fail(Fail(await lease_of(verbs, record_id), final=True, response=b"\x00no"))
        assert await verbs.claim(claim_of(record_id)) == Refused(Refusal.FAILED, 1, b"\x00no")

    @pytest.mark.parametrize("ending", ["deleted", "released", "expired"])
    async def test_the_token_grows_after_the_record_is_gone(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes, ending: str
    ) -> None:
        """B-02: also across a deletion, by the backend's clock; the attempts start anew."""
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
        """B-02: a claim in the same microsecond has another token."""
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
        """B-07: nothing is read into them."""
        c = claim_of(record_id + raw, owner=raw, fingerprint=raw)
        await leased(verbs, c)
        record = await existing(verbs, record_id + raw)
        assert (record.owner, record.fingerprint) == (raw, raw)
        assert isinstance(await verbs.claim(claim_of(record_id + raw, fingerprint=raw)), Busy)

    async def test_records_do_not_touch_each_other(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """I10: an id that begins with another one is another record."""
        await verbs.complete(Complete(await lease_of(verbs, record_id), b"one"))
        longer = await lease_of(verbs, record_id + b"\x00")
        assert longer.attempt == 1

    async def test_of_many_claims_at_once_one_wins(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """B-01: claiming is atomic."""
        answers = await verbs.claim_at_once([claim_of(record_id) for _ in range(64)])
        kinds = [type(answer) for answer in answers]
        assert (kinds.count(Leased), kinds.count(Busy)) == (1, 63)

    async def test_of_many_takeovers_at_once_one_wins(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes
    ) -> None:
        """B-01, L-02: so is taking over."""
        await _abandoned(verbs, clock, record_id)
        answers = await verbs.claim_at_once([claim_of(record_id) for _ in range(16)])
        winners = [answer.lease.attempt for answer in answers if isinstance(answer, Leased)]
        assert winners == [2]

    async def test_one_claim_sent_many_times_at_once_is_one_lease(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """B-08: resent copies of one claim all get the same lease."""
        c = claim_of(record_id, owner=os.urandom(16))
        copies = [Claim(**{name: getattr(c, name) for name in Claim.__slots__}) for _ in range(16)]
        answers = await verbs.claim_at_once(copies)
        tokens = {answer.lease.token for answer in answers if isinstance(answer, Leased)}
        assert len(answers) == 16
        assert len(tokens) == 1
        assert all(isinstance(answer, Leased) for answer in answers)
