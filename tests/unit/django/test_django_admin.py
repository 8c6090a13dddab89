"""The admin pages: what they show of records, what they keep to themselves, and how records are forgotten."""

# ruff: noqa: E402 (Django has to be set up before what needs its settings is imported)
from __future__ import annotations

import secrets
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest

from tests.django_project import set_up

set_up()

from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.db import connections
from django.test import Client, override_settings
from django.urls import path

from open_idempotency.backend import Complete, Fail, Get, Lease, Leased, SaveStage
from open_idempotency.backends.django_orm import DjangoBackend
from open_idempotency.conformance.support import claim_of, stage_of
from open_idempotency.django.models import LedgerStage, Record

LIST = "/admin/open_idempotency/record/"
SECRET = b"5105105105105100"
PROJECT: dict[str, Any] = {
    "INSTALLED_APPS": [
        "django.contrib.admin",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.messages",
        "django.contrib.sessions",
        "open_idempotency.django",
    ],
    "MIDDLEWARE": [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    "TEMPLATES": [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ]
            },
        }
    ],
    "IDEMPOTENCY_BACKEND": "django://default",
    "STATIC_URL": "/static/",
}


class Clock:
    """The time of records that a test makes; the pages go by the real one."""

    def __init__(self, backend: DjangoBackend) -> None:
        self.now = backend.now()

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module", autouse=True)
def _project() -> Iterator[None]:
    """A project with the admin pages, and its tables."""
    with override_settings(**PROJECT):
        site = import_module("django.contrib.admin").site
        urls = type("Urls", (), {"urlpatterns": [path("admin/", site.urls)]})
        with override_settings(ROOT_URLCONF=urls):
            call_command("migrate", verbosity=0, interactive=False, skip_checks=True)
            yield
            connections.close_all()


@pytest.fixture
def backend() -> Iterator[DjangoBackend]:
    """The backend, empty, with a clock that a test may move."""
    Record.objects.all().delete()
    LedgerStage.objects.all().delete()
    real = DjangoBackend()
    clock = Clock(real)
    real.close()
    backend = DjangoBackend(clock=clock)
    backend.clock = clock
    yield backend
    backend.close()


def _client(*permissions: str, **more: Any) -> Client:
    user = User.objects.create_user(f"user-{secrets.token_hex(4)}", is_staff=True, **more)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


def _operator() -> Client:
    return _client("view_record", "delete_record")


def _lease(backend: DjangoBackend, record_id: bytes) -> Lease:
    answer = backend.claim(claim_of(record_id))
    assert isinstance(answer, Leased), answer
    return answer.lease


def _make_one_of_each(backend: Any) -> dict[str, str]:
    """A record in each state; their digests."""
    ids = {
        name: secrets.token_bytes(32) for name in ("expired", "abandoned", "running", "completed", "failed", "final")
    }
    begun = backend.clock.now
    for name, ago in (("expired", 100_000), ("abandoned", 100)):
        backend.clock.now = begun - ago
        _lease(backend, ids[name])
    backend.clock.now = begun
    _lease(backend, ids["running"])
    backend.complete(Complete(_lease(backend, ids["completed"]), SECRET))
    backend.fail(Fail(_lease(backend, ids["failed"])))
    backend.fail(Fail(_lease(backend, ids["final"]), final=True))
    ids["unreadable"] = secrets.token_bytes(32)
    _lease(backend, ids["unreadable"])
    Record.objects.filter(record_id=ids["unreadable"].hex()).update(record_version=9)
    if not Record.objects.filter(record_id=ids["expired"].hex()).exists():
        # A claim on the way has purged it.
        backend.clock.now = begun - 100_000
        _lease(backend, ids["expired"])
    return {name: record_id.hex() for name, record_id in ids.items()}


def _shown(response: Any) -> set[str]:
    return {record.record_id for record in response.context_data["cl"].result_list}


STATES = ["running", "abandoned", "completed", "failed", "final", "expired", "unreadable"]


@pytest.mark.parametrize("state", STATES)
def test_records_are_listed_by_state(backend: DjangoBackend, state: str) -> None:
    """Each state has its filter, and a record is in one state."""
    digests = _make_one_of_each(backend)
    assert _shown(_operator().get(LIST, {"state": state})) == {digests[state]}


def test_records_are_listed_by_age(backend: DjangoBackend) -> None:
    """Since the latest attempt began."""
    digests = _make_one_of_each(backend)
    client = _operator()
    assert _shown(client.get(LIST, {"age": "older"})) == {digests["expired"]}
    assert _shown(client.get(LIST, {"age": "hour"})) == set(digests.values()) - {digests["expired"]}
    assert digests["abandoned"] not in _shown(client.get(LIST, {"age": "minute"}))
    assert _shown(client.get(LIST, {"age": "no such age"})) == set(digests.values())


@pytest.mark.parametrize("column", range(1, 8))
def test_every_column_can_be_sorted_or_left_alone(backend: DjangoBackend, column: int) -> None:
    """The database sorts, annotations included."""
    _make_one_of_each(backend)
    assert len(_shown(_operator().get(LIST, {"o": str(column)}))) == 7


@pytest.mark.parametrize("length", [1, 11, 12, 64])
def test_a_record_is_found_by_the_beginning_of_its_digest(backend: DjangoBackend, length: int) -> None:
    """Events and logs name a record so."""
    _lease(backend, bytes.fromhex("ab" * 32))
    _lease(backend, bytes.fromhex("cd" * 32))
    assert _shown(_operator().get(LIST, {"q": ("ab" * 32)[:length]})) == {"ab" * 32}


