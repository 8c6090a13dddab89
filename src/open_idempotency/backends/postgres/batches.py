"""Many requests in one statement: which of them go together, their parameters, and whose row each reply is. Pure.

A request that the batch leaves out has the row ``APART``: its caller sends it alone, after the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from open_idempotency.backend import Claim, Complete, Fail, Lease, Release, SaveStage
from open_idempotency.backends.postgres.encoding import Row, Statement
from open_idempotency.backends.postgres.verbs import CLAIM, COMPLETE, FAIL, RELEASE, SAVE_STAGE, Verb, stage_key

#: a verb and its command
Request = tuple[Verb[Any, Any], Any]
#: the row of a request that is to be sent alone
APART: Final[Row] = ()

_CLAIMS, _ENDS, _STAGES, _RELEASES = range(4)
_GROUPS: dict[Verb[Any, Any], int] = {
    CLAIM: _CLAIMS,
    COMPLETE: _ENDS,
    FAIL: _ENDS,
    SAVE_STAGE: _STAGES,
    RELEASE: _RELEASES,
}
# Claims come first: see the functions.
_CALLS = (
    "claims({now}, {bytea[]}, {bytea[]}, {bytea[]}, {double precision[]}, {double precision[]})",
    "ends({now}, {bytea[]}, {bytea[]}, {bigint[]}, {integer[]}, {boolean[]}, {bytea[]})",
    "save_stages({now}, {bytea[]}, {bytea[]}, {bigint[]}, {double precision[]}, {bytea[]}, {bytea[]}, {bytea[]})",
    "releases({now}, {bytea[]}, {bytea[]}, {bigint[]})",
)


def _statement(groups: int) -> Statement:
    """For the groups whose bits are set."""
    calls = [call for group, call in enumerate(_CALLS) if groups >> group & 1]
    text = " UNION ALL ".join("".join(("SELECT * FROM open_idempotency.", call)) for call in calls)
    return Statement(text.replace("{now}", "{double precision}"))


_STATEMENTS = [_statement(groups) for groups in range(1 << len(_CALLS))]


def _owned(leases: Sequence[Lease]) -> list[list[Any]]:
    return [[lease.record_id for lease in leases], [lease.owner for lease in leases], [lease.token for lease in leases]]


def _claims(commands: Sequence[Claim]) -> list[list[Any]]:
    return [
        [c.record_id for c in commands],
        [c.owner for c in commands],
        [c.fingerprint for c in commands],
        [c.lease for c in commands],
        [c.ttl for c in commands],
    ]


def _ends(commands: Sequence[Complete | Fail]) -> list[list[Any]]:
    return [
        *_owned([c.lease for c in commands]),
        [3 if isinstance(c, Fail) else 2 for c in commands],
        [isinstance(c, Fail) and c.final for c in commands],
        [c.response for c in commands],
    ]


def _stages(commands: Sequence[SaveStage]) -> list[list[Any]]:
    keys = [stage_key(c.stage) for c in commands]
    return [
        *_owned([c.lease for c in commands]),
        [c.lease.duration for c in commands],
        [name for name, _ in keys],
        [key for _, key in keys],
        [c.stage.frame for c in commands],
    ]


def _releases(commands: Sequence[Release]) -> list[list[Any]]:
    return _owned([c.lease for c in commands])


_COLUMNS: tuple[Callable[[Any], list[list[Any]]], ...] = (_claims, _ends, _stages, _releases)


class Batch:
    """The requests of one statement, by group; a record's requests stay in the order in which they were made."""

    __slots__ = ("_grouped", "_requests", "_rows", "statement")

    def __init__(self, requests: Sequence[Request]) -> None:
        self._requests = requests
        self._rows: list[Row] = [APART] * len(requests)
        #: by group, the indexes of its requests
        self._grouped: tuple[list[int], ...] = ([], [], [], [])
        first: dict[bytes, int] = {}
        for index, (verb, c) in enumerate(requests):
            group = _GROUPS[verb]
            record_id = c.record_id if group == _CLAIMS else c.lease.record_id
            # Groups are carried out one after the other, so one record's requests of two groups might change order.
            if first.setdefault(record_id, group) == group:
                self._grouped[group].append(index)
        self.statement = _STATEMENTS[sum(1 << group for group, indexes in enumerate(self._grouped) if indexes)]

    def parameters(self, now: float | None) -> list[Any]:
        """For the statement, at the time of a test's clock."""
        parameters: list[Any] = []
        for columns, indexes in zip(_COLUMNS, self._grouped, strict=True):
            if indexes:
                parameters += (now, *columns([self._requests[index][1] for index in indexes]))
        return parameters

    def rows(self, replies: Sequence[Row]) -> Sequence[Row]:
        """One for each request: the row that the function of its verb returns, or ``APART``."""
        for group, number, *reply in replies:
            indexes = self._grouped[group]
            for index in indexes[number - 1 : number] if number else indexes:
                self._rows[index] = self._row(group, index, reply)
        return self._rows

    def _row(self, group: int, index: int, reply: Sequence[Any]) -> Row:
        code, token, elapsed, remaining, response = reply
        if group == _CLAIMS:
            return (code, None, token, 1, elapsed, remaining, response, None, None, None)
        return (code, self._requests[index][1].stage.frame) if group == _STAGES else (code,)


#: a statement, the values of its parameters, and what makes the rows of the requests from its rows
Sent = tuple[Statement, Sequence[Any], Callable[[Sequence[Row]], Sequence[Row]]]


def batched(requests: Sequence[Request], now: float | None) -> Sent:
    """How to carry out the requests at once: one as it is, several as a batch. ``now``: of a test's clock."""
    if len(requests) == 1:
        ((verb, c),) = requests
        return verb.hurried or verb.statement, (now, *verb.parameters(c)), lambda rows: rows
    batch = Batch(requests)
    return batch.statement, batch.parameters(now), batch.rows
