"""One row for each key, and one response for each client, whatever kills or freezes the worker or deletes records."""

from __future__ import annotations

import signal
from contextlib import nullcontext

import pytest

from tests import mariadb_server
from tests.proof import FULL, KEYS
from tests.proof.cells import RETRIES, Cell, Site, groups_of, keys_of, new_served, wrong
from tests.proof.forms import FORMS, ON_MYSQL, WITH_A_GAP
from tests.proof.traps import AFTER_CLAIM, AFTER_COMMIT, FREEZING_POINTS, POINTS

pytestmark = pytest.mark.timeout(3600 if FULL else 300)

#: concurrent keys of a form
_BATCH = 170
_FROZEN_BATCH = 20
#: in the full form each cell is a test for each form
_DEATHS = [(point,) for point in POINTS] if FULL else [POINTS]
_FREEZES = [(point,) for point in FREEZING_POINTS] if FULL else [FREEZING_POINTS]
#: with the records flushed or not: in the short form not every form is frozen in both
_FROZEN = [
    pytest.param(form, lost, id=f"{form}-{'records flushed' if lost else 'records kept'}")
    for number, form in enumerate(FORMS)
    for lost in ((False, True) if FULL else (number % 2 == 0,))
]


def names_of(points: tuple[str, ...]) -> str:
    """The test id."""
    return "; ".join(points) if FULL else "everywhere"


@pytest.mark.parametrize("lost", [False, True], ids=["records kept", "records flushed"])
@pytest.mark.parametrize("points", _DEATHS, ids=names_of)
@pytest.mark.parametrize("form", FORMS)
def test_a_killed_worker_leaves_one_row_and_one_response(
    site: Site, form: str, points: tuple[str, ...], lost: bool
) -> None:
    """S-05, S-06, B-08a, O-09: killed at each point, the records flushed or not, then retried 64 times at once."""
    _kill(site, form, points, lost)


def _kill(site: Site, form: str, points: tuple[str, ...], lost: bool) -> None:
    for count in _batches(KEYS, _BATCH):
        groups = [group for point in points for group in groups_of(Cell(point), count)]
        keys, served = keys_of(groups), new_served()
        site.die(form, groups)
        with site.flushing() if lost else nullcontext():
            site.served(site.storm(form, keys), served)
        assert wrong(site.orders(keys), served, RETRIES) == {}


@pytest.mark.parametrize("points", _FREEZES, ids=names_of)
@pytest.mark.parametrize(("form", "lost"), _FROZEN)
def test_a_frozen_worker_leaves_one_row_and_one_response(
    site: Site, form: str, points: tuple[str, ...], lost: bool
) -> None:
    """S-05, S-06, L-03: frozen past its lease in mid-transaction, taken over 64 times at once, and thawed."""
    _freeze(site, form, points, lost)


def _freeze(site: Site, form: str, points: tuple[str, ...], lost: bool) -> None:
    for count in _batches(KEYS, _FROZEN_BATCH):
        free, locked = (
            [group for point in points if (point == AFTER_CLAIM) is before for group in _frozen_groups(point, count)]
            for before in (True, False)
        )
        served = new_served()
        pids, waiting = site.freeze(form, free), site.freeze(form, locked)
        if lost:
            site.flush()
        if free:  # no retry has to wait for them
            site.served(site.storm(form, keys_of(free)), served)
            site.thaw(pids)
        storm = site.storm(form, keys_of(locked)) if locked else []
        if locked:
            site.wait_for_the_frozen()
            site.thaw(waiting)
        site.served([*pids, *waiting, *storm], served)
        keys = keys_of(free + locked)
        assert wrong(site.orders(keys), served, RETRIES + 1) == {}


if mariadb_server.IN_USE:

    @pytest.mark.parametrize("points", _DEATHS, ids=names_of)
    @pytest.mark.parametrize("form", ON_MYSQL)
    def test_on_mysql_a_killed_worker_leaves_one_row(site_on_mysql: Site, form: str, points: tuple[str, ...]) -> None:
        """S-05, S-06: the rows in MySQL or MariaDB under REPEATABLE READ, and every record lost."""
        _kill(site_on_mysql, form, points, lost=True)

    @pytest.mark.parametrize("points", _FREEZES, ids=names_of)
    @pytest.mark.parametrize("form", ON_MYSQL)
    def test_on_mysql_a_frozen_worker_leaves_one_row(site_on_mysql: Site, form: str, points: tuple[str, ...]) -> None:
        """S-05, S-06, L-03: retries wait for its lock; it commits, or all of it is rolled back."""
        _freeze(site_on_mysql, form, points, lost=True)


def test_without_a_transaction_the_gap_shows(site: Site) -> None:
    """S-05: the proof can fail: a stage that does not commit with the row runs twice."""
    groups, served = groups_of(Cell(AFTER_COMMIT), 3), new_served()
    site.die(WITH_A_GAP, groups)
    site.served(site.storm(WITH_A_GAP, keys_of(groups)), served)
    assert set(wrong(site.orders(keys_of(groups)), served, RETRIES).values()) == {"2 rows"}


def _frozen_groups(point: str, count: int) -> list[tuple[Cell, list[str]]]:
    return groups_of(Cell(point, signal.SIGSTOP), count)


def _batches(count: int, size: int) -> list[int]:
    return [min(size, count - start) for start in range(0, count, size)]
