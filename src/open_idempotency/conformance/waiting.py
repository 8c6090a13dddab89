"""The contract of ``wait``: it ends, soon after the attempt does, whether or not the backend can be told."""

from __future__ import annotations

import time

import anyio
import pytest

from open_idempotency.backend import Busy, ClaimAnswer, Finished, Leased, Release, Wait
from open_idempotency.conformance.owners import OWNER_VERBS
from open_idempotency.conformance.support import AsyncVerbs, claim_of, lease_of

_LONG = 30.0
_SOON = 15.0
_PAUSE = 0.05
_MANY = 8


async def _claim_when_free(verbs: AsyncVerbs, record_id: bytes) -> ClaimAnswer:
    """Claim, wait while somebody else runs, and claim again, as a waiting duplicate does."""
    claim = claim_of(record_id)
    while isinstance(answer := await verbs.claim(claim), Busy):
        await verbs.wait(Wait(record_id, _LONG, _PAUSE))
    return answer


class WaitingContract:
    """O-04."""

    @pytest.mark.parametrize("verb", ["complete", "fail", "release"])
    async def test_waiting_ends_soon_after_the_attempt_does(
        self, verbs: AsyncVerbs, record_id: bytes, verb: str
    ) -> None:
        """O-04: well before the seconds that were asked for; then the record is free or tells its response."""
        lease = await lease_of(verbs, record_id)
        answers: list[ClaimAnswer] = []

        async def duplicate() -> None:
            answers.append(await _claim_when_free(verbs, record_id))

        with anyio.fail_after(_SOON):
            async with anyio.create_task_group() as group:
                group.start_soon(duplicate)
                await anyio.lowlevel.checkpoint()
                await OWNER_VERBS[verb](verbs, lease)
        expected = Finished if verb == "complete" else Leased
        assert [type(answer) for answer in answers] == [expected]

    async def test_waiting_ends_by_itself(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """O-04, I11: after the seconds that were asked for; and not at once, or waiting would be a busy loop."""
        await lease_of(verbs, record_id)
        started = time.monotonic()
        with anyio.fail_after(_SOON):
            await verbs.wait(Wait(record_id, 0.1, 0.1))
        assert time.monotonic() - started > 0.05

    async def test_waiting_for_nothing_ends(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """O-04: the record may be gone by the time that somebody waits for it."""
        with anyio.fail_after(_SOON):
            await verbs.wait(Wait(record_id, _PAUSE, _PAUSE))

    async def test_a_record_that_ended_before_is_not_waited_for(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """O-04: nobody will tell of it again."""
        await verbs.release(Release(await lease_of(verbs, record_id)))
        with anyio.fail_after(_SOON):
            await verbs.wait(Wait(record_id, _LONG, _PAUSE))

    async def test_many_may_wait_for_the_same(self, verbs: AsyncVerbs, record_id: bytes) -> None:
        """O-04, FAULTS 14: all of them get the one response."""
        lease = await lease_of(verbs, record_id)
        answers: list[ClaimAnswer] = []

        async def duplicate() -> None:
            answers.append(await _claim_when_free(verbs, record_id))

        with anyio.fail_after(_SOON):
            async with anyio.create_task_group() as group:
                for _ in range(_MANY):
                    group.start_soon(duplicate)
                await anyio.lowlevel.checkpoint()
                await OWNER_VERBS["complete"](verbs, lease)
        assert answers == [Finished(b"late")] * _MANY
