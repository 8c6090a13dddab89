"""The transactional examples, killed around their COMMIT; the records are deleted, or kept until the lease ends."""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest

from examples.provider import PaymentProvider
from examples.workers import Reply, Worker
from open_idempotency import open_backend
from tests.crash.applications import Client, Site
from tests.matrix import is_full
from tests.postgres_server import PostgresServer

DJANGO, SQLALCHEMY = "examples.payments_django_atomic", "examples.payments_fastapi_sqlalchemy"
IN_SQLITE = [(name, "sqlite") for name in (DJANGO, SQLALCHEMY)]
#: each example and each database; with ``OI_TEST_CRASH=full`` each example on each database
SHOPS = [(DJANGO, "sqlite"), (SQLALCHEMY, "postgresql")]
if is_full("CRASH"):
    SHOPS = [*IN_SQLITE, *((name, "postgresql") for name, _ in IN_SQLITE)]


class TransactionalShop:
    """One shop, a living worker of it, and its books."""

    def __init__(self, name: str, site: Site, url: str | None) -> None:
        self.name = name
        self.site = site
        self.url = url
        self.environment = {} if url is None else {"SHOP_DATABASE": url}
        self.living = self.start()

    def start(self, *wrapper: str, **environment: str) -> Worker:
        """Start another worker, without waiting for it."""
        return self.site.start_command([*wrapper, self.name], **self.environment, **environment)

    def killed(self, client: Client, moment: str) -> None:
        """Send the client's order to a worker that is killed at this moment, before it responds."""
        where, _, what = moment.partition("-")
        if what == "commit":
            doomed = self.start("tests.examples.killed_at_commit", where)
        else:
            doomed = self.start(SHOP_DIE=moment)
        with doomed:
            doomed.wait_until_it_serves()
            assert client.post(doomed) is None, doomed.log
            assert doomed.wait_until_killed(), doomed.log

    def lose_records(self) -> None:
        """Delete the records, as a flush, an eviction or a failover does."""
        backend = open_backend(self.site.backend)
        for record in list(backend.scan()):
            backend.delete(record.record_id)
        backend.close()

    def count(self, statement: str) -> int:
        """A number from the shop's database."""
        if self.url is None:
            with closing(sqlite3.connect(self.site.folder / "shop.db", timeout=20)) as database:
                return int(database.execute(statement).fetchone()[0])
        with psycopg.connect(self.url) as connection:
            row = connection.execute(statement.encode()).fetchone()
            assert row is not None
            return int(row[0])

    def totals(self) -> tuple[int, int, int]:
        """Reservations, receipts, and delivered mugs."""
        return (
            self.count("SELECT count(*) FROM reservations"),
            self.count("SELECT count(*) FROM receipts"),
            100 - self.count("SELECT available FROM stock WHERE sku = 'mug'"),
        )

    def asked(self) -> list[str]:
        """The payment provider's outcome of each request."""
        return [line.outcome for line in PaymentProvider(self.site.folder).lines()]


def _id(shop: tuple[str, str]) -> str:
    return f"{shop[0].rpartition('.')[2]}-{shop[1]}"


@pytest.fixture(scope="module", params=SHOPS, ids=_id)
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TransactionalShop]:
    """Each transactional example on each database; one worker for the whole module."""
    name, database = request.param
    folder = tmp_path_factory.mktemp("shop")
    site = Site(folder, f"sqlite:///{folder}/idempotency.db?timeout=0.9")
    url = None
    if database == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres18")
        url = server.create_database(f"shop_{uuid.uuid4().hex}")
    opened = TransactionalShop(name, site, url)
    with opened.living as living:
        living.wait_until_it_serves()
        yield opened


def retried_once(shop: TransactionalShop, moment: str, lost: bool) -> tuple[Reply, list[str]]:
    """The response to the retry after a crash, after checking its replays; and the provider's outcomes."""
    client, before, asked = Client(), shop.totals(), len(shop.asked())
    shop.killed(client, moment)
    if lost:
        shop.lose_records()
    reply = client.post_until_admitted(shop.living)
    replay = client.post(shop.living)

    assert reply.status == 201, shop.living.log
    assert replay is not None
    assert (replay.status, replay.body, replay.header("Idempotent-Replayed")) == (201, reply.body, "true")
    assert reply.header("Location") == f"/charges/{json.loads(reply.body)['id']}"
    assert [now - then for now, then in zip(shop.totals(), before, strict=True)] == [1, 1, 2]
    return reply, shop.asked()[asked:]


@pytest.mark.parametrize("moment", ["before-commit", "after-commit"])
def test_after_a_crash_and_the_loss_of_its_record_a_request_has_left_one_reservation_and_one_receipt(
    shop: TransactionalShop, moment: str
) -> None:
    """S-05, S-06: the rows commit or roll back with their stage or response; the provider recognises the key."""
    reply, asked = retried_once(shop, moment, lost=True)

    assert asked[0] == "charged"
    assert set(asked[1:]) <= {"repeated"}
    assert (reply.header("Idempotent-Replayed") == "true") is (moment == "after-commit")


@pytest.mark.parametrize("shop", IN_SQLITE, ids=_id, indirect=True)
def test_after_a_crash_between_the_charge_and_its_record_the_provider_is_asked_whether_it_was_made(
    shop: TransactionalShop,
) -> None:
    """S-04, S-05, S-06: the record is kept, so the retry looks up the charge by its key, and does not charge again."""
    _, asked = retried_once(shop, "after-charge", lost=False)

    assert asked == ["charged"]
