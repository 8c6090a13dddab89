"""Each payments API, over HTTP."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator

import pytest

from examples.provider import PaymentProvider
from examples.shop import Shop
from examples.workers import ROOT, Reply, Worker
from tests.crash.applications import APPLICATIONS, Site

#: the words after ``python -m`` that serve each example
EXAMPLES = {
    **APPLICATIONS,
    "django-atomic": ["examples.payments_django_atomic"],
    "fastapi-sqlalchemy": ["examples.payments_fastapi_sqlalchemy"],
}
MUG = {"sku": "mug", "quantity": 1, "card": "tok_visa"}


class Api:
    """One running example and its books."""

    def __init__(self, worker: Worker, site: Site) -> None:
        self.worker = worker
        self.shop = Shop(site.folder)
        self.provider = PaymentProvider(site.folder)

    def post(self, order: object, key: str | None = None) -> Reply:
        """POST /charges with a key, by default a new one."""
        body = order if isinstance(order, bytes) else json.dumps(order).encode()
        headers = {"Idempotency-Key": f'"{key or uuid.uuid4()}"', "Content-Type": "application/json"}
        reply = self.worker.request("POST", "/charges", headers, body)
        assert reply is not None, self.worker.log
        return reply

    def get(self, path: str) -> Reply:
        """GET a path."""
        reply = self.worker.request("GET", path, {})
        assert reply is not None, self.worker.log
        return reply


@pytest.fixture(scope="module", params=EXAMPLES)
def api(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """Each example, started once for this module."""
    folder = tmp_path_factory.mktemp("shop")
    site = Site(folder, f"sqlite:///{folder}/idempotency.db?timeout=0.9")
    with site.start_command(EXAMPLES[request.param]) as worker:
        yield Api(worker.wait_until_it_serves(), site)


def test_a_charge_is_created_and_can_be_read(api: Api) -> None:
    """O-01: 201, and the receipt at its Location."""
    reply = api.post({**MUG, "quantity": 3})

    receipt = json.loads(reply.body)
    assert reply.status == 201
    assert (receipt["sku"], receipt["quantity"], receipt["amount"]) == ("mug", 3, 3750)
    assert reply.header("Location") == f"/charges/{receipt['id']}"
    read = api.get(f"/charges/{receipt['id']}")
    assert (read.status, json.loads(read.body)) == (200, receipt)


def test_a_repeated_charge_is_replayed(api: Api) -> None:
    """O-02: the stored response; the provider gets no second request."""
    key = str(uuid.uuid4())
    first = api.post(MUG, key)
    asked = len(api.provider.lines())

    second = api.post(MUG, key)

    assert (second.status, second.body) == (first.status, first.body)
    assert second.header("Idempotent-Replayed") == "true"
    assert len(api.provider.lines()) == asked


def test_another_order_with_the_same_key_is_refused(api: Api) -> None:
    """O-05: 422."""
    key = str(uuid.uuid4())
    api.post(MUG, key)

    reply = api.post({**MUG, "quantity": 2}, key)

    assert reply.status == 422
    assert b"key-reused" in reply.body


@pytest.mark.parametrize(
    "order",
    [
        b"{",
        b"\xff",
        [],
        {},
        {**MUG, "sku": ""},
        {**MUG, "card": 7},
        {**MUG, "quantity": 0},
        {**MUG, "quantity": 101},
        {**MUG, "quantity": "many"},
    ],
    ids=["cut", "not text", "list", "empty", "no sku", "no card", "none", "too many", "no number"],
)
def test_what_is_no_order_is_the_clients_fault(api: Api, order: object) -> None:
    """Bad input: 4xx, and no card is charged."""
    asked = len(api.provider.lines())

    reply = api.post(order)

    assert reply.status in (400, 422), reply
    assert len(api.provider.lines()) == asked


def test_a_product_that_is_unknown_is_not_found(api: Api) -> None:
    """Bad input: 404."""
    assert api.post({**MUG, "sku": "moon"}).status == 404


def test_a_charge_that_is_unknown_is_not_found(api: Api) -> None:
    """Bad input: 404."""
    assert api.get("/charges/ch_none").status == 404


def test_a_declined_card_is_an_outcome_and_the_goods_go_back(api: Api) -> None:
    """`Stored`: 402 is stored, so the retry is a replay."""
    order = {"sku": "shirt", "quantity": 5, "card": "tok_declined"}
    key = str(uuid.uuid4())

    first, second = api.post(order, key), api.post(order, key)

    assert (first.status, second.status) == (402, 402)
    assert second.header("Idempotent-Replayed") == "true"
    assert api.shop.available("shirt") == 100


def test_what_is_out_of_stock_may_be_tried_again_with_the_same_key(api: Api) -> None:
    """`Stored`: 409 is temporary and not stored."""
    order = {"sku": "last-poster", "quantity": 2, "card": "tok_visa"}
    key = str(uuid.uuid4())

    first, second = api.post(order, key), api.post(order, key)

    assert (first.status, second.status) == (409, 409)
    assert second.header("Idempotent-Replayed") is None
    assert b"left of last-poster" in second.body


def test_a_charge_without_a_key_runs_each_time(api: Api) -> None:
    """S-03: stages run without being recorded."""
    before = len(api.provider.lines())
    body = json.dumps(MUG).encode()

    replies = [api.worker.request("POST", "/charges", {"Content-Type": "application/json"}, body) for _ in range(2)]

    assert [reply.status for reply in replies if reply] == [201, 201]
    assert len(api.provider.lines()) == before + 2


def test_the_readme_names_every_example() -> None:
    """With the command that runs it."""
    readme = (ROOT / "examples" / "README.md").read_text()

    for module in sorted(path.stem for path in (ROOT / "examples").glob("payments_*.py")):
        assert f"python -m examples.{module}" in readme
