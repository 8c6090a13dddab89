"""The recipes of ``docs/once.md`` run unchanged under their libraries, and each message is delivered again.

Every message is delivered again after a failure, by the library if it does so, and once more after that. The work is
done once. Only addresses are replaced by those of the tests' servers.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from open_idempotency import Once
from tests.docs.pages import ROOT, blocks
from tests.servers import Server

ORDER = {"id": "order-7", "amount": 990}
SECONDS = 60


class Page:
    """The code blocks under the headings of the page, and the names that they have defined."""

    def __init__(self, folder: Path, url: str) -> None:
        self._addresses = {"sqlite:///once.db": f"sqlite:///{folder}/once.db", "redis://localhost": url}
        module = types.ModuleType("recipe")
        sys.modules["recipe"] = module  # some libraries look their functions up there
        self.names: dict[str, Any] = module.__dict__
        self.names["Once"] = Once
        self.calls: list[Any] = []
        self.run("Recipes")
        self.names["make_invoice"] = self.make_invoice
        self.done = threading.Event()

    def run(self, heading: str) -> dict[str, Any]:
        """Run the block under a heading; return the names so far."""
        text = block(heading)
        for address, instead in self._addresses.items():
            text = text.replace(address, instead)
        exec(compile(text, heading, "exec"), self.names)
        return self.names

    def make_invoice(self, order: Any) -> dict[str, Any]:
        """Fails at first, as a service that is unavailable for a moment."""
        self.calls.append(order)
        if len(self.calls) == 1:
            raise ConnectionError("a service is away")
        self.done.set()
        return {"number": 7}


def block(heading: str) -> str:
    """The one Python block under a heading of the page."""
    (found,) = [
        each.text for each in blocks(ROOT / "docs" / "once.md") if each.language == "python" and each.heading == heading
    ]
    return found


RECIPES = (
    "Celery", "Dramatiq", "Taskiq", "RQ", "arq", "FastStream", "A Kafka consumer loop", "A webhook",
    "A Django management command", "An MCP tool",
)  # fmt: skip


@pytest.fixture(scope="module")
def broker_url() -> Iterator[str]:
    """A server of this module alone, as the queues of the libraries have names of their own."""
    server = Server("valkey").start()
    try:
        yield server.url
    finally:
        server.stop()


@pytest.fixture
def page(tmp_path: Path, broker_url: str) -> Iterator[Page]:
    yield Page(tmp_path, broker_url)
    del sys.modules["recipe"]


@pytest.mark.parametrize("heading", RECIPES)
def test_a_recipe_has_at_most_ten_lines(heading: str) -> None:
    """N-29: the limit counts lines of code."""
    assert len([line for line in block(heading).splitlines() if line.strip()]) <= 10


def _once_in_two_tries(page: Page) -> None:
    """Assert that the first try failed, the second one did the work, and there was no further one."""
    assert len(page.calls) == 2


def test_celery_retries_a_task_and_its_work_is_done_once(page: Page) -> None:
    """N-29: ``autoretry_for``; the redelivery of a killed worker is in the crash tests."""
    task = page.run("Celery")["create_with_celery"]
    assert task.apply((ORDER,)).get() == {"number": 7}
    assert task.apply((ORDER,)).get() == {"number": 7}
    _once_in_two_tries(page)


def test_dramatiq_delivers_a_message_again_and_its_work_is_done_once(page: Page) -> None:
    """N-29: its Redis broker, and its worker."""
    import dramatiq

    actor = page.run("Dramatiq")["create_with_dramatiq"]
    actor.options["min_backoff"] = 1
    worker = dramatiq.Worker(actor.broker, worker_timeout=50)
    worker.start()
    try:
        actor.send(ORDER)
        assert page.done.wait(SECONDS)
        actor.send(ORDER)
        actor.broker.join(actor.queue_name, timeout=SECONDS * 1000)
        worker.join()
    finally:
        worker.stop()
        actor.broker.close()
    _once_in_two_tries(page)


def test_taskiq_delivers_a_message_again_and_its_work_is_done_once(page: Page) -> None:
    """N-29: its stream broker, and its receiver, which acknowledges."""
    from taskiq.api import run_receiver_task

    names = page.run("Taskiq")
    broker, task = names["taskiq"], names["create_with_taskiq"]

    async def main() -> None:
        broker.is_worker_process = True
        await broker.startup()
        receiver = asyncio.create_task(run_receiver_task(broker))
        try:
            await task.kiq(ORDER)
            while not page.done.is_set():
                await asyncio.sleep(0.02)
            await task.kiq(ORDER)
            await _until_nothing_is_pending(broker)
        finally:
            receiver.cancel()
            await asyncio.gather(receiver, return_exceptions=True)
            await broker.shutdown()
            await names["invoices"].aclose()

    asyncio.run(asyncio.wait_for(main(), SECONDS))
    _once_in_two_tries(page)


async def _until_nothing_is_pending(broker: Any) -> None:
    client = redis.asyncio.Redis(connection_pool=broker.connection_pool)
    while True:
        # The lag of a group would be shorter, but the server does not always know it.
        last = (await client.xinfo_stream(broker.queue_name))["last-generated-id"]
        groups = await client.xinfo_groups(broker.queue_name)
        if all(group["last-delivered-id"] == last and group["pending"] == 0 for group in groups):
            return
        await asyncio.sleep(0.02)


def test_rq_runs_a_job_again_and_its_work_is_done_once(page: Page) -> None:
    """N-29: its worker, in this process, and its retry."""
    from rq import SimpleWorker

    names = page.run("RQ")
    module = sys.modules[__name__]
    module.make_invoice = page.make_invoice  # type: ignore[attr-defined]  # a job names its function by its module
    module.invoices = names["invoices"]  # type: ignore[attr-defined]  # the same
    enqueue: Callable[[Any], Any] = names["enqueue_with_rq"]
    names["make_invoice"] = make_invoice_for_rq
    names["invoices"] = OnceByName()
    for _ in range(2):
        job = enqueue(ORDER)
        SimpleWorker([job.origin], connection=job.connection).work(burst=True)
        assert job.latest_result().return_value == {"number": 7}
    job.connection.close()
    _once_in_two_tries(page)


def run_for_rq(*args: Any) -> Any:
    """The function of a job: the ``Once`` of the page."""
    return globals()["invoices"].run(*args)


def make_invoice_for_rq(order: Any) -> Any:
    """The function of a job: the function of the page."""
    return globals()["make_invoice"](order)


class OnceByName:
    """A ``Once`` of another module, whose ``run`` a job can name."""

    run = staticmethod(run_for_rq)


def test_an_arq_job_is_run_again_and_its_work_is_done_once(page: Page) -> None:
    """N-29: the job is called as arq calls it; arq itself needs an older Redis client than the other libraries here."""
    settings = page.run("arq")["WorkerSettings"]
    (function,) = settings.functions

    async def main() -> None:
        with pytest.raises(ConnectionError):
            await function({"job_try": 1}, ORDER)
        for number in (2, 3):
            assert await function({"job_try": number}, ORDER) == {"number": 7}
        await page.names["invoices"].aclose()

    asyncio.run(main())
    _once_in_two_tries(page)


def test_faststream_handles_a_message_again_and_its_work_is_done_once(page: Page) -> None:
    """N-29: its broker for tests, in memory."""
    from faststream.confluent import TestKafkaBroker

    broker = page.run("FastStream")["faststream"]

    async def main() -> None:
        async with TestKafkaBroker(broker) as tested:
            with pytest.raises(ConnectionError):
                await tested.publish(ORDER, topic="orders")
            for _ in range(2):
                await tested.publish(ORDER, topic="orders")
        await page.names["invoices"].aclose()

    asyncio.run(main())
    _once_in_two_tries(page)


def test_a_kafka_consumer_gets_a_message_again_and_its_work_is_done_once(page: Page) -> None:
    """N-29: the real client, against the broker that it ships for tests. The offset is committed after the work."""
    from confluent_kafka import Consumer, Producer

    consume = page.run("A Kafka consumer loop")["consume"]
    producer = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "unused"})
    brokers = ",".join(f"{b.host}:{b.port}" for b in producer.list_topics(timeout=SECONDS).brokers.values())
    for _ in range(2):
        producer.produce("orders", json.dumps(ORDER))
    assert producer.flush(SECONDS) == 0

    def consumer() -> Consumer:
        made = Consumer(
            {
                "bootstrap.servers": brokers,
                "group.id": "shop",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "session.timeout.ms": 6000,
            }
        )
        made.subscribe(["orders"])
        return made

    first = consumer()
    with pytest.raises(ConnectionError):
        consume(first, lambda: False)
    first.close()
    second = consumer()

    def committed() -> int:
        return sum(max(0, each.offset) for each in second.committed(second.assignment(), timeout=SECONDS))

    deadline = time.monotonic() + SECONDS
    consume(second, lambda: committed() == 2 or time.monotonic() > deadline)
    assert committed() == 2
    second.close()
    _once_in_two_tries(page)


def test_a_webhook_gets_an_event_again_and_its_work_is_done_once(page: Page) -> None:
    """N-29: 500 at first, after which the provider sends the event again, with another count of deliveries."""
    client = page.run("A webhook")["app"].test_client()
    replies = [client.post("/webhooks/payments", json={**ORDER, "pending_webhooks": n}) for n in range(3)]
    assert [reply.status_code for reply in replies] == [500, 204, 204]
    _once_in_two_tries(page)


def test_a_management_command_is_started_again_and_its_work_is_done_once(page: Page) -> None:
    """N-29."""
    from django.core.management import call_command

    from tests import django_project

    django_project.set_up()
    command = page.run("A Django management command")["Command"]
    with pytest.raises(ConnectionError):
        call_command(command(), day="2026-12-01", skip_checks=True)
    for _ in range(2):
        call_command(command(), "--day", "2026-12-01", skip_checks=True)
    _once_in_two_tries(page)


def test_a_tool_is_called_again_and_its_work_is_done_once(page: Page) -> None:
    """N-29: an in-memory client of MCP calls it."""
    from mcp import Client

    server = page.run("An MCP tool")["mcp"]

    async def main() -> list[Any]:
        async with Client(server) as client:
            results = [await client.call_tool("create_invoice", {"order_id": "order-7"}) for _ in range(3)]
        await page.names["invoices"].aclose()
        return results

    failed, *done = asyncio.run(main())
    assert failed.is_error
    assert [json.loads(each.content[0].text) for each in done] == [{"number": 7}] * 2
    _once_in_two_tries(page)
