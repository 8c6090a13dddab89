"""What a statement is, and what can be found about it. No input or output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from open_idempotency.conformance.http.observations import Observations

DRAFT = "draft-ietf-httpapi-idempotency-key-header-07"


class CouldNotRun(Exception):
    """Nothing can be said about the endpoint: it is out of reach, refuses the plain request, or the call is wrong."""


class Level(Enum):
    """How much a statement weighs; only INFO never fails a run."""

    MUST = "MUST"
    SHOULD = "SHOULD"
    RULE = "RULE"
    INFO = "INFO"


class Result(Enum):
    """What was found."""

    HOLDS = "holds"
    FAILS = "fails"
    NOT_APPLICABLE = "not applicable"
    UNKNOWN = "could not tell"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A result, and what was seen that led to it."""

    result: Result
    seen: str


def holds(seen: str) -> Verdict:
    """The statement holds."""
    return Verdict(Result.HOLDS, seen)


def fails(seen: str) -> Verdict:
    """The statement does not hold."""
    return Verdict(Result.FAILS, seen)


def holds_if(condition: bool, seen: str) -> Verdict:
    """The statement holds exactly when ``condition`` does."""
    return holds(seen) if condition else fails(seen)


class Undecided(Exception):
    """Raised by an observation that was not possible; carries the verdict of every statement that needs it."""

    def __init__(self, result: Result, seen: str) -> None:
        super().__init__(seen)
        self.verdict = Verdict(result, seen)


def not_applicable(seen: str) -> Undecided:
    """To raise: the statement is about something that this endpoint does not have, or that was not asked for."""
    return Undecided(Result.NOT_APPLICABLE, seen)


def unknown(seen: str) -> Undecided:
    """To raise: from outside it cannot be told."""
    return Undecided(Result.UNKNOWN, seen)


@dataclass(frozen=True, slots=True)
class Statement:
    """One row of the table. ``section``: of the draft, or a line of this package's behaviour page.

    ``check`` returns a verdict, or raises ``Undecided``.
    """

    id: str
    level: Level
    section: str
    sentence: str
    check: Callable[[Observations], Verdict]


@dataclass(frozen=True, slots=True)
class Finding:
    """A statement, and the verdict on it."""

    statement: Statement
    verdict: Verdict

    @property
    def counts_against(self) -> bool:
        """Whether this makes the run a failure."""
        return self.verdict.result is Result.FAILS and self.statement.level is not Level.INFO
