"""Many questions in one statement: which of them go together, their parameters, and whose answer each reply is. Pure.

A question that the batch left has the answer ``APART``: its asker sends it alone, after the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from open_idempotency.backend import Claim, Complete, Fail, Lease, Release, SaveStage
from open_idempotency.backends.postgres.encoding import Row, Statement
from open_idempotency.backends.postgres.statements import CLAIM, COMPLETE, FAIL, RELEASE, SAVE_STAGE, Verb, stage_key

#: a verb and its command
Question = tuple[Verb, Any]
#: the answer to a question that is to be asked alone
APART: Final[Row] = ()

_CLAIMS, _ENDS, _STAGES, _RELEASES = range(4)
_GROUPS = {CLAIM: _CLAIMS, COMPLETE: _ENDS, FAIL: _ENDS, SAVE_STAGE: _STAGES, RELEASE: _RELEASES}
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
    """The questions of one statement, by group; a record's questions in the order in which they were asked."""

    __slots__ = ("_answers", "_grouped", "_questions", "statement")

    def __init__(self, questions: Sequence[Question]) -> None:
        self._questions = questions
        self._answers: list[Row] = [APART] * len(questions)
        self._grouped: tuple[list[int], ...] = ([], [], [], [])
        first: dict[bytes, int] = {}
        for place, (verb, c) in enumerate(questions):
            group = _GROUPS[verb]
            record_id = c.record_id if group == _CLAIMS else c.lease.record_id
            # Groups are carried out one after the other, so one record's questions of two groups might change places.
            if first.setdefault(record_id, group) == group:
                self._grouped[group].append(place)
        self.statement = _STATEMENTS[sum(1 << group for group, places in enumerate(self._grouped) if places)]

    def parameters(self, now: float | None) -> list[Any]:
        """For the statement, at the time of a test's clock."""
        parameters: list[Any] = []
        for columns, places in zip(_COLUMNS, self._grouped, strict=True):
            if places:
                parameters += (now, *columns([self._questions[place][1] for place in places]))
        return parameters

    def answers(self, replies: Sequence[Row]) -> Sequence[Row]:
        """One for each question: the row that the function of its verb answers with, or ``APART``."""
        for group, number, *reply in replies:
            places = self._grouped[group]
            for place in places[number - 1 : number] if number else places:
                self._answers[place] = self._row(group, place, reply)
        return self._answers

    def _row(self, group: int, place: int, reply: Sequence[Any]) -> Row:
        code, token, elapsed, remaining, response = reply
        if group == _CLAIMS:
            return (code, None, token, 1, elapsed, remaining, response, None, None, None)
        return (code, self._questions[place][1].stage.frame) if group == _STAGES else (code,)


#: a statement, the values of its parameters, and what reads the answers to the questions from its rows
Sent = tuple[Statement, Sequence[Any], Callable[[Sequence[Row]], Sequence[Row]]]


def sent(questions: Sequence[Question], now: float | None) -> Sent:
    """How to carry out the questions at once: one as it is, several as a batch. ``now``: of a test's clock."""
    if len(questions) == 1:
        ((verb, c),) = questions
        return verb.hurried, (now, *verb.parameters(c)), lambda rows: rows
    batch = Batch(questions)
    return batch.statement, batch.parameters(now), batch.answers
