"""The report of the fault tests: the outcome of each fault, on each backend, for each invariant.

A mark says what a test shows. This module reads marks, collects outcomes and draws the table. It depends neither on
pytest's hooks, which are in ``conftest.py``, nor on the library.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

#: the name under which a test's proofs travel in its report, also from a worker process to the one that prints
PROPERTY = "fault"
#: the parameter or fixture that says on which backend a test runs, where its mark does not
BACKEND_PARAMETER = "backend_kind"
#: the variable that names a file for all collected marks
LIST_VARIABLE = "OI_TEST_FAULTS_LIST"
INVARIANTS = frozenset(f"I{number}" for number in range(1, 12))
KINDS = ("held", "documented")


class BadMark(Exception):
    """A ``fault`` mark that cannot be reported."""


@dataclass(frozen=True, slots=True, order=True)
class Proof:
    """The claim of one mark of a test. ``row``: of the table of faults. ``kind``: "documented" for a loss."""

    row: int
    fault: str
    backend: str
    invariants: tuple[str, ...]
    kind: str


class Outcome(Enum):
    """The outcome of a fault: the worst one of all its tests."""

    HELD = "held"
    DOCUMENTED = "documented loss"
    SKIPPED = "SKIPPED"
    FAILED = "FAILED"


_WORSE = {outcome: place for place, outcome in enumerate(Outcome)}


def proofs_of(item: pytest.Item) -> list[Proof]:
    """The proofs of a test, one for each of its ``fault`` marks. Raises ``BadMark``."""
    return [_proof(item, mark) for mark in item.iter_markers("fault")]


def _proof(item: pytest.Item, mark: pytest.Mark) -> Proof:
    given: dict[str, Any] = {"kind": "held", "backend": None} | dict(mark.kwargs)
    unknown = set(given) - {"row", "invariants", "kind", "backend"}
    if len(mark.args) != 1 or unknown or not {"row", "invariants"} <= set(given):
        raise BadMark(f'{item.nodeid}: write fault("name", row=…, invariants=(…)), not {mark}')
    backend = given["backend"] or _backend(item)
    proof = Proof(int(given["row"]), str(mark.args[0]), backend, tuple(given["invariants"]), given["kind"])
    if not proof.invariants or not INVARIANTS.issuperset(proof.invariants) or proof.kind not in KINDS:
        raise BadMark(f"{item.nodeid}: invariants are of {sorted(INVARIANTS)}, kind of {KINDS}, not {mark}")
    return proof


def _backend(item: pytest.Item) -> str:
    call = getattr(item, "callspec", None)
    parameters: Mapping[str, Any] = {} if call is None else call.params
    if BACKEND_PARAMETER not in parameters:
        raise BadMark(f"{item.nodeid}: name the backend in the mark, or have a parameter {BACKEND_PARAMETER}")
    return str(parameters[BACKEND_PARAMETER])


def as_plain(proof: Proof) -> dict[str, Any]:
    """A proof as a worker process can send it."""
    return {**asdict(proof), "invariants": list(proof.invariants)}


def from_plain(plain: Mapping[str, Any]) -> Proof:
    """The same, read back."""
    return Proof(**{**plain, "invariants": tuple(plain["invariants"])})


class Report:
    """Outcomes as they come in, and the table of them."""

    def __init__(self) -> None:
        self._outcomes: dict[tuple[int, str], dict[str, dict[str, Outcome]]] = {}
        self._tests: dict[tuple[int, str], set[str]] = {}

    def add(self, test: str, proofs: Iterable[Proof], outcome: str) -> None:
        """Add the outcome of one phase of a test: "passed", "failed" or "skipped". A failure is final."""
        for proof in proofs:
            came = _outcome(proof, outcome)
            cell = self._outcomes.setdefault((proof.row, proof.fault), {}).setdefault(proof.backend, {})
            self._tests.setdefault((proof.row, proof.fault), set()).add(test)
            for invariant in proof.invariants:
                cell[invariant] = max(cell.get(invariant, came), came, key=_WORSE.__getitem__)

    def __bool__(self) -> bool:
        return bool(self._outcomes)

    def table(self) -> list[list[str]]:
        """A header row, and a row for each fault: number, name, backends, number of tests."""
        backends = sorted({backend for cells in self._outcomes.values() for backend in cells})
        body = [
            [
                str(row),
                fault,
                *(_cell(cells.get(backend, {})) for backend in backends),
                str(len(self._tests[row, fault])),
            ]
            for (row, fault), cells in sorted(self._outcomes.items())
        ]
        return [["row", "fault", *backends, "tests"], *body]

    def text(self) -> Iterator[str]:
        """The table in columns, for a terminal."""
        table = self.table()
        widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
        for line in table:
            yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()

    def markdown(self) -> str:
        """The table for a file."""
        head, *body = self.table()
        lines = [head, ["---"] * len(head), *body]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _outcome(proof: Proof, outcome: str) -> Outcome:
    if outcome == "passed":
        return Outcome.HELD if proof.kind == "held" else Outcome.DOCUMENTED
    return Outcome.FAILED if outcome == "failed" else Outcome.SKIPPED


def _cell(found: Mapping[str, Outcome]) -> str:
    """``I1 I5 held``; invariants with different outcomes are listed in groups; a dash if no test ran."""
    groups = {
        outcome: sorted((name for name, came in found.items() if came is outcome), key=lambda name: int(name[1:]))
        for outcome in Outcome
    }
    return ", ".join(f"{' '.join(names)} {outcome.value}" for outcome, names in groups.items() if names) or "-"
