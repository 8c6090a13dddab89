"""The log at level DEBUG for each request, on every adapter, without an event listener."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from uuid import uuid4

import pytest

from open_idempotency import events
from tests.http.behaviours import PATIENCE
from tests.http.conftest import NewCase
from tests.http.endpoints import always_raising, charge, gated, responding
from tests.http.sites import Case, poll
from tests.http.variants import on_memory_only

pytestmark = on_memory_only


class Log:
    """The events in the log, in order."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def kinds(self) -> list[str]:
        """The names of the events' classes."""
        said = [record.args[0] for record in self._caplog.records if isinstance(record.args, tuple) and record.args]
        return [type(event).__name__ for event in said if isinstance(event, events.Event)]

    def wait_for(self, *names: str) -> None:
        """Wait until the log has exactly these events; some are logged after the response has left."""
        poll(lambda: len(self.kinds()) >= len(names))
        assert self.kinds() == list(names)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[Log]:
    with caplog.at_level(logging.DEBUG, "open_idempotency"):
        yield Log(caplog)


def test_the_log_says_that_a_request_ran_was_replayed_and_was_mistaken_for_another(new_case: NewCase, log: Log) -> None:
    """O-33: ``on_event`` is not set."""
    case = new_case(charge, "unheard")
    case.send()
    case.send()
    case.send(body=b"other")
    log.wait_for("Claimed", "Completed", "Replayed", "KeyReused", "ProblemSent")


def test_the_log_says_that_an_attempt_failed_or_was_released(new_case: NewCase, log: Log) -> None:
    """O-33: each event has the status of its response."""
    new_case(always_raising, "unheard").send()
    new_case(responding(429), "unheard").send()
    log.wait_for("Claimed", "Failed", "Claimed", "Released")


def test_the_log_says_that_the_first_request_still_runs(new_case: NewCase, log: Log) -> None:
    """O-33: a 409 is in the log, and so is the running attempt that it met."""
    case = new_case(gated, "unheard")
    first = case.start()
    assert case.script.arrived.wait(PATIENCE)
    case.send()
    case.script.release.set()
    first.result(PATIENCE)
    log.wait_for("Claimed", "Conflicted", "ProblemSent", "Completed")


def test_the_log_says_why_a_request_was_refused_before_its_claim(
    new_case: NewCase, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    """O-33: a missing key, a malformed one, and a body that is too long; none of them has a record."""
    new_case(charge, "unheard, required").send(key=None)
    new_case(charge, "unheard").raw((b"Idempotency-Key", b'"abc'))
    new_case(charge, "unheard, small").send(key=str(uuid4()), body=b"b" * 2_000)
    log.wait_for(*["ProblemSent"] * 3)
    for problem in ("key-missing", "key-malformed", "body-too-large"):
        assert f"problem='{problem}'" in caplog.text


def test_the_log_has_no_key_and_no_body(new_case: NewCase, log: Log, caplog: pytest.LogCaptureFixture) -> None:
    """O-33: a record is named by the beginning of its digest."""
    case: Case = new_case(charge, "unheard")
    case.send(body=b'{"card": "4111"}')
    log.wait_for("Claimed", "Completed")
    said = [record.getMessage() for record in caplog.records if record.name == "open_idempotency"]
    assert not [line for line in said if case.key in line or "4111" in line]
