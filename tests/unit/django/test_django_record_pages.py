"""The admin pages of one record: operators find a key, read its record, and free it if they may, on every backend."""

# ruff: noqa: E402 (Django has to be set up before what needs its settings is imported)
from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.django_project import set_up

set_up()

from django.contrib.auth.models import User
from django.http import HttpRequest, JsonResponse
from django.test import Client, override_settings

from open_idempotency import idem, open_backend
from open_idempotency.backend import Backend, Get, Status
from open_idempotency.django.models import Record
from open_idempotency.encryption import EncryptionKeys, new_key
from tests.django_project.admin_site import EVERY, LIST, PROJECT, admin_site, client_of
from tests.django_project.calls import KEY, OURS, post
from tests.operations.stores import Maker, begun
from tests.servers import free_port

FIND = f"{LIST}find/"
SECRET = "5105105105105100"


def charge(request: HttpRequest) -> JsonResponse:
    """Charges a card in one stage."""
    return JsonResponse({"charged": idem.run("charge", lambda: SECRET, external=True), "secret": SECRET}, status=201)


@pytest.fixture(scope="module", autouse=True)
def _project() -> Iterator[None]:
    """The project, with its tables."""
    with admin_site(charge, MIDDLEWARE=[*PROJECT["MIDDLEWARE"], OURS]):
        yield


@pytest.fixture(params=["django", "sqlite"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    """The backends of the project: the Django database, and another one."""
    url = "django://default" if request.param == "django" else f"sqlite:///{tmp_path}/records.db"
    with override_settings(IDEMPOTENCY_BACKEND=url), open_backend(url) as backend:
        backend.migrate()
        # Other tests leave records in the same database, and some of them cannot be read.
        for record_id in Record.objects.values_list("record_id", flat=True):
            backend.delete(bytes.fromhex(record_id))
        yield backend


@pytest.fixture
def maker(backend: Backend) -> Maker:
    """Makes records as workers do."""
    return Maker(backend)


def page_of(record: bytes | str, name: str = "change") -> str:
    """The URL of a page of a record."""
    return f"{LIST}{record if isinstance(record, str) else record.hex()}/{name}/"


def confirmed(client: Any, record: bytes, name: str, **fields: str) -> Any:
    """Open the confirmation page, and post its form with these fields."""
    asked = client.get(page_of(record, name), {key: fields[key] for key in ("stage", "stage_key") if key in fields})
    return client.post(page_of(record, name), {"seen": asked.context_data["seen"].mark, **fields})


def charged(user: User | None = None, key: str = KEY) -> str:
    """Send a client's request; return the id of its record."""
    client = Client()
    if user is not None:
        client.force_login(user)
    before = {record.record_id for record in _all()}
    assert post(client, key=key).status_code == 201
    (made,) = {record.record_id for record in _all()} - before
    return str(made.hex())


def _all() -> list[Any]:
    settings = import_module("django.conf").settings
    with open_backend(settings.IDEMPOTENCY_BACKEND) as backend:
        return list(backend.scan())


# Finding


def test_a_key_is_found_with_its_user(backend: Backend) -> None:
    """P-40: by the policy of the settings; no URL contains the key."""
    users = [User.objects.create_user(f"find-{number}-{id(backend)}") for number in range(2)]
    records = [charged(user) for user in users]
    found = client_of("view_record").post(FIND, {"key": KEY, "user": str(users[1].pk)})
    assert found.status_code == 302
    assert found["Location"] == page_of(records[1])
    assert KEY not in found["Location"]


def test_several_callers_of_a_key_are_listed(backend: Backend) -> None:
    """P-40: where only the key is given, each caller has a link."""
    users = [User.objects.create_user(f"several-{number}-{id(backend)}") for number in range(2)]
    records = [charged(user) for user in users]
    response = client_of("view_record").post(FIND, {"key": KEY, "everyone": "on"})
    text = response.content.decode()
    assert all(page_of(record) in text for record in records)
    assert "say whose key it is" in text


def test_the_key_of_an_anonymous_caller_is_found_by_itself(backend: Backend) -> None:
    """P-40: the records of other callers are not read for it."""
    record = charged()
    charged(User.objects.create_user(f"other-{id(backend)}"))
    assert client_of("view_record").post(FIND, {"key": KEY})["Location"] == page_of(record)


def test_a_record_is_found_by_the_beginning_of_its_id(maker: Maker) -> None:
    """P-40: as logs, events and problems name it."""
    lease = maker.alive()
    found = client_of("view_record").post(FIND, {"key": lease.record_id.hex()[:12]})
    assert found["Location"] == page_of(lease.record_id)


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"key": "00000000-0000-4000-8000-000000000000"}, 404, "choose All callers"),
        ({"key": KEY, "everyone": "on"}, 404, "no record of this key"),
        ({"key": KEY, "everyone": "on", "user": "7"}, 400, "A caller is given"),
        ({"key": "00000000-0000-4000-8000-000000000000", "user": "7"}, 404, "never used by this caller"),
        ({"key": "abcdef012345"}, 404, "no record begins with abcdef012345"),
        ({"key": KEY, "path": "/nowhere", "method": "POST"}, 400, "covered by no route"),
        ({"key": KEY, "session": "7"}, 400, "Write name=id"),
        ({"key": KEY, "scope": "ann"}, 400, "no scope= callable"),
        ({"key": ""}, 400, "This field is required"),
        ({"key": "kéy", "user": "7"}, 400, "key"),
    ],
)
def test_what_leads_to_no_record_is_explained(backend: Backend, fields: dict[str, str], status: int, said: str) -> None:
    """P-40: the form keeps its input, except for credentials."""
    response = client_of("view_record").post(FIND, {**fields, "authorization": ""})
    assert response.status_code == status
    assert said.lower() in response.content.decode().lower()


