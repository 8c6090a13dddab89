"""The contract of values that the backend refuses for their size: ``RecordTooLarge``, and nothing has changed."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
import pytest

from open_idempotency.backend import (
    AsyncBackend,
    Backend,
    Complete,
    Completed,
    Fail,
    Lease,
    Renew,
    Renewal,
    SaveStage,
    Status,
)
from open_idempotency.conformance.support import AsyncVerbs, existing, in_threads, lease_of, stage_of
from open_idempotency.exceptions import RecordTooLarge

_SMALL = b"small"
_MANY = 8


@dataclass
class Narrow:
    """A backend that accepts values of ``takes`` bytes and refuses values of ``refuses`` bytes."""

    backend: Backend | AsyncBackend
    takes: int
    refuses: int


async def _outcomes(verbs: AsyncVerbs, commands: Sequence[Complete]) -> list[Any]:
    """The results or errors of completions that are sent at the same time, in order."""
    backend = verbs.backend
    if isinstance(backend, Backend):
        sync = backend

        def complete(command: Complete) -> Any:
            try:
                return sync.complete(command)
            except RecordTooLarge as error:
                return error

        return in_threads(complete, commands)
    outcomes: dict[int, Any] = {}

    async def one(number: int) -> None:
        try:
            outcomes[number] = await verbs.complete(commands[number])
        except RecordTooLarge as error:
            outcomes[number] = error

    async with anyio.create_task_group() as group:
        for number in range(len(commands)):
            group.start_soon(one, number)
    return [outcomes[number] for number in range(len(commands))]


class SizeContract:
    """B-21: values over the server's limit."""

    async def _is_owned(self, verbs: AsyncVerbs, lease: Lease) -> None:
        assert await verbs.renew(Renew([lease])) == [Renewal.OWNED]
        record = await existing(verbs, lease.record_id)
        assert (record.status, record.response, record.stages) == (Status.IN_PROGRESS, None, ())

    @pytest.fixture
    async def narrow_verbs(self, narrow: Narrow) -> AsyncIterator[AsyncVerbs]:
        """The backend of ``narrow`` with async verbs; closed after the test."""
        verbs = AsyncVerbs(narrow.backend)
        yield verbs
        await verbs.close()

    async def test_the_largest_values_are_stored(
        self, narrow: Narrow, narrow_verbs: AsyncVerbs, record_id: bytes
    ) -> None:
        """B-21: the limit is the server's, and none of the backend's own is below it."""
        lease = await lease_of(narrow_verbs, record_id)
        stage = stage_of("large", frame=os.urandom(narrow.takes))
        await narrow_verbs.save_stage(SaveStage(lease, stage))
        response = os.urandom(narrow.takes)
        await narrow_verbs.complete(Complete(lease, response))
        record = await existing(narrow_verbs, record_id)
        assert (record.response, record.stages) == (response, (stage,))

    async def test_a_response_that_is_too_large_is_refused(
        self, narrow: Narrow, narrow_verbs: AsyncVerbs, record_id: bytes
    ) -> None:
        """B-21: the attempt still owns its record, and completes it with a shorter response."""
        lease = await lease_of(narrow_verbs, record_id)
        with pytest.raises(RecordTooLarge):
            await narrow_verbs.complete(Complete(lease, bytes(narrow.refuses)))
        await self._is_owned(narrow_verbs, lease)
        assert await narrow_verbs.complete(Complete(lease, _SMALL)) == Completed()
        assert (await existing(narrow_verbs, record_id)).response == _SMALL

    async def test_a_failure_whose_response_is_too_large_is_refused(
        self, narrow: Narrow, narrow_verbs: AsyncVerbs, record_id: bytes
    ) -> None:
        """B-21: the attempt has not ended."""
        lease = await lease_of(narrow_verbs, record_id)
        with pytest.raises(RecordTooLarge):
            await narrow_verbs.fail(Fail(lease, final=True, response=bytes(narrow.refuses)))
        await self._is_owned(narrow_verbs, lease)
        await narrow_verbs.fail(Fail(lease, final=True, response=_SMALL))
        assert (await existing(narrow_verbs, record_id)).response == _SMALL

    async def test_a_stage_that_is_too_large_is_refused(
        self, narrow: Narrow, narrow_verbs: AsyncVerbs, record_id: bytes
    ) -> None:
        """B-21: the stage of that name and key can still be saved."""
        lease = await lease_of(narrow_verbs, record_id)
        with pytest.raises(RecordTooLarge):
            await narrow_verbs.save_stage(SaveStage(lease, stage_of("large", frame=bytes(narrow.refuses))))
        await self._is_owned(narrow_verbs, lease)
        await narrow_verbs.save_stage(SaveStage(lease, stage_of("large", frame=_SMALL)))
        assert (await existing(narrow_verbs, record_id)).stages == (stage_of("large", frame=_SMALL),)

    async def test_a_value_that_is_too_large_stops_no_other_call(
        self, narrow: Narrow, narrow_verbs: AsyncVerbs
    ) -> None:
        """B-21: calls that share its batch, its transaction or its connection succeed."""
        leases = [await lease_of(narrow_verbs, os.urandom(32)) for _ in range(_MANY)]
        commands = [Complete(lease, _SMALL) for lease in leases]
        commands[_MANY // 2].response = bytes(narrow.refuses)
        outcomes = await _outcomes(narrow_verbs, commands)
        assert isinstance(outcomes.pop(_MANY // 2), RecordTooLarge)
        assert outcomes == [Completed()] * (_MANY - 1)
