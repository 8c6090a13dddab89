"""The contract of local failures: no thread, no file descriptor and no memory are a backend that does not answer."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from open_idempotency.backend import (
    Complete,
    Completed,
    Fail,
    Get,
    Lease,
    Leased,
    Release,
    Renew,
    Renewal,
    Reserve,
    SaveStage,
    Unreserve,
    Withdraw,
)
from open_idempotency.conformance.support import LEASE, TTL, AsyncVerbs, ManualClock, claim_of, lease_of, stage_of
from open_idempotency.exceptions import BackendUnavailable

_FAILURES: list[Callable[[], Exception]] = [
    MemoryError,
    lambda: OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
    lambda: RuntimeError("can't start new thread"),
]


async def _calls(verbs: AsyncVerbs, lease: Lease) -> list[tuple[str, Any]]:
    record_id = lease.record_id
    calls: list[tuple[str, Any]] = [
        ("claim", claim_of(os.urandom(32))),
        ("renew", Renew([lease])),
        ("save_stage", SaveStage(lease, stage_of("a stage"))),
        ("complete", Complete(lease, b"response")),
        ("fail", Fail(lease)),
        ("release", Release(lease)),
        ("withdraw", Withdraw(claim_of(os.urandom(32)))),
        ("get", Get(record_id)),
        ("delete", os.urandom(32)),
        ("purge", 10),
    ]
    if verbs.quotas:
        calls += [
            ("reserve", Reserve(os.urandom(32), record_id, 5, LEASE, TTL)),
            ("unreserve", Unreserve(os.urandom(32), record_id)),
        ]
    return calls


async def refused(call: Callable[[], Awaitable[Any]], failure: Exception) -> bool:
    """Whether the failure was raised as ``BackendUnavailable`` that names it as its cause; false where none was."""
    try:
        await call()
    except BackendUnavailable as error:
        cause: BaseException | None = error
        while cause is not None and cause is not failure:
            cause = cause.__cause__
        assert cause is failure, "the cause is lost"
        return True
    return False


class FailureContract:
    """B-10a."""

    @pytest.mark.parametrize("failing", _FAILURES, ids=["memory", "files", "threads"])
    async def test_a_local_failure_is_a_backend_that_does_not_answer(
        self, verbs: AsyncVerbs, clock: ManualClock, record_id: bytes, failing: Callable[[], Exception]
    ) -> None:
        """B-10a: in every verb that met it, with its cause; and nothing of the call was done."""
        lease = await lease_of(verbs, record_id)
        for verb, command in await _calls(verbs, lease):
            failure = failing()
            clock.fails_with = failure
            # Not through a verb of AsyncVerbs, which is a backend itself.
            was_refused = await refused(lambda: verbs.call(verb, command), failure)  # noqa: B023 (awaited at once)
            clock.fails_with = None
            if verb == "claim" and was_refused:
                answer = await verbs.claim(claim_of(command.record_id))
                assert isinstance(answer, Leased)
                assert answer.lease.attempt == 1
            if not was_refused and verb in ("complete", "fail", "release"):
                return  # the backend does not ask the clock for that
        assert await verbs.renew(Renew([lease])) == [Renewal.OWNED]
        assert await verbs.complete(Complete(lease, b"response")) == Completed()