def test_credentials_are_never_sent_back(backend: Backend) -> None:
    """P-43: the form that is shown again contains no Authorization value."""
    response = client_of("view_record").post(FIND, {"key": KEY, "authorization": "Bearer " + SECRET})
    assert response.status_code == 404
    assert SECRET not in response.content.decode()


# Reading


def test_a_record_is_explained_with_its_stages_in_order(maker: Maker) -> None:
    """P-43: name, key, state of each stage, and what a retry gets; no value."""
    lease = maker.lease(0.001)
    maker.save(lease, begun("charge", "eu"))
    text = client_of(*EVERY).get(page_of(lease.record_id)).content.decode()
    assert "in doubt" in text
    assert "<td>eu</td>" in text
    assert "The next retry runs as attempt 2" in text
    assert "POST /orders/{id}" in text
    assert "web-3:812" in text
    assert "?stage=charge&amp;stage_key=eu" in text


def test_neither_a_response_nor_a_value_is_shown(backend: Backend) -> None:
    """P-43: no page shows one, whatever the user's permissions."""
    record, client = charged(), client_of(is_superuser=True)
    pages = [client.get(page_of(record, name)).content.decode() for name in ("change", "release", "forget")]
    assert all("charge" in pages[0] and SECRET not in page for page in pages)
    assert "status 201" in pages[0]


def test_an_encrypted_record_is_explained_with_the_keys_of_the_settings_alone(backend: Backend) -> None:
    """P-43: without the keys, and with other keys, its stages are named and nothing is decrypted."""
    keys, others = (EncryptionKeys({name: new_key()}) for name in ("mine", "others"))
    client = client_of(*EVERY)
    with override_settings(IDEMPOTENCY_ENCRYPTION=keys):
        record = charged()
        assert "<td>done</td>" in client.get(page_of(record)).content.decode()
    for settings in ({}, {"IDEMPOTENCY_ENCRYPTION": others}):
        with override_settings(**settings):
            text = client.get(page_of(record)).content.decode()
            assert "<td>encrypted</td>" in text
            assert SECRET not in text
            assert "<td>done</td>" not in text


@pytest.mark.parametrize("record", ["00" * 32, "no-digest", "abc"])
def test_a_record_that_is_gone_leads_back_to_the_list(backend: Backend, record: str) -> None:
    """The message gives the reason."""
    for name in ("change", "forget", "release", "resolve"):
        response = client_of(*EVERY).get(page_of(record, name), follow=True)
        assert response.redirect_chain[0][0] == LIST
        assert "was never created" in response.content.decode()


# Changing


def test_releasing_frees_the_key_and_keeps_the_stages(maker: Maker) -> None:
    """P-41: the admin's history says who did it."""
    lease = maker.alive()
    response = confirmed(client_of(*EVERY), lease.record_id, "release")
    assert response["Location"] == page_of(lease.record_id)
    record = maker.backend.get(Get(lease.record_id))
    assert record is not None
    assert (record.status, record.attempt, len(record.stages)) == (Status.FAILED, 0, 1)
    entry = import_module("django.contrib.admin.models").LogEntry.objects.get(object_id=lease.record_id.hex())
    assert "Released" in entry.get_change_message()


