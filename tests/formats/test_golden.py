"""This version reads every version's stored formats, through the public verbs, on every store."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.formats import VERSIONS, stores
from tests.formats.make import CALLER, REPLACED, UNFINISHED, make_ledger
from tests.formats.running import HERE, ROOT, Worker, effects_in

#: the application by the name of a key
APPS = {key: app for key, (_, app) in REPLACED.items()} | {key: app for key, (app, _) in UNFINISHED.items()}
REPLAYED = [key for key in REPLACED if key != "too long"]
RESUMED = [key for key, (_, end) in UNFINISHED.items() if end in ("fail", "die") and key != "failure to replay"]
IN_DOUBT = [key for key, (_, end) in UNFINISHED.items() if end == "in doubt"]


class Opened(NamedTuple):
    """A store as the version left it, and a worker of this version on it."""

    worker: Worker
    expected: dict[str, Any]
    effects: Path

    def post(self, key: str, **more: Any) -> dict[str, Any]:
        """Repeat the request that was made with the key."""
        path = REPLACED[key][0] if key in REPLACED else "/stages"
        caller = CALLER if APPS[key] == "few keys" else ""
        return self.worker.post_until_admitted(path, key, app=APPS[key], **{"caller": caller, **more})


@contextmanager
def _loaded(kind: str, folder: Path, version: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    if kind in stores.FILES:
        stores.load_file(version / f"{kind}.sqlite3", folder / "records.db")
        yield stores.url_of_file(kind, folder / "records.db")
    elif kind == "redis":
        url, prefix = request.getfixturevalue("valkey_url"), f"{secrets.token_hex(8)}:"
        stores.load_redis(version / "redis.json", url, prefix)
        yield f"{url}?prefix={prefix}&{stores.BRISK}"
    else:
        database = f"formats_{secrets.token_hex(4)}"
        url = stores.load_postgres(version / "postgres.json", request.getfixturevalue("postgres18"), database)
        yield f"{url}?{stores.BRISK}"


@pytest.fixture(params=VERSIONS, scope="module")
def version(request: pytest.FixtureRequest) -> Path:
    """The folder of each version."""
    return HERE / str(request.param)


@pytest.fixture(params=stores.KINDS, scope="module")
def opened(request: pytest.FixtureRequest, version: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    """Each store of the version; tests of one key do not affect the others."""
    kind, folder = str(request.param), tmp_path_factory.mktemp("formats")
    stores.load_file(version / f"{kind}-ledger.sqlite3", folder / "ledger.db")
    expected = json.loads((version / f"{kind}-expected.json").read_text(encoding="utf-8"))
    effects, ledger = folder / "effects.txt", folder / "ledger.db"
    with (
        _loaded(kind, folder, version, request) as store,
        Worker(ROOT / "src", store, effects, ledger) as worker,
    ):
        worker.ask("migrate")
        yield Opened(worker, expected, effects)


@pytest.mark.parametrize("key", REPLAYED)
def test_a_completed_request_is_replayed(opened: Opened, key: str) -> None:
    """B-13, R-01: id and fingerprint match, bytes and fields are the same; sealed responses are decrypted."""
    assert opened.post(key) == {**opened.expected["got"][key], "replayed": True}


@pytest.mark.parametrize("key", REPLAYED)
def test_another_request_with_its_key_is_known_for_that(opened: Opened, key: str) -> None:
    """B-13, O-05: fingerprints have not changed."""
    response = opened.post(key, body='{"another": 1}')
    assert (response["status"], "key-reused" in response["body"]) == (422, True)


def test_a_body_that_is_written_in_another_way_is_the_same_json(opened: Opened) -> None:
    """B-13: the canonical form has not changed."""
    assert opened.post("json", body=" { } ")["replayed"]


def test_a_response_that_was_too_long_stands_for_itself(opened: Opened) -> None:
    """B-13, O-11."""
    response = opened.post("too long")
    problem = json.loads(response["body"])
    assert (response["status"], problem["original_status"], problem["location"]) == (409, 201, "/done/1")


def test_a_stored_failure_is_replayed(opened: Opened) -> None:
    """B-13, O-08."""
    assert opened.post("failure to replay") == {**opened.expected["got"]["failure to replay"], "replayed": True}


@pytest.mark.parametrize("key", RESUMED)
def test_an_attempt_that_failed_or_died_goes_on_from_its_stages(opened: Opened, key: str) -> None:
    """B-13, O-08, O-09: stages of every kind, also sealed ones and those of the ledger; no effect happens again."""
    before = effects_in(opened.effects)
    response = opened.post(key)
    values = json.loads(response["body"])
    assert (response["status"], values["attempt"], values["decline"], values["nothing"]) == (200, 2, "no money", None)
    for name in ("reserve", "charge", "row"):
        assert f"{name} {values[name][name]}" in opened.expected["effects"]
    assert effects_in(opened.effects) == before
    assert opened.post(key)["body"] == response["body"]


@pytest.mark.parametrize("key", IN_DOUBT)
def test_an_intent_without_its_end_is_in_doubt(opened: Opened, key: str) -> None:
    """B-13, S-04."""
    response = opened.post(key)
    assert (response["status"], "outcome-unknown" in response["body"]) == (409, True)


def test_a_key_that_counts_goes_on_counting(opened: Opened) -> None:
    """B-13: the same scope finds the reservations."""
    response = opened.worker.post("/done", "one more", app="few keys", caller=CALLER)
    assert (response["status"], "too-many-keys" in response["body"]) == (429, True)


def test_the_ledger_has_the_response_where_the_record_was_lost(
    version: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """B-13, S-06."""
    stores.load_file(version / "sqlite-ledger.sqlite3", tmp_path / "ledger.db")
    expected = json.loads((version / "sqlite-expected.json").read_text(encoding="utf-8"))
    with Worker(ROOT / "src", "memory://", tmp_path / "effects.txt", tmp_path / "ledger.db") as worker:
        response = worker.post("/atomic", "atomic")
        assert (response["status"], response["body"]) == (201, expected["got"]["atomic"]["body"])
        assert worker.post("/atomic", "atomic", body="another")["status"] == 422
    assert effects_in(tmp_path / "effects.txt") == []


def test_a_migration_is_never_changed(version: Path) -> None:
    """B-13: a database that has run it would not get the change."""
    assert stores.changed_migrations(version / "postgres.json") == []


def test_every_version_has_its_files() -> None:
    """B-13: for each store."""
    for version in VERSIONS:
        names = {file.name for file in (HERE / version).iterdir()}
        assert {f"{kind}-expected.json" for kind in stores.KINDS} < names


def test_a_new_ledger_is_made_like_the_old_one(tmp_path: Path) -> None:
    """B-13: the script that makes the files still works."""
    make_ledger(tmp_path / "ledger.db")
