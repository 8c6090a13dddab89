"""The hooks of a response that is stored in the ledger and in the record: each is called once (S-06)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from open_idempotency import idem
from open_idempotency._core.models import Response
from open_idempotency._core.settlement import Fate, finish
from open_idempotency._core.stored_response import RESPONSE as REPLACED
from open_idempotency._core.stored_response import decode_response, unseal
from open_idempotency.encryption import EncryptionKeys
from tests.ledger.applications import FRAMEWORKS, Make
from tests.ledger.databases import BLOCKING, Database
from tests.unit.stages.stage_client import Client

RESPONSE = Response(201, [(b"content-type", b"text/plain"), (b"content-length", b"6")], b"placed")


class Hooks:
    """``store``, ``redact`` and ``encryption`` hooks that count their calls."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._keys = EncryptionKeys({"2026": b"k" * 32})

    @property
    def fields(self) -> dict[str, Any]:
        """The policy's fields for these hooks."""
        return {"store": self.store, "redact": self.redact, "encryption": self}

    def store(self, response: Response) -> bool | None:
        """Decide as the default policy does."""
        self.asked.append("store")
        return None

    def redact(self, response: Response) -> Response:
        """Redact nothing."""
        self.asked.append("redact")
        return response

    def seal(self, frame: bytes, place: bytes) -> bytes:
        """Encrypt with a new nonce each time."""
        self.asked.append("seal")
        return self._keys.seal(frame, place)

    def unseal(self, stored: bytes, place: bytes) -> bytes:
        """Decrypt."""
        return self._keys.unseal(stored, place)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_each_hook_is_asked_once(framework: str, new_database: Callable[[str], Database]) -> None:
    """S-06: ledger and record have the same bytes, so each can replace the other."""
    make: Make = FRAMEWORKS[framework]
    database, hooks = new_database("sqlite"), Hooks()
    database.make_tables()
    with make(database, **hooks.fields) as application:
        first = application.send(b"")
        (record,) = application.backend.scan()
        application.lose()
        assert application.send(b"") == first
    assert hooks.asked == ["store", "redact", "seal"]
    ((response,),) = database.query("SELECT response FROM open_idempotency_ledger")
    assert bytes(response) == record.response


def kept(database: Database, hooks: Hooks, sent: Response) -> Response:
    """The recorded response of an attempt whose view responds with ``RESPONSE`` and whose adapter sends ``sent``."""
    client = Client(**hooks.fields)
    with client.request() as attempt:
        with BLOCKING["sqlite3"][1](database) as opened, idem.atomic(opened.tx) as block:
            block.respond(RESPONSE)
        client.engine.sync.run(finish(attempt, sent))
    (record,) = client.engine.backend.scan()
    assert attempt.lease is not None
    assert record.response is not None
    return decode_response(unseal(record.response, REPLACED, attempt.lease, attempt.policy))


@pytest.mark.parametrize("kind", ["sqlite3"])
def test_headers_outside_of_a_response_do_not_make_it_another_one(database: Database) -> None:
    """R-02, R-13: a Content-Length, or the Date that a server adds."""
    hooks = Hooks()
    dated = Response(201, [*RESPONSE.headers[:1], (b"date", b"now")], RESPONSE.body)
    assert kept(database, hooks, dated).body == b"placed"
    assert hooks.asked == ["store", "redact", "seal"]


@pytest.mark.parametrize("kind", ["sqlite3"])
def test_what_is_between_view_and_middleware_is_in_the_record(database: Database) -> None:
    """R-01: a replay sends what the client got, so the hooks see the changes of other middleware."""
    hooks = Hooks()
    changed = Response(201, [*RESPONSE.headers, (b"x-between", b"here")], b"PLACED")
    stored = kept(database, hooks, changed)
    assert (stored.body, stored.headers[-1]) == (b"PLACED", (b"x-between", b"here"))
    assert hooks.asked == ["store", "redact", "seal", "store", "redact", "seal"]


@pytest.mark.parametrize("kind", ["sqlite3"])
def test_another_status_is_another_decision(database: Database) -> None:
    """R-13: ``store=`` is called again if other middleware has changed the status."""
    hooks = Hooks()
    assert kept(database, hooks, Response(202, RESPONSE.headers, RESPONSE.body)).status == 202
    assert hooks.asked == ["store", "redact", "seal", "store", "redact", "seal"]


@pytest.mark.parametrize("kind", ["sqlite3"])
def test_store_is_called_once_for_a_response_that_is_not_stored(database: Database) -> None:
    """``store`` is called once, and no other hook."""
    hooks, refused = Hooks(), Response(409, [], b"not now")
    client = Client(**hooks.fields)
    with client.request() as attempt:
        with BLOCKING["sqlite3"][1](database) as opened, idem.atomic(opened.tx) as block:
            block.respond(refused)
        assert client.engine.sync.run(finish(attempt, refused)) is Fate.NOT_KEPT
    assert hooks.asked == ["store"]
