"""The report itself: how it classifies outcomes, and that a wrong mark ends the run."""

from __future__ import annotations

import pytest

from tests.faults.report import BadMark, Proof, Report, as_plain, from_plain, proofs_of

CLAIM = Proof(4, "reply lost: claim", "sqlite", ("I1", "I6"), "held")
LOSS = Proof(5, "restart without a log", "redis", ("I2",), "documented")


def _cells(report: Report) -> dict[str, str]:
    head, *body = report.table()
    return {f"{line[1]}/{backend}": line[head.index(backend)] for line in body for backend in head[2:-1]}


def test_a_fault_that_was_survived_is_held() -> None:
    """For the invariants that its test names."""
    report = Report()
    report.add("a", [CLAIM], "passed")
    assert _cells(report) == {"reply lost: claim/sqlite": "I1 I6 held"}


def test_a_loss_that_was_shown_is_a_documented_one() -> None:
    """A passing test of a loss does not count as held; a dash where no test ran."""
    report = Report()
    report.add("a", [CLAIM], "passed")
    report.add("b", [LOSS], "passed")
    assert _cells(report)["restart without a log/redis"] == "I2 documented loss"
    assert _cells(report)["restart without a log/sqlite"] == "-"


def test_one_failure_among_many_tests_is_the_outcome() -> None:
    """Only for the invariants of the failing test, in any order."""
    report = Report()
    for test, proof, outcome in [
        ("a", CLAIM, "passed"),
        ("b", Proof(4, CLAIM.fault, "sqlite", ("I6",), "held"), "failed"),
        ("c", CLAIM, "passed"),
    ]:
        report.add(test, [proof], outcome)
    assert _cells(report) == {"reply lost: claim/sqlite": "I1 held, I6 FAILED"}
    assert report.table()[1][-1] == "3"


def test_a_test_that_was_skipped_proves_nothing() -> None:
    """The table shows the skip."""
    report = Report()
    report.add("a", [CLAIM], "skipped")
    assert _cells(report) == {"reply lost: claim/sqlite": "I1 I6 SKIPPED"}


def test_a_loss_that_no_longer_shows_has_failed() -> None:
    """The page would promise too little."""
    report = Report()
    report.add("a", [LOSS], "failed")
    assert _cells(report) == {"restart without a log/redis": "I2 FAILED"}


def test_a_proof_survives_the_way_from_a_worker_process() -> None:
    """It is sent as plain values."""
    assert from_plain(as_plain(CLAIM)) == CLAIM


class _Item:
    nodeid = "here"

    def __init__(self, *marks: pytest.MarkDecorator) -> None:
        self._marks = marks

    def iter_markers(self, name: str) -> list[pytest.Mark]:
        return [decorator.mark for decorator in self._marks]


@pytest.mark.parametrize(
    "mark",
    [
        pytest.mark.fault("no row", invariants=("I1",), backend="sqlite"),
        pytest.mark.fault("no invariant", row=4, invariants=(), backend="sqlite"),
        pytest.mark.fault("an unknown one", row=4, invariants=("I12",), backend="sqlite"),
        pytest.mark.fault("no backend", row=4, invariants=("I1",)),
        pytest.mark.fault("an unknown kind", row=4, invariants=("I1",), backend="sqlite", kind="lost"),
        pytest.mark.fault("an unknown argument", row=4, invariants=("I1",), backend="sqlite", why="so"),
        pytest.mark.fault(row=4, invariants=("I1",), backend="sqlite"),
    ],
    ids=["row", "invariants", "unknown invariant", "backend", "kind", "argument", "name"],
)
def test_a_mark_that_cannot_be_reported_is_refused(mark: pytest.MarkDecorator) -> None:
    """Before any test runs."""
    with pytest.raises(BadMark):
        proofs_of(_Item(mark))


def test_a_mark_may_leave_the_backend_to_the_parameter() -> None:
    """The parameter ``backend_kind``."""
    item = _Item(pytest.mark.fault("reply lost: claim", row=4, invariants=("I1", "I6")))
    item.callspec = type("Call", (), {"params": {"backend_kind": "sqlite"}})()
    assert proofs_of(item) == [CLAIM]