@pytest.mark.parametrize("term", ["not hexadecimal", "f" * 300, "%", "'"])
def test_what_is_no_digest_finds_nothing(backend: DjangoBackend, term: str) -> None:
    """Nothing is read into it."""
    _lease(backend, b"\xff" * 32)
    assert _shown(_operator().get(LIST, {"q": term})) == set()


def test_a_record_is_shown_with_its_stages_and_nothing_that_is_stored(backend: DjangoBackend) -> None:
    """Names and sizes; neither the answer nor a value."""
    record_id = secrets.token_bytes(32)
    lease = _lease(backend, record_id)
    backend.save_stage(SaveStage(lease, stage_of("charge", "<b>1</b>", SECRET)))
    backend.save_stage(SaveStage(lease, stage_of("mail", frame=b"123")))
    backend.complete(Complete(lease, b"answer " + SECRET))
    ours = {"record_id": record_id.hex(), "stage_id": "00", "name": "order", "stage_key": "7"}
    LedgerStage.objects.create(**ours, frame=SECRET)
    text = _operator().get(f"{LIST}{record_id.hex()}/change/").content.decode()
    assert "charge (&lt;b&gt;1&lt;/b&gt;): 16 bytes" in text
    assert text.index("charge") < text.index("mail: 3 bytes")
    assert "order (7): 16 bytes" in text
    assert "23 bytes" in text
    assert SECRET.decode() not in text
    assert "_save" not in text


def test_a_record_that_is_not_there_is_no_error(backend: DjangoBackend) -> None:
    """The admin's own answer: back to the front page, with a message."""
    for digest in ("00" * 32, "no-digest"):
        assert _operator().get(f"{LIST}{digest}/change/").status_code == 302


def _select(records: list[str], **more: Any) -> dict[str, Any]:
    return {"action": "forget", "_selected_action": records, **more}


def test_forgetting_asks_first(backend: DjangoBackend) -> None:
    """The page says what it means, and marks what runs."""
    digests = _make_one_of_each(backend)
    response = _operator().post(LIST, _select([digests["running"], digests["completed"]]))
    text = response.content.decode()
    assert text.count("somebody is working on it") == 1
    assert "may run beside the next" in text
    assert Record.objects.count() == 7


def test_a_confirmed_record_is_forgotten_with_its_stages(backend: DjangoBackend) -> None:
    """B-09: by the backend's own verb; who did it stays in the admin's history."""
    record_id, other = secrets.token_bytes(32), secrets.token_bytes(32)
    backend.save_stage(SaveStage(_lease(backend, record_id), stage_of("charge")))
    _lease(backend, other)
    client = _operator()
    assert client.post(LIST, _select([record_id.hex()], confirmed="yes")).status_code == 302
    assert backend.get(Get(record_id)) is None
    assert backend.get(Get(other)) is not None
    assert _lease(backend, record_id).attempt == 1
    history = import_module("django.contrib.admin.models").LogEntry.objects.get(object_id=record_id.hex())
    assert history.is_deletion()


def test_an_unreadable_record_can_be_forgotten(backend: DjangoBackend) -> None:
    """B-08b, B-09: the way out."""
    digests = _make_one_of_each(backend)
    _operator().post(LIST, _select([digests["unreadable"]], confirmed="yes"))
    assert not Record.objects.filter(record_id=digests["unreadable"]).exists()


def test_who_may_only_look_cannot_forget(backend: DjangoBackend) -> None:
    """Permission-checked, in the list and when it is posted."""
    record_id = secrets.token_bytes(32)
    _lease(backend, record_id)
    client = _client("view_record")
    assert 'value="forget"' not in client.get(LIST).content.decode()
    client.post(LIST, _select([record_id.hex()], confirmed="yes"))
    assert backend.get(Get(record_id)) is not None


def test_who_may_not_look_sees_nothing(backend: DjangoBackend) -> None:
    """Staff without the permission."""
    record_id = secrets.token_bytes(32)
    _lease(backend, record_id)
    client = _client()
    assert client.get(LIST).status_code == 403
    assert client.get(f"{LIST}{record_id.hex()}/change/").status_code == 403
    assert client.post(LIST, _select([record_id.hex()], confirmed="yes")).status_code == 403
    assert backend.get(Get(record_id)) is not None


def test_nobody_adds_changes_or_deletes_by_the_usual_pages(backend: DjangoBackend) -> None:
    """Read-only, for superusers too."""
    record_id = secrets.token_bytes(32)
    _lease(backend, record_id)
    client = _client(is_superuser=True)
    assert client.get(f"{LIST}add/").status_code == 403
    assert client.post(f"{LIST}{record_id.hex()}/change/", {"attempt": 9}).status_code == 403
    assert client.post(f"{LIST}{record_id.hex()}/delete/", {"post": "yes"}).status_code == 403
    assert 'value="delete_selected"' not in client.get(LIST).content.decode()
    record = backend.get(Get(record_id))
    assert record is not None
    assert record.attempt == 1


def test_the_pages_are_hidden_where_another_backend_holds_the_records(backend: DjangoBackend) -> None:
    """An empty list would be taken for the truth."""
    client = _client(is_superuser=True)
    with override_settings(IDEMPOTENCY_BACKEND="memory://"):
        assert client.get(LIST).status_code == 403
        assert LIST not in client.get("/admin/").content.decode()
    assert LIST in client.get("/admin/").content.decode()


def test_a_backend_that_was_made_by_hand_is_used_as_it_is(backend: DjangoBackend) -> None:
    """``IDEMPOTENCY_BACKEND`` takes an instance of either colour."""
    record_id = secrets.token_bytes(32)
    _lease(backend, record_id)
    for made in (backend, backend.to_async()):
        with override_settings(IDEMPOTENCY_BACKEND=made):
            assert _shown(_operator().get(LIST)) == {record_id.hex()}
