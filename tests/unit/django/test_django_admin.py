"""The admin pages: what they show of records, what they hide, and how records are forgotten."""

# ruff: noqa: E402 (Django has to be set up before what needs its settings is imported)
from __future__ import annotations

import secrets
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest

from tests.django_project import set_up

set_up()

from django.test import Client, override_settings

from open_idempotency._core.models import Response
from open_idempotency._core.stored_response import encode_response
from open_idempotency.backend import Complete, Fail, Get, Lease, Leased, SaveStage
from open_idempotency.backends.django_orm import DjangoBackend
from open_idempotency.conformance.support import claim_of, stage_of
from open_idempotency.django.models import LedgerStage, Record
from tests.django_project.admin_site import LIST, admin_site, client_of
from tests.operations.stores import value

SECRET = b"5105105105105100"


class Clock:
    """The clock of records that a test makes; the pages use the real time."""

    def __init__(self, backend: DjangoBackend) -> None:
        self.now = backend.now()

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module", autouse=True)
def _project() -> Iterator[None]:
    """A project with the admin pages, and its tables."""
    with admin_site():
        yield


@pytest.fixture
def backend() -> Iterator[DjangoBackend]:
    """An empty backend with a clock that a test may move."""
    Record.objects.all().delete()
    LedgerStage.objects.all().delete()
    real = DjangoBackend()
    clock = Clock(real)
    real.close()
    backend = DjangoBackend(clock=clock)
    backend.clock = clock
    yield backend
    backend.close()


def _operator() -> Client:
    return client_of("view_record", "delete_record")


def _lease(backend: DjangoBackend, record_id: bytes) -> Lease:
    result = backend.claim(claim_of(record_id))
    assert isinstance(result, Leased), result
    return result.lease


def _make_one_of_each(backend: Any) -> dict[str, str]:
    """Make a record in each state; return their digests."""
    ids = {
        name: secrets.token_bytes(32) for name in ("expired", "abandoned", "running", "completed", "failed", "final")
    }
    begun = backend.clock.now
    for name, ago in (("expired", 100_000), ("abandoned", 100)):
        backend.clock.now = begun - ago
        _lease(backend, ids[name])
    backend.clock.now = begun
    _lease(backend, ids["running"])
    backend.complete(Complete(_lease(backend, ids["completed"]), encode_response(Response(201, [], SECRET))))
    backend.fail(Fail(_lease(backend, ids["failed"])))
    backend.fail(Fail(_lease(backend, ids["final"]), final=True))
    ids["unreadable"] = secrets.token_bytes(32)
    _lease(backend, ids["unreadable"])
    Record.objects.filter(record_id=ids["unreadable"].hex()).update(record_version=9)
    if not Record.objects.filter(record_id=ids["expired"].hex()).exists():
        # A claim of this function has purged the expired record.
        backend.clock.now = begun - 100_000
        _lease(backend, ids["expired"])
    return {name: record_id.hex() for name, record_id in ids.items()}


def _shown(response: Any) -> set[str]:
    return {record.record_id for record in response.context_data["cl"].result_list}


STATES = ["running", "abandoned", "completed", "failed", "final", "expired", "unreadable"]


@pytest.mark.parametrize("state", STATES)
def test_records_are_listed_by_state(backend: DjangoBackend, state: str) -> None:
    """Each state has its filter, and each record is in one state."""
    digests = _make_one_of_each(backend)
    assert _shown(_operator().get(LIST, {"state": state})) == {digests[state]}


def test_records_are_listed_by_age(backend: DjangoBackend) -> None:
    """The age counts from the latest attempt."""
    digests = _make_one_of_each(backend)
    client = _operator()
    assert _shown(client.get(LIST, {"age": "older"})) == {digests["expired"]}
    assert _shown(client.get(LIST, {"age": "hour"})) == set(digests.values()) - {digests["expired"]}
    assert digests["abandoned"] not in _shown(client.get(LIST, {"age": "minute"}))
    assert _shown(client.get(LIST, {"age": "no such age"})) == set(digests.values())


@pytest.mark.parametrize("column", range(1, 8))
def test_every_column_can_be_sorted_or_left_alone(backend: DjangoBackend, column: int) -> None:
    """The database sorts, also by annotations."""
    _make_one_of_each(backend)
    assert len(_shown(_operator().get(LIST, {"o": str(column)}))) == 7


