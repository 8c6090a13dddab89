"""A duplicate that waits for the first request: how long it waits, which slot it takes, and what its client gets."""

from __future__ import annotations

import asyncio

import pytest

from open_idempotency._core.attempt import Attempt
from open_idempotency._core.commands import Claim, DrawReference, Emit, Now, TakeSlot, Wait
from open_idempotency._core.models import Busy, Finished, Leased
from open_idempotency.exceptions import BackendUnavailable
from tests.unit.builders import lease_of
from tests.unit.core.admissions import FRAME, Admission, name


def sleeps(admission: Admission) -> float:
    """How long the duplicate waited each time."""
    return sum(command.pause for command in admission.script.asked if isinstance(command, Wait))


def test_a_waiting_duplicate_asks_again_until_the_first_is_done() -> None:
    """O-04."""
    admission = Admission(Busy(1, 9), Busy(1, 9), Finished(FRAME), wait=5)
    assert admission.run().body == b"made"
    assert [n for n in admission.script.names() if n in ("Claim", "Wait")] == ["Claim", "Wait"] * 2 + ["Claim"]


def test_a_waiting_duplicate_takes_over_where_the_first_failed_meanwhile() -> None:
    """O-04, O-08."""
    assert isinstance(Admission(Busy(1, 9), Leased(lease_of(attempt=2)), wait=5).run(), Attempt)


def test_a_waiting_duplicate_gives_up_at_its_deadline() -> None:
    """O-04, I11: the duplicate gets 409 at its deadline, and never later."""
    admission = Admission(*[Busy(1, 9)] * 100, wait=3)
    assert name(admission.problem()) == "in-progress"
    assert sleeps(admission) == pytest.approx(3.0)
    asked = [type(command) for command in admission.script.asked if not isinstance(command, DrawReference | Emit)]
    assert asked[-2:] == [Claim, Now]


def test_pauses_between_tries_grow_up_to_a_second() -> None:
    """O-04: a waiting duplicate does not flood the backend."""
    admission = Admission(*[Busy(1, 9)] * 100, wait=20)
    admission.run()
    pauses = [command.pause for command in admission.script.asked if isinstance(command, Wait)]
    assert pauses[0] == 0.05
    assert pauses[:-1] == sorted(pauses[:-1])
    assert max(pauses) == 1.0


@pytest.mark.parametrize(
    "prefer", [b"wait=2", b"respond-async, wait=2", b"WAIT = 2", b'wait="2"', b"wait=2; x", b"a;b, wait=2"]
)
def test_a_client_may_ask_to_wait(prefer: bytes) -> None:
    """O-04, RFC 7240."""
    admission = Admission(*[Busy(1, 9)] * 100, headers=[(b"prefer", prefer)], max_wait=30)
    admission.run()
    assert sleeps(admission) == pytest.approx(2.0)


def test_what_a_client_asks_for_is_capped() -> None:
    """O-04."""
    admission = Admission(*[Busy(1, 9)] * 100, headers=[(b"prefer", b"wait=999999")], max_wait=3)
    admission.run()
    assert sleeps(admission) == pytest.approx(3.0)


def test_a_client_may_ask_not_to_wait() -> None:
    """O-04."""
    admission = Admission(Busy(1, 9), headers=[(b"prefer", b"wait=0")], max_wait=3, wait=2)
    admission.run()
    assert sleeps(admission) == 0


@pytest.mark.parametrize("prefer", [b"wait=2x", b"await=2", b"wait=-1", b"wait=1234567", b"wait"])
def test_a_preference_that_is_none_leaves_the_policys_wait(prefer: bytes) -> None:
    """O-04."""
    admission = Admission(*[Busy(1, 9)] * 100, headers=[(b"prefer", prefer)], max_wait=30, wait=1)
    admission.run()
    assert sleeps(admission) == pytest.approx(1.0)


def test_a_preference_is_ignored_where_the_policy_allows_none() -> None:
    """O-04."""
    admission = Admission(Busy(1, 9), headers=[(b"prefer", b"wait=9")])
    admission.run()
    assert sleeps(admission) == 0


def test_a_waiting_duplicate_that_is_cancelled_asks_nothing_more() -> None:
    """O-04: the duplicate owns no lease."""
    admission = Admission(Busy(1, 9), wait=5)
    admission.script.results[Wait] = [asyncio.CancelledError()]
    with pytest.raises(asyncio.CancelledError):
        admission.run()
    assert admission.script.names()[-1] == "Wait"
    assert admission.script.slots == 1


def test_a_duplicate_that_has_waited_gives_its_place_back() -> None:
    """O-04, I11: the slot is freed, whatever the duplicate got."""
    for last in (Finished(FRAME), Leased(lease_of()), BackendUnavailable("down")):
        admission = Admission(Busy(1, 9), last, wait=5)
        admission.run()
        assert admission.script.slots == 1


def test_a_duplicate_without_a_free_slot_is_refused_at_once() -> None:
    """O-04: duplicates must not use up the threads that the owner needs."""
    admission = Admission(Busy(1, 9), wait=5, max_waiting=3)
    admission.script.slots = 0
    assert name(admission.problem()) == "in-progress"
    asked = admission.script.asked
    assert [command.slots for command in asked if isinstance(command, TakeSlot)] == [3]
    assert sleeps(admission) == 0


def test_a_duplicate_that_does_not_wait_takes_no_place() -> None:
    """O-03: it costs one round trip and no slot."""
    admission = Admission(Busy(1, 9))
    admission.run()
    assert admission.script.names() == ["Call", "Call", "Claim"]


def test_a_wait_ends_with_the_lease_that_it_waits_for() -> None:
    """O-04, O-09: no notification is sent when a lease ends."""
    admission = Admission(Busy(29, 0.4), Leased(lease_of(attempt=2)), wait=20)
    admission.run()
    waits = [command.seconds for command in admission.script.asked if isinstance(command, Wait)]
    assert waits == [0.4]


def test_a_client_whose_preference_was_applied_gets_the_header() -> None:
    """O-04, RFC 7240 section 3."""
    admission = Admission(Busy(1, 9), Finished(FRAME), headers=[(b"prefer", b"wait=9")], max_wait=3)
    assert (b"preference-applied", b"wait=3") in admission.run().headers


def test_a_client_that_did_not_wait_gets_no_preference_applied() -> None:
    """O-04, RFC 7240 section 3."""
    admission = Admission(Finished(FRAME), headers=[(b"prefer", b"wait=9")], max_wait=3)
    assert b"preference-applied" not in dict(admission.run().headers)