def test_a_stage_is_resolved_with_its_value(maker: Maker) -> None:
    """P-41: it is recorded as if the stage had returned it, and the key is free."""
    lease = maker.in_doubt()
    fields = {"stage": "charge", "stage_key": "", "outcome": "found", "value": '"ch_1"'}
    response = confirmed(client_of(*EVERY), lease.record_id, "resolve", **fields)
    assert response.status_code == 302
    record = maker.backend.get(Get(lease.record_id))
    assert record is not None
    assert record.attempt == 0
    assert any(stage.name == "charge" and stage.key == "" and b"ch_1" in stage.frame for stage in record.stages)


def test_a_stage_is_resolved_as_not_done(maker: Maker) -> None:
    """P-41: it runs again."""
    lease = maker.in_doubt()
    fields = {"stage": "charge", "stage_key": "", "outcome": "not-done"}
    assert confirmed(client_of(*EVERY), lease.record_id, "resolve", **fields).status_code == 302
    text = client_of(*EVERY).get(page_of(lease.record_id)).content.decode()
    assert "not done" in text
    assert "in doubt" not in text


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "This field is required"),
        ({"outcome": "found", "value": "ch_1"}, "A text needs quotes"),
        ({"outcome": "found", "value": ""}, "A text needs quotes"),
        ({"outcome": "found", "value": "NaN"}, "not JSON"),
        ({"outcome": "found", "value": "[" * 100_000}, "not JSON"),
        ({"outcome": "not-done", "value": "1"}, "has no value"),
        ({"outcome": "maybe"}, "valid choice"),
        ({"outcome": "not-done", "stage": "other"}, "not on record"),
        ({"outcome": "not-done", "seen": ""}, "This field is required"),
    ],
)
def test_a_wrong_resolution_changes_nothing(maker: Maker, fields: dict[str, str], said: str) -> None:
    """P-41: the page says what is wrong."""
    lease = maker.in_doubt()
    before = maker.backend.get(Get(lease.record_id))
    response = confirmed(
        client_of(*EVERY), lease.record_id, "resolve", **{"stage": "charge", "stage_key": "", **fields}
    )
    assert response.status_code in (400, 409)
    assert said in response.content.decode()
    assert maker.backend.get(Get(lease.record_id)) == before


def test_a_record_that_an_attempt_holds_is_forgotten_by_force_alone(maker: Maker) -> None:
    """P-41: without force it is left."""
    lease, client = maker.alive(), client_of(*EVERY)
    refused = confirmed(client, lease.record_id, "forget")
    assert refused.status_code == 409
    assert "is held by an attempt" in refused.content.decode()
    assert maker.backend.get(Get(lease.record_id)) is not None
    assert confirmed(client, lease.record_id, "forget", force="on").status_code == 302
    assert maker.backend.get(Get(lease.record_id)) is None


def test_a_completed_record_is_forgotten_and_not_released(maker: Maker) -> None:
    """P-41: no attempt holds its key."""
    lease, client = maker.completed(), client_of(*EVERY)
    assert page_of(lease.record_id, "release") not in client.get(page_of(lease.record_id)).content.decode()
    assert confirmed(client, lease.record_id, "release").status_code == 409
    assert confirmed(client, lease.record_id, "forget")["Location"] == LIST
    assert maker.backend.get(Get(lease.record_id)) is None


@pytest.mark.parametrize("name", ["release", "forget", "resolve"])
def test_a_stale_page_does_nothing_to_a_newer_attempt(maker: Maker, name: str) -> None:
    """P-42: also where the record was forgotten and made anew in between."""
    lease, client = maker.in_doubt(), client_of(*EVERY)
    fields = {"stage": "charge", "stage_key": "", "outcome": "not-done", "force": "on"}
    mark = client.get(page_of(lease.record_id, name), fields).context_data["seen"].mark
    maker.backend.delete(lease.record_id)
    newer = maker.lease(0.001, record_id=lease.record_id)
    maker.save(newer, begun("charge"))
    before = maker.backend.get(Get(lease.record_id))
    response = client.post(page_of(lease.record_id, name), {"seen": mark, **fields})
    assert response.status_code == 409
    assert "has changed since this page was made" in response.content.decode()
    assert maker.backend.get(Get(lease.record_id)) == before