@pytest.mark.parametrize("length", [1, 11, 12, 64])
def test_a_record_is_found_by_the_beginning_of_its_digest(backend: DjangoBackend, length: int) -> None:
    """Events and logs name a record by it."""
    _lease(backend, bytes.fromhex("ab" * 32))
    _lease(backend, bytes.fromhex("cd" * 32))
    assert _shown(_operator().get(LIST, {"q": ("ab" * 32)[:length]})) == {"ab" * 32}


@pytest.mark.parametrize("term", ["not hexadecimal", "f" * 300, "%", "'"])
def test_what_is_no_digest_finds_nothing(backend: DjangoBackend, term: str) -> None:
    """Other search terms are not interpreted."""
    _lease(backend, b"\xff" * 32)
    assert _shown(_operator().get(LIST, {"q": term})) == set()


def test_a_record_is_shown_with_its_stages_and_nothing_that_is_stored(backend: DjangoBackend) -> None:
    """P-43: the page shows names and sizes; neither the response nor a value."""
    record_id = secrets.token_bytes(32)
    lease = _lease(backend, record_id)
    backend.save_stage(SaveStage(lease, value("charge", SECRET.decode(), "<b>1</b>")))
    backend.save_stage(SaveStage(lease, value("mail", "123")))
    backend.complete(Complete(lease, encode_response(Response(201, [], b"response " + SECRET))))
    ours = {"record_id": record_id.hex(), "stage_id": "00", "name": "order", "stage_key": "7"}
    LedgerStage.objects.create(**ours, frame=SECRET)
    text = _operator().get(f"{LIST}{record_id.hex()}/change/").content.decode()
    assert "&lt;b&gt;1&lt;/b&gt;" in text
    assert text.index("charge") < text.index("mail")
    assert text.index("mail") < text.index("<td>order</td><td>7</td><td>16 bytes</td>")
    assert SECRET.decode() not in text
    assert "_save" not in text


def test_a_record_that_is_not_there_is_no_error(backend: DjangoBackend) -> None:
    """The admin redirects to its front page, with a message."""
    for digest in ("00" * 32, "no-digest"):
        assert _operator().get(f"{LIST}{digest}/change/").status_code == 302


def _select(records: list[str], **more: Any) -> dict[str, Any]:
    return {"action": "forget", "_selected_action": records, **more}


def _confirmed(client: Client, records: list[str], **more: Any) -> dict[str, Any]:
    """The fields that the confirmation form posts."""
    asked = client.post(LIST, _select(records)).context_data["records"]
    return _select(records, confirmed="yes", seen=[f"{each.record}:{each.mark}" for each in asked], **more)


def test_forgetting_asks_first(backend: DjangoBackend) -> None:
    """The page explains the consequences, and marks records whose attempts run."""
    digests = _make_one_of_each(backend)
    response = _operator().post(LIST, _select([digests["running"], digests["completed"]]))
    text = response.content.decode()
    assert text.count("an attempt may hold it") == 1
    assert "may run beside the next" in text
    assert Record.objects.count() == 7


def test_a_confirmed_record_is_forgotten_with_its_stages(backend: DjangoBackend) -> None:
    """B-09: the backend's own verb deletes it; the admin's history says who did it."""
    record_id, other = secrets.token_bytes(32), secrets.token_bytes(32)
    backend.save_stage(SaveStage(_lease(backend, record_id), stage_of("charge")))
    _lease(backend, other)
    client = _operator()
    assert client.post(LIST, _confirmed(client, [record_id.hex()], force="yes")).status_code == 302
    assert backend.get(Get(record_id)) is None
    assert backend.get(Get(other)) is not None
    assert _lease(backend, record_id).attempt == 1
    history = import_module("django.contrib.admin.models").LogEntry.objects.get(object_id=record_id.hex())
    assert history.is_deletion()


def test_an_unreadable_record_can_be_forgotten_by_force(backend: DjangoBackend) -> None:
    """B-08b, B-09, P-41: an attempt of a newer version may hold it."""
    digests, client = _make_one_of_each(backend), _operator()
    client.post(LIST, _confirmed(client, [digests["unreadable"]]))
    assert Record.objects.filter(record_id=digests["unreadable"]).exists()
    client.post(LIST, _confirmed(client, [digests["unreadable"]], force="yes"))
    assert not Record.objects.filter(record_id=digests["unreadable"]).exists()


