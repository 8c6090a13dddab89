"""SIGKILL at each point of a ``Once`` call in the workers of a queue, and redelivery of the messages.

Real workers and a real broker: Celery with ``acks_late`` in both pools, and one event loop. A plain stage that is
killed between its effect and its record runs again; everything else happens once (S-02, S-04).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kombu
import pytest
import redis

from examples.workers import ROOT
from open_idempotency import Once, OnceStatus, Status
from tests.crash import once_worker
from tests.crash.once_worker import MOMENTS, QUEUE, journal
from tests.servers import Server

ENDED_WITHIN = 150.0
CELERY = ["celery", "-A", "tests.crash.once_worker", "worker", "--without-gossip", "--without-mingle"]
COMMANDS = {
    "celery-solo": [*CELERY, "-P", "solo"],
    "celery-prefork": [*CELERY, "-P", "prefork", "-c", "1"],
    "asyncio": ["tests.crash.once_worker"],
}


class Workers:
    """One worker at a time, which is started again after each kill."""

    def __init__(self, kind: str, folder: Path, broker: str, records: str) -> None:
        self.kind = kind
        self._folder = folder
        self._broker = broker
        self._environment = {
            **os.environ,
            "ORDERS_FOLDER": str(folder),
            "ORDERS_BROKER": broker,
            "ORDERS_RECORDS": records,
            "PYTHONUNBUFFERED": "1",
        }
        self._process: subprocess.Popen[bytes] | None = None

    def send(self, orders: tuple[str, ...]) -> None:
        """Put the messages into the queue."""
        if self.kind == "asyncio":
            with redis.Redis.from_url(self._broker) as client:
                client.rpush(QUEUE, *orders)
            return
        once_worker.app.conf.broker_url = self._broker
        with kombu.Connection(self._broker) as connection:
            for order in orders:
                once_worker.celery_order.apply_async((order,), connection=connection)

    def go_on(self) -> None:
        """Start the worker if none runs, and have the broker redeliver the messages of a killed one."""
        if self._process is None or self._process.poll() is not None:
            if self._process is not None:
                assert self._process.returncode == -signal.SIGKILL, self.log
            with (self._folder / "worker.log").open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", *COMMANDS[self.kind]],
                    cwd=ROOT,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        if self.kind == "celery-solo":
            # A worker does this every ten seconds; the broker's client does it here for a test that need not wait.
            options = {"visibility_timeout": 1}
            with kombu.Connection(self._broker, transport_options=options) as connection:
                connection.default_channel.qos.restore_visible(num=100)

    def stop(self) -> None:
        """End the worker and the processes that it has started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)

    @property
    def log(self) -> str:
        path = self._folder / "worker.log"
        return path.read_text(errors="replace")[-4_000:] if path.exists() else ""


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    """A server of this module, for queues and records."""
    server = Server("valkey").start()
    try:
        yield server.url
    finally:
        server.stop()


@pytest.fixture(params=COMMANDS)
def workers(request: pytest.FixtureRequest, tmp_path: Path, broker: str) -> Iterator[tuple[Workers, Once]]:
    """Each kind of worker, and the records that it writes."""
    with redis.Redis.from_url(broker) as client:
        client.flushdb()
    records = f"{broker}?timeout=0.5"
    made = Workers(request.param, tmp_path, broker, records)
    once = Once(f"{broker}?timeout=5", scope="orders", lease=60)
    try:
        yield made, once
    finally:
        made.stop()
        once.close()


def _wait(workers: Workers, once: Once, folder: Path) -> dict[str, OnceStatus]:
    """The status of each order, when all have ended; killed workers are started again."""
    deadline = time.monotonic() + ENDED_WITHIN
    while time.monotonic() < deadline:
        workers.go_on()
        found = {order: once.status(order) for order in MOMENTS}
        if all(_has_ended(order, status, folder) for order, status in found.items()):
            return found
        time.sleep(0.2)
    raise AssertionError(f"not ended: {found}\n{workers.log}")


def _has_ended(order: str, status: OnceStatus, folder: Path) -> bool:
    if not (folder / f"died-{order}").exists():
        return False
    return status.status is (Status.FAILED if order == "unreconciled" else Status.COMPLETED)


def test_work_that_is_killed_at_each_point_is_carried_out_as_promised(
    workers: tuple[Workers, Once], tmp_path: Path
) -> None:
    """N-28, L-02, S-04: each order is killed once, redelivered and resumed."""
    worker, once = workers
    worker.send(MOMENTS)

    ended = _wait(worker, once, tmp_path)

    effects = {order: journal(tmp_path, order) for order in MOMENTS}
    once_each = ["reserve", "charge", "receipt"]
    assert effects == {
        **dict.fromkeys(MOMENTS, once_each),
        "reserving": ["reserve", *once_each],  # a plain stage, killed between its effect and its record
        "unreconciled": ["reserve", "charge"],  # in doubt, so it is not run again
    }
    attempts = {order: status.attempt for order, status in ended.items()}
    # A message that a slow worker has not confirmed yet is delivered once more, and an attempt in doubt fails again.
    assert attempts.pop("unreconciled") >= 2
    assert attempts == {order: 1 if order == "completed" else 2 for order in MOMENTS if order != "unreconciled"}
    assert _result(once, "charging") == {"order": "charging", "charged": "charge of charging", "attempt": 2}


def _result(once: Once, order: str) -> Any:
    def never(order: str) -> None:
        raise AssertionError("carried out again")

    return once.run(order, never, order)
