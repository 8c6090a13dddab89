"""The example applications on their servers, with short leases and a payment provider without latency.

A test never waits longer than a lease, and never assumes that one has ended: it asks until a deadline.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from examples.evidence import read_journal
from examples.provider import PaymentProvider
from examples.shop import Shop
from examples.workers import Reply, Worker
from open_idempotency import open_backend
from open_idempotency.backend import Backend, Get, Record, Status

LEASE = 3.0
ADMITTED_WITHIN = 20.0

#: the words after ``python -m`` that serve each example
APPLICATIONS = {
    "fastapi": ["examples.payments_fastapi"],
    "starlette": ["examples.payments_starlette"],
    "flask": ["examples.payments_flask"],
    "django-wsgi": ["examples.payments_django"],
    "django-asgi": ["examples.payments_django", "--asgi"],
}

ORDER = json.dumps({"sku": "mug", "quantity": 2, "card": "tok_visa"}).encode()


class Site(NamedTuple):
    """One shop: where its books are, and the environment of its workers."""

    folder: Path
    backend: str

    def start(self, application: str, **environment: str) -> Worker:
        """Start a worker of this shop, without waiting for it."""
        return self.start_command(APPLICATIONS[application], **environment)

    def start_command(self, command: list[str], **environment: str) -> Worker:
        """Start another command with the same environment."""
        settings = {
            "IDEMPOTENCY_BACKEND": self.backend,
            "IDEMPOTENCY_LEASE": str(LEASE),
            "PROVIDER_LATENCY": "0",
            **environment,
        }
        return Worker(command, self.folder, **settings)

    @contextmanager
    def records(self) -> Iterator[Backend]:
        """The shop's backend, opened in this process."""
        backend = open_backend(re.sub("timeout=[0-9.]+", "timeout=5", self.backend))
        try:
            yield backend
        finally:
            backend.close()

    def left_in_progress(self) -> Record:
        """The record of a killed worker, with a lease that is no longer renewed."""
        with self.records() as backend:
            (record,) = [record for record in backend.scan() if record.status is Status.IN_PROGRESS]
            return record

    def was_waited_for(self, left: Record) -> bool:
        """Whether the record was taken over, and only after its lease had ended by the backend's clock."""
        with self.records() as backend:
            record = backend.get(Get(left.record_id))
        return record is not None and record.token > left.token and record.claimed_at >= left.lease_end

    def effects(self) -> list[tuple[str, int]]:
        """The effects in order, each with the process id of its worker."""
        return [(line["effect"], line["worker"]) for line in read_journal(self.folder)]

    def books(self) -> dict[str, object]:
        """The totals: requests at the provider by outcome, goods that left, reservations and receipts."""
        shop = Shop(self.folder)
        return {
            "provider": [line.outcome for line in PaymentProvider(self.folder).lines()],
            "mugs gone": 100 - shop.available("mug"),
            "reservations": len(shop.reservations()),
            "receipts": len(shop.receipts()),
        }


EVERYTHING_ONCE = {"provider": ["charged"], "mugs gone": 2, "reservations": 1, "receipts": 1}


class Client:
    """Sends one order with one key, as often as asked."""

    def __init__(self) -> None:
        self._headers = {"Idempotency-Key": f'"{uuid.uuid4()}"', "Content-Type": "application/json"}

    def post(self, worker: Worker) -> Reply | None:
        """The response, or None if the worker died."""
        return worker.request("POST", "/charges", self._headers, ORDER)

    def post_until_admitted(self, worker: Worker) -> Reply:
        """Ask again while the response is 409, or 503 because a busy machine was slow."""
        return self.post_until(worker, lambda reply: reply.status not in (409, 503))

    def post_until(self, worker: Worker, wanted: Callable[[Reply], bool]) -> Reply:
        """Ask again until the status is a wanted one."""
        deadline = time.monotonic() + ADMITTED_WITHIN
        while time.monotonic() < deadline:
            reply = self.post(worker)
            assert reply is not None, worker.log
            if wanted(reply):
                return reply
            time.sleep(0.1)
        raise AssertionError(f"still refused after {ADMITTED_WITHIN} s: {worker.log}")


SiteFactory = Callable[[str], Site]
