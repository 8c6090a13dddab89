"""Row 14: many duplicates at the same moment, at two server processes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.records import Records, everywhere
from tests.faults.site import PATIENCE
from tests.wire.case import Case
from tests.wire.client import Response
from tests.wire.servers import Server

DUPLICATES = 64


@pytest.fixture(params=["uvicorn-h11:asgi", pytest.param("waitress:wsgi", marks=pytest.mark.full_form)])
def cases(request: pytest.FixtureRequest, records: Records, tmp_path: Path) -> Iterator[list[Case]]:
    """One request at two processes."""
    kind, _, adapter = str(request.param).partition(":")
    with ExitStack() as stack:
        url = records.at(options="")
        servers = [stack.enter_context(Server(kind, tmp_path, WIRE_BACKEND=url)) for _ in range(2)]
        first, second = (Case(server, adapter, "gated") for server in servers)
        second.key, second.journal = first.key, first.journal
        yield [first, second]


@everywhere
@pytest.mark.fault("64 duplicates at once, two processes", row=14, invariants=("I1", "I2", "I4", "I6"))
def test_of_a_storm_of_duplicates_one_runs_and_all_get_its_response(cases: list[Case]) -> None:
    """B-01, O-02, O-03: the others get 409, and later the same bytes."""
    together = threading.Barrier(DUPLICATES)

    def ask(number: int) -> tuple[Response, Response]:
        together.wait(PATIENCE)
        first = cases[number % 2].ask()
        return first, cases[number % 2].ask_until_admitted()[1]

    with ThreadPoolExecutor(DUPLICATES) as pool:
        responses = [pool.submit(ask, number) for number in range(DUPLICATES)]
        cases[0].journal.await_line("arrived")
        cases[0].journal.gate().set()
        pairs = [response.result(3 * PATIENCE) for response in responses]
    assert {first.status for first, _ in pairs} <= {201, 409}
    assert {(last.status, last.body, last.replayed) for _, last in pairs} == {(201, pairs[0][1].body, True)}
    assert cases[0].journal.lines() == ["arrived", "ran"]
