"""A lost record's key that comes back with another request is refused, and leaves no record behind (S-06)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from open_idempotency import events, idem
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.commands import Forget, Get, Release, Renew, Unreserve
from open_idempotency._core.models import Renewal, Response, Stage
from open_idempotency._core.settlement import finish
from open_idempotency.exceptions import BackendUnavailable, KeyReused
from tests.django_project.calls import post, project
from tests.ledger.applications import FRAMEWORKS, Make
from tests.ledger.databases import INSERT, Database, django_alias
from tests.unit.builders import RECORD, Script, attempt_of, lease_of

NewDatabase = Callable[[str], Database]


@pytest.fixture(params=FRAMEWORKS)
def make(request: pytest.FixtureRequest) -> Make:
    """An application, in each framework."""
    return FRAMEWORKS[request.param]


@pytest.mark.parametrize("notifies", [False, True], ids=["", "after a plain stage"])
def test_the_right_request_is_let_in_after_a_wrong_one(make: Make, new_database: NewDatabase, notifies: bool) -> None:
    """S-06, O-05: a record with the wrong fingerprint would refuse the right request until it expires."""
    database = new_database("sqlite")
    database.make_tables()
    with make(database, notifies) as application:
        first = application.send(b"one")
        application.lose()
        wrong = application.send(b"other")
        assert (wrong.status, wrong.problem) == (422, "key-reused")
        assert application.records() == 0
        assert application.send(b"one") == first
    assert (first.status, database.orders()) == (201, 1)


def test_a_stage_of_another_database_refuses_an_atomic_view_in_django(new_database: NewDatabase, tmp_path: Any) -> None:
    """S-05, S-06, O-05: a ``tx`` stage raises in the middle of a view whose own ledger has no entry."""
    from django.db import connections, transaction
    from django.http import HttpRequest, HttpResponse
    from django.test import Client

    from open_idempotency.django import idempotent

    (tmp_path / "other").mkdir()
    rows, stock = new_database("sqlite"), Database(f"sqlite:///{tmp_path}/other/stock.db")
    for database in (rows, stock):
        database.make_tables()
    with django_alias(rows) as alias, django_alias(stock) as other:

        def insert(into: str) -> None:
            with connections[into].cursor() as cursor:
                cursor.execute(INSERT)

        @idempotent(atomic=alias)
        def view(request: HttpRequest) -> HttpResponse:
            insert(alias)
            with transaction.atomic(other), idem.stage("reserve", tx=other) as stage:
                if not stage.done:
                    insert(other)
            return HttpResponse(status=201)

        with project(view) as backend:
            assert post(Client(), data="one").status_code == 201
            for record in list(backend.scan()):
                backend.delete(record.record_id)
            rows.query("DELETE FROM open_idempotency_ledger")
            refused = post(Client(), data="other")
            assert (refused.status_code, refused.json()["status"]) == (422, 422)
            assert list(backend.scan()) == []
            assert post(Client(), data="one").status_code == 201
    assert (rows.orders(), stock.orders()) == (2, 1)


# The steps


def refused(*stages: Stage, attempt: int = 1) -> Attempt:
    """An attempt that the ledger refused, of a caller with a quota."""
    made = attempt_of(*stages, owned=lease_of(attempt=attempt))
    made.scope_id, made.interrupted = b"c" * 32, KeyReused("another request")
    return made


def ended(attempt: Attempt, **results: Any) -> Script:
    """The commands that the end of an attempt sends, for these results."""
    prepared = {Renew: [[Renewal.OWNED]], Forget: [True], Release: [None], Unreserve: [None], Get: [None]}
    script = Script({**prepared, **{getattr(_COMMANDS, name): value for name, value in results.items()}})
    script.run(finish(attempt, Response(500, [], b"")))
    return script


class _COMMANDS:
    renew, forget = Renew, Forget


STAGE = Stage("notify", "", b"done")


def test_without_stages_it_is_a_release() -> None:
    """A claim without stages is released in one round trip."""
    assert ended(refused()).names() == ["Release", "Unreserve"]


@pytest.mark.parametrize("attempt", [refused(STAGE), refused(attempt=2)], ids=["stages", "an earlier attempt"])
def test_what_a_release_would_leave_is_deleted(attempt: Attempt) -> None:
    """S-06: the record is deleted once the owner is confirmed, and its quota slot is freed."""
    script = ended(attempt)
    assert script.names() == ["Renew", "Forget", "Unreserve"]
    assert script.asked[1] == Forget(RECORD)


def test_a_record_that_is_somebody_elses_by_now_is_not_deleted() -> None:
    """I3: a stale owner changes nothing."""
    assert ended(refused(STAGE), renew=[[Renewal.LOST]]).names() == ["Renew", "Get"]


@pytest.mark.parametrize("down", [{"renew": [BackendUnavailable("")]}, {"forget": [BackendUnavailable("")]}])
def test_a_record_that_cannot_be_deleted_is_reported(down: dict[str, Any]) -> None:
    """O-12: the client is refused nevertheless."""
    attempt = refused(STAGE)
    ended(attempt, **down)
    seen: Any = attempt.policy.on_event
    assert [(type(event), event.verb) for event in seen.seen] == [(events.BackendFailed, "delete")]