def test_the_page_that_asks_changes_nothing(maker: Maker) -> None:
    """P-41: a link, a crawler, or a prefetching browser may open it."""
    lease = maker.in_doubt()
    before = maker.backend.get(Get(lease.record_id))
    for name in ("release", "forget", "resolve"):
        assert client_of(*EVERY).get(page_of(lease.record_id, name), {"stage": "charge"}).status_code == 200
    assert maker.backend.get(Get(lease.record_id)) == before


@pytest.mark.parametrize("name", ["release", "forget", "resolve", "change"])
def test_nothing_is_done_without_the_token_of_the_form(maker: Maker, name: str) -> None:
    """P-44: another site cannot post in an operator's name."""
    lease = maker.in_doubt()
    before = maker.backend.get(Get(lease.record_id))
    client = client_of(*EVERY, csrf=True)
    fields = {"stage": "charge", "outcome": "not-done", "force": "on"}
    mark = {} if name == "change" else {"seen": client.get(page_of(lease.record_id, name)).context_data["seen"].mark}
    assert client.post(page_of(lease.record_id, name), {**mark, **fields}).status_code == 403
    assert maker.backend.get(Get(lease.record_id)) == before


@pytest.mark.parametrize(
    ("name", "permission"), [("release", "release_record"), ("forget", "delete_record"), ("resolve", "resolve_record")]
)
def test_each_operation_needs_its_own_permission(maker: Maker, name: str, permission: str) -> None:
    """P-44: also with all other permissions; the record's page does not offer the operation either."""
    lease = maker.in_doubt()
    others = client_of(*(each for each in EVERY if each != permission))
    fields = {"stage": "charge", "stage_key": "", "outcome": "not-done"}
    assert f"/{name}/" not in others.get(page_of(lease.record_id)).content.decode()
    assert others.get(page_of(lease.record_id, name)).status_code == 403
    mark = client_of(*EVERY).get(page_of(lease.record_id, name), fields).context_data["seen"].mark
    assert others.post(page_of(lease.record_id, name), {"seen": mark, **fields}).status_code == 403
    one = client_of("view_record", permission)
    assert f"/{name}/" in one.get(page_of(lease.record_id)).content.decode()
    assert confirmed(one, lease.record_id, name, **fields).status_code == 302


def test_who_may_not_look_sees_no_page(maker: Maker) -> None:
    """P-44: staff without ``view_record`` and with all other permissions; and users who are not logged in."""
    lease = maker.in_doubt()
    pages = [FIND, LIST, *(page_of(lease.record_id, name) for name in ("change", "release", "forget", "resolve"))]
    blind = client_of(*(each for each in EVERY if each != "view_record"))
    assert [blind.get(page).status_code for page in pages] == [403] * len(pages)
    assert {Client().get(page)["Location"].partition("?")[0] for page in pages} == {"/admin/login/"}


# Trouble


def test_a_backend_that_is_down_is_said_to_be(backend: Backend) -> None:
    """P-46: 503, and the front page of the admin still works."""
    client = client_of(is_superuser=True)
    with override_settings(IDEMPOTENCY_BACKEND=f"redis://127.0.0.1:{free_port()}?timeout=0.2"):
        for response in (client.get(page_of("ab" * 32)), client.post(FIND, {"key": KEY, "user": "7"})):
            assert response.status_code == 503
            assert "idempotency doctor" in response.content.decode()
        assert client.get("/admin/").status_code == 200


def test_a_file_that_is_not_there_is_not_created(tmp_path: Path, backend: Backend) -> None:
    """P-46: looking for a key creates no empty database."""
    with override_settings(IDEMPOTENCY_BACKEND=f"sqlite:///{tmp_path}/wrong.db"):
        assert client_of(*EVERY).post(FIND, {"key": KEY}).status_code == 500
    assert not (tmp_path / "wrong.db").exists()


def test_the_retry_of_a_resolved_request_goes_on(backend: Backend) -> None:
    """P-41: from the request to its retry, which skips the resolved stage."""
    record = charged()
    found = backend.get(Get(bytes.fromhex(record)))
    assert found is not None
    backend.delete(found.record_id)
    maker = Maker(backend)
    lease = maker.lease(0.001, record_id=found.record_id, fingerprint=found.fingerprint)
    maker.save(lease, begun("charge"))
    assert post(Client(raise_request_exception=False), key=KEY).status_code == 409
    fields = {"stage": "charge", "stage_key": "", "outcome": "found", "value": '"ch_9"'}
    assert confirmed(client_of(*EVERY), found.record_id, "resolve", **fields).status_code == 302
    assert post(Client(), key=KEY).json()["charged"] == "ch_9"