def test_records_that_attempts_hold_are_left_unless_forced(backend: DjangoBackend) -> None:
    """P-41: the other records are forgotten."""
    digests, client = _make_one_of_each(backend), _operator()
    response = client.post(LIST, _confirmed(client, [digests["running"], digests["completed"]]), follow=True)
    assert "is held by an attempt" in response.content.decode()
    assert backend.get(Get(bytes.fromhex(digests["running"]))) is not None
    assert backend.get(Get(bytes.fromhex(digests["completed"]))) is None


def test_a_record_that_has_changed_since_it_was_shown_is_left(backend: DjangoBackend) -> None:
    """P-42: also in the list, and also if the record was forgotten and made anew in between."""
    record_id, client = secrets.token_bytes(32), _operator()
    _lease(backend, record_id)
    stale = _confirmed(client, [record_id.hex()], force="yes")
    backend.delete(record_id)
    _lease(backend, record_id)
    assert "has changed" in client.post(LIST, stale, follow=True).content.decode()
    assert backend.get(Get(record_id)) is not None


def test_who_may_only_look_cannot_forget(backend: DjangoBackend) -> None:
    """The permission is checked in the list and when the form is posted."""
    record_id = secrets.token_bytes(32)
    _lease(backend, record_id)
    client = client_of("view_record")
    assert 'value="forget"' not in client.get(LIST).content.decode()
    client.post(LIST, _select([record_id.hex()], confirmed="yes"))
    assert backend.get(Get(record_id)) is not None


def test_who_may_not_look_sees_nothing(backend: DjangoBackend) -> None:
    """A member of the staff without the permission."""
    record_id = secrets.token_bytes(32)
    _lease(backend, record_id)
    client = client_of()
    assert client.get(LIST).status_code == 403
    assert client.get(f"{LIST}{record_id.hex()}/change/").status_code == 403
    assert client.post(LIST, _select([record_id.hex()], confirmed="yes")).status_code == 403
    assert backend.get(Get(record_id)) is not None


def test_nobody_adds_changes_or_deletes_by_the_usual_pages(backend: DjangoBackend) -> None:
    """The pages are read-only, for superusers too."""
    record_id = secrets.token_bytes(32)
    _lease(backend, record_id)
    client = client_of(is_superuser=True)
    assert client.get(f"{LIST}add/").status_code == 403
    assert client.post(f"{LIST}{record_id.hex()}/change/", {"attempt": 9}).status_code == 403
    assert client.post(f"{LIST}{record_id.hex()}/delete/", {"post": "yes"}).status_code == 403
    assert 'value="delete_selected"' not in client.get(LIST).content.decode()
    record = backend.get(Get(record_id))
    assert record is not None
    assert record.attempt == 1


def test_no_list_is_shown_where_another_backend_holds_the_records(backend: DjangoBackend) -> None:
    """P-45: an empty list would mislead; the page finds a key, and names the commands that list records."""
    client = client_of(is_superuser=True)
    with override_settings(IDEMPOTENCY_BACKEND="memory://"):
        text = client.get(LIST).content.decode()
        assert "manage.py idempotency list --state stuck" in text
        assert "belong to one process each" in text
    assert "manage.py" not in client.get(LIST).content.decode()


def test_the_pages_are_hidden_where_there_is_no_backend(backend: DjangoBackend) -> None:
    """The project does not use the middleware."""
    client = client_of(is_superuser=True)
    with override_settings(IDEMPOTENCY_BACKEND=None):
        assert client.get(LIST).status_code == 403
        assert LIST not in client.get("/admin/").content.decode()


def test_a_backend_that_was_made_by_hand_is_used_as_it_is(backend: DjangoBackend) -> None:
    """``IDEMPOTENCY_BACKEND`` takes a sync or an async instance."""
    record_id = secrets.token_bytes(32)
    _lease(backend, record_id)
    for made in (backend, backend.to_async()):
        with override_settings(IDEMPOTENCY_BACKEND=made):
            assert _shown(_operator().get(LIST)) == {record_id.hex()}
