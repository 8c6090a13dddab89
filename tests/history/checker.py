"""Checks histories of one key: a search for a linearization for few clients, the order of tokens for many.

An operation is a request as its client saw it: when it was called, when it returned, and with what. A history is
linearizable if each operation can be given moments between its call and its return (the claim, and the completion of
one that ran) so that, moment by moment, one record explains every response. An operation without a reported outcome
may have happened or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import NamedTuple

NEVER = float("inf")


class Result(Enum):
    """What the response reported to the client."""

    RAN = "ran"
    REPLAYED = "replayed"
    FAILED = "failed"
    BUSY = "busy"
    MISMATCH = "mismatch"
    #: no response, or one that says nothing: a broken connection, a 503, a superseded attempt's 409
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Operation:
    """One request. ``response``: the token of the attempt that made the response, for RAN and REPLAYED.

    ``run``: the token of this request's own attempt, where the effect file has one. ``ran_at``: when that began.
    """

    name: str
    request: str
    called: float
    returned: float
    result: Result
    response: int = 0
    run: int = 0
    ran_at: float = NEVER


#: states after which a search is given up
MOST_STATES = 1_000_000


class NotLinearizable(AssertionError):
    """No order of moments explains what the clients saw."""


class _Record(NamedTuple):
    """The one record, at first without an owner; ``owner`` is the index of an operation, -1 for none."""

    request: str = ""
    owner: int = -1
    response: int = 0
    token: int = 0


class _Step(NamedTuple):
    """The operations that have claimed, and those that have ended."""

    claimed: frozenset[int]
    over: frozenset[int]
    record: _Record


def check_linearizable(operations: Sequence[Operation]) -> None:
    """Search for a linearization of one key's history; for up to about eight clients at a time.

    Raises ``NotLinearizable``.
    """
    start = _Step(frozenset(), frozenset(), _Record())
    pending, seen = [start], {start}
    while pending:
        step = pending.pop()
        assert len(seen) < MOST_STATES, f"too many clients at once: {len(operations)} operations"
        if all(i in step.over or o.result is Result.UNKNOWN for i, o in enumerate(operations)):
            return
        for following in _following(operations, step):
            if following not in seen:
                seen.add(following)
                pending.append(following)
    raise NotLinearizable("\n".join(str(o) for o in sorted(operations, key=lambda o: o.called)))


def _following(operations: Sequence[Operation], step: _Step) -> Iterator[_Step]:
    # An operation that has returned happened before every later call.
    horizon = min((o.returned for i, o in enumerate(operations) if i not in step.over), default=NEVER)
    for index, operation in enumerate(operations):
        if index not in step.over and operation.called <= horizon:
            yield from _moments(operations, step, index)


def _moments(operations: Sequence[Operation], step: _Step, index: int) -> Iterator[_Step]:
    operation, record = operations[index], step.record
    if index in step.claimed:
        yield from _endings(operation, step, index)
    elif operation.result in (Result.RAN, Result.FAILED, Result.UNKNOWN):
        taken = _claim(operations, operation, record, index)
        if taken is not None:
            yield _Step(step.claimed | {index}, step.over, taken)
    # A stale owner is given the new owner's response (L-03), so one that ran may be replayed too.
    if operation.run and operation.result is Result.REPLAYED and index not in step.claimed:
        taken = _claim(operations, operation, record, index)
        if taken is not None:
            yield _Step(step.claimed | {index}, step.over, taken)
    if _explains(operation, record, index):
        yield step._replace(over=step.over | {index})


def _claim(operations: Sequence[Operation], operation: Operation, record: _Record, index: int) -> _Record | None:
    """The record after a successful claim; None if the claim cannot succeed."""
    if record.response or (record.request and record.request != operation.request):
        return None
    if record.owner >= 0 and not _may_be_dead(operations[record.owner]):
        return None
    if operation.run and operation.run <= record.token:
        return None
    return _Record(operation.request, index, 0, operation.run or record.token)


def _may_be_dead(owner: Operation) -> bool:
    """Whether an owner may have lost its lease: its client did not get the response of its own run."""
    return owner.result is not Result.RAN


def _endings(operation: Operation, step: _Step, index: int) -> Iterator[_Step]:
    record = step.record
    if record.owner != index:
        return
    if operation.result in (Result.RAN, Result.UNKNOWN) and operation.run:
        completed = record._replace(owner=-1, response=operation.run)
        yield _Step(step.claimed, step.over | {index}, completed)
    if operation.result in (Result.FAILED, Result.UNKNOWN):
        yield _Step(step.claimed, step.over | {index}, record._replace(owner=-1))
        # Its end was not recorded, so its lease has to end.
        yield _Step(step.claimed, step.over | {index}, record)
        # It was released, and no record was there before.
        if operation.result is Result.UNKNOWN:
            yield _Step(step.claimed, step.over | {index}, record._replace(owner=-1, request=""))


def _explains(operation: Operation, record: _Record, index: int) -> bool:
    match operation.result:
        case Result.REPLAYED:
            return (
                bool(record.response) and record.response == operation.response and record.request == operation.request
            )
        case Result.BUSY:
            return record.owner >= 0 and record.owner != index and record.request == operation.request
        case Result.MISMATCH:
            return bool(record.request) and record.request != operation.request
        case _:
            return False


def check_token_order(operations: Sequence[Operation]) -> None:
    """Check what holds for any number of clients: necessary conditions only, but fast. Raises ``NotLinearizable``."""
    runs = sorted((o for o in operations if o.run), key=lambda o: o.run)
    responded = [o for o in operations if o.result in (Result.RAN, Result.REPLAYED)]
    _refuse(len({o.run for o in runs}) < len(runs), "one token for two runs", runs)
    _refuse(len({o.response for o in responded}) > 1, "two different responses", responded)
    _refuse(len({o.request for o in [*runs, *responded]}) > 1, "two requests under one key", [*runs, *responded])
    _refuse(not {o.response for o in responded} <= {o.run for o in runs}, "a response that no run made", responded)
    _refuse(
        sum(o.result is Result.RAN for o in operations) > 1, "two clients got the response of their own run", responded
    )
    for earlier, later in pairwise(runs):
        _refuse(later.returned < earlier.called, "a token that is smaller than an earlier one", [earlier, later])
    for replied in responded:
        late = [o for o in runs if o.ran_at > replied.returned or o.run > replied.response]
        _refuse(bool(late), "ran again after its response", [replied, *late])


def _refuse(wrong: bool, why: str, operations: Sequence[Operation]) -> None:
    if wrong:
        raise NotLinearizable("\n".join([why, *map(str, operations)]))
