"""The crash matrix with real processes: each cell of ``tests.faults.matrix``, one test for each manner.

The oracle is outside of the library and of the servers: the effects in a file and in a table, and the responses of two
HTTP clients. A short form runs with ``tox -e full``; ``OI_TEST_FAULTS=full`` runs every cell.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.faults.apps.shop import unfenced
from tests.faults.matrix import ASGI_SERVERS, EXTERNAL, SERVERS, TIME_LIMIT, Cell, cells
from tests.faults.matrix_trial import Fleet, Trial, closes_port
from tests.faults.matrix_trial import fleet as run_fleet
from tests.postgres_server import PostgresServer


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory, valkey_url: str, postgres18: PostgresServer) -> Iterator[Fleet]:
    """Servers that share records, journals and gates."""
    urls = {"redis": valkey_url, "postgres": postgres18.url()}
    yield from run_fleet(tmp_path_factory.mktemp("matrix"), urls)


@pytest.mark.parametrize("cell", cells("kill"))
def test_the_request_of_a_killed_worker_is_resumed_when_its_lease_has_ended(cell: Cell, fleet: Fleet) -> None:
    """L-02, O-03, O-09, R-03, B-11: within a lease and a heartbeat, after the last stage; or it is replayed."""
    with fleet.start(cell.server) as doomed:
        trial = Trial(cell, fleet, doomed, brisk=True)
        with trial.begin() as connection:
            during = trial.duplicates_while_renewed() if cell.server == "gunicorn-preload" else []
            trial.signal(signal.SIGKILL)
            retried = trial.retry()
            first = trial.response(connection)

    assert set(during) <= {409}
    assert first is None
    trial.check_waited(retried)
    trial.check_recorded(retried)
    trial.check_effects()


@pytest.mark.parametrize("cell", [cell.external for cell in EXTERNAL])
def test_an_external_stage_whose_worker_is_killed_in_the_gap_is_not_repeated(cell: Cell, fleet: Fleet) -> None:
    """S-04, L-02: the intent is on record and its effect unknown; the client gets 409 ``outcome-unknown``."""
    with fleet.start(cell.server) as doomed:
        trial = Trial(cell, fleet, doomed, brisk=True, script="external order")
        with trial.begin():
            trial.signal(signal.SIGKILL)
            retried = trial.retry()

    trial.check_waited(retried)
    assert retried.response.status == 409
    assert b":outcome-unknown" in retried.response.body
    assert unfenced(trial.case.journal) == {"reserve": 1, "charge": 1}


@pytest.mark.parametrize("cell", cells("freeze"))
def test_a_worker_that_wakes_after_its_lease_changes_nothing_and_its_client_gets_the_new_response(
    cell: Cell, fleet: Fleet
) -> None:
    """L-03, B-03, S-07: the new record stays; a stream that had begun is not ended properly."""
    trial = Trial(cell, fleet, fleet.first(cell.server), brisk=True)
    with trial.begin() as connection:
        during = trial.duplicates_while_renewed() if cell.server == "gunicorn-preload" else []
        trial.signal(signal.SIGSTOP)
        try:
            trial.await_frozen()
            retried = trial.retry()
            trial.open_gate()
        finally:
            trial.signal(signal.SIGCONT)
        first = trial.response(connection)

    assert set(during) <= {409}
    trial.check_waited(retried)
    if cell.point == "mid-stream":
        assert first is None, "a stream that nobody recorded was sent to its end"
    else:
        assert first is not None
        assert (first.status, first.body) == (201, retried.response.body)
    trial.check_recorded(retried)
    trial.check_effects()


@pytest.mark.parametrize("cell", cells("stop"))
def test_a_worker_that_is_stopped_finishes_its_request_and_the_retry_replays(cell: Cell, fleet: Fleet) -> None:
    """L-06, O-02, R-01: the old worker responds and records, and then ends."""
    with fleet.start(cell.server) as stopping:
        trial = Trial(cell, fleet, stopping)
        with trial.begin() as connection:
            stopping.terminate()
            closes_port(stopping, 0.3)
            trial.open_gate()
            first = trial.response(connection)
        retried = trial.retry()
        ended = stopping.wait()

    assert first is not None
    assert (first.status, first.replayed, first.body) == (201, False, retried.response.body)
    trial.check_recorded(retried)
    trial.check_effects()
    assert ended


@pytest.mark.parametrize("cell", cells("evict"))
def test_a_request_that_cannot_finish_before_its_worker_ends_is_given_back_at_once(cell: Cell, fleet: Fleet) -> None:
    """L-06, L-04: the retry does not wait for the lease; completed stages stay."""
    served = SERVERS[cell.server]
    with fleet.start(cell.server, *served.evict, **served.environment) as evicted:
        trial = Trial(cell, fleet, evicted, brisk=cell.outcome.waits)
        with trial.begin():
            evicted.terminate()
            retried = trial.retry()
            trial.open_gate()
        ended = evicted.wait()

    trial.check_recorded(retried)
    trial.check_effects()
    assert ended


@pytest.mark.parametrize("cell", cells("cancel"))
def test_a_request_whose_handler_is_cancelled_is_given_back_at_once(cell: Cell, fleet: Fleet) -> None:
    """L-04, O-08: the retry does not wait for the lease; completed stages stay, and a completion in progress ends."""
    if cell.server in ASGI_SERVERS:
        trial = Trial(cell, fleet, fleet.first(cell.server), adapter="django_asgi")
        trial.begin().close()
        retried = trial.retry()
        trial.open_gate()
    else:
        with fleet.start(cell.server, *TIME_LIMIT) as limited:
            trial = Trial(cell, fleet, limited)
            with trial.begin():
                retried = trial.retry()
                trial.open_gate()

    trial.check_recorded(retried)
    trial.check_effects()


@pytest.mark.parametrize("cell", cells("disconnect"))
def test_a_request_whose_client_left_finishes_and_the_retry_replays(cell: Cell, fleet: Fleet) -> None:
    """L-05, R-04: the handler goes on without its client, and its response is on record."""
    trial = Trial(cell, fleet, fleet.first(cell.server))
    trial.begin().close()
    trial.open_gate()
    trial.case.journal.await_line("effect receipt")  # otherwise the retry may claim first
    retried = trial.retry()

    trial.check_recorded(retried)
    trial.check_effects()
