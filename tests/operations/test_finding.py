"""Records are found by their ids, listed from the oldest on, and counted."""

from __future__ import annotations

import pytest

from open_idempotency import operations
from open_idempotency.backend import Backend, Record
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.conformance import ManualClock
from open_idempotency.exceptions import RecordUnreadable
from tests.operations.stores import Maker


def _age(maker: Maker, clock: ManualClock) -> dict[str, str]:
    """Make one record in each state, a minute apart; their names by record id."""
    made: dict[str, str] = {}
    for name, make in (
        ("completed", maker.completed),
        ("failed", maker.failed),
        ("final", lambda: maker.failed(final=True)),
        ("in doubt", lambda: maker.in_doubt(30.0)),
        ("abandoned", lambda: maker.lease(30.0)),
        ("alive", maker.alive),
    ):
        made[make().record_id.hex()] = name
        clock.advance(60)
    return made


@pytest.mark.parametrize(
    ("state", "older", "names"),
    [
        (None, 0.0, ["completed", "failed", "final", "in doubt", "abandoned", "alive"]),
        ("completed", 0.0, ["completed"]),
        ("failed", 0.0, ["failed", "final"]),
        ("abandoned", 0.0, ["in doubt", "abandoned"]),
        ("in-progress", 0.0, ["alive"]),
        ("in-doubt", 0.0, ["in doubt"]),
        ("stuck", 0.0, ["final", "in doubt", "abandoned"]),
        ("stuck", 30.0, ["final", "in doubt", "abandoned", "alive"]),
        (None, 200.0, ["completed", "failed", "final"]),
    ],
)
def test_filters_let_through_what_their_names_say(
    backend: Backend, maker: Maker, clock: ManualClock, state: str | None, older: float, names: list[str]
) -> None:
    """P-10: the oldest record is first."""
    made = _age(maker, clock)
    listing = operations.list_records(backend, state, older=older)
    assert [made[view.record] for view in listing.records] == names
    assert listing.matched == len(names)


def test_a_limit_keeps_the_oldest_and_counts_all(backend: Backend, maker: Maker, clock: ManualClock) -> None:
    """P-10: so that the first page is not taken for the whole list."""
    made = _age(maker, clock)
    listing = operations.list_records(backend, limit=2)
    assert [made[view.record] for view in listing.records] == ["completed", "failed"]
    assert listing.matched == len(made)


def test_each_backend_lists_and_counts(stored: Backend) -> None:
    """P-10, P-16: on each backend, with each record's route and worker."""
    maker = Maker(stored)
    doubtful, alive = maker.in_doubt(), maker.alive()
    maker.completed()
    (stuck,) = operations.list_records(stored, "stuck").records
    assert stuck.record == doubtful.record_id.hex()
    assert [stage.name for stage in stuck.in_doubt] == ["charge"]
    (running,) = operations.list_records(stored, "in-progress").records
    assert (running.record, running.method, running.route, running.holder) == (
        alive.record_id.hex(), "POST", "/orders/{id}", "web-3:812",
    )  # fmt: skip
    counted = operations.stats(stored)
    assert (counted.total, counted.stuck, counted.in_doubt) == (3, 1, 1)
    assert counted.states == {
        "in progress": 1, "abandoned": 1, "failed": 0, "failed for good": 0, "completed": 1,
    }  # fmt: skip
    assert counted.routes == {"POST /orders/{id}": 3}


def test_each_backend_finds_a_record_by_its_beginning(stored: Backend) -> None:
    """P-11: in upper case too, with an odd number of digits, and by the whole id."""
    record_id = Maker(stored).alive().record_id
    for text in (record_id.hex(), record_id.hex()[:12], record_id.hex()[:13], f" {record_id.hex()[:12].upper()} "):
        assert operations.find_record(stored, text).record_id == record_id
    with pytest.raises(operations.RecordUnknown, match="released or forgotten, or has expired"):
        operations.find_record(stored, record_id[::-1].hex())


def test_a_beginning_of_several_records_names_them(backend: Backend, maker: Maker) -> None:
    """P-11: more digits identify one of them."""
    first, second = b"\xab" * 31 + b"\x01", b"\xab" * 31 + b"\x02"
    for record_id in (first, second):
        maker.lease(record_id=record_id)
    with pytest.raises(operations.SeveralRecords, match="give more digits") as several:
        operations.find_record(backend, "abab")
    assert several.value.record_ids == (first.hex(), second.hex())
    assert operations.find_record(backend, first.hex()).record_id == first


@pytest.mark.parametrize("text", ["", "abc", "order-42", "0" * 65, "xyzxyz"])
def test_what_is_no_record_id_is_refused_before_any_call(text: str) -> None:
    """P-11: the message shows an example."""

    class NoCalls(MemoryBackend):
        def ids(self, prefix: bytes = b"") -> None:  # type: ignore[override]  # it is never called
            raise AssertionError("called")

    with pytest.raises(operations.RecordUnknown, match="4 to 64 hexadecimal digits"):
        operations.find_record(NoCalls(), text)


class _OneUnreadable(MemoryBackend):
    """A backend with one record of a newer version."""

    newer = b""

    def get(self, c: object, /) -> Record | None:
        record = super().get(c)  # type: ignore[arg-type]  # as it is
        if record is not None and record.record_id == self.newer:
            raise RecordUnreadable("unknown record version")
        return record

    def scan_headers(self) -> object:  # type: ignore[override]  # a generator
        for record in super().scan_headers():
            if record.record_id == self.newer:
                raise RecordUnreadable("unknown record version")
            yield record


def test_a_record_of_a_newer_version_hides_no_other(clock: ManualClock) -> None:
    """P-10, P-16: it is counted, and the others are listed once."""
    backend = _OneUnreadable(clock=clock)
    maker = Maker(backend)
    leases = [maker.alive() for _ in range(3)]
    backend.newer = leases[1].record_id
    listing = operations.list_records(backend)
    assert {view.record for view in listing.records} == {leases[0].record_id.hex(), leases[2].record_id.hex()}
    assert (listing.matched, listing.unreadable) == (2, 1)
    counted = operations.stats(backend)
    assert (counted.total, counted.unreadable) == (2, 1)
