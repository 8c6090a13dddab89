"""A worker that carries out orders through ``Once`` and is killed once for each order, at the moment that it names.

``celery -A tests.crash.once_worker worker`` is a Celery worker. ``python -m tests.crash.once_worker`` is one event loop
that takes messages from a list in Redis, and requeues what its predecessor had taken. Effects go into a journal.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from pathlib import Path
from typing import Any

import redis.asyncio
from celery import Celery

from open_idempotency import NOT_DONE, Finding, Found, Once, idem

FOLDER = Path(os.environ.get("ORDERS_FOLDER", "."))
BROKER = os.environ.get("ORDERS_BROKER", "redis://127.0.0.1:1/0")
RECORDS = os.environ.get("ORDERS_RECORDS", "memory://")
LEASE = 3.0
QUEUE, TAKEN = "orders", "orders-taken"

#: the moments at which a worker is killed
MOMENTS = (
    "claimed",
    "reserving",
    "reserve-recorded",
    "charging",
    "charge-recorded",
    "before-completion",
    "completed",
    "unreconciled",
)

# The wait is longer than the lease that a killed worker leaves behind.
once = Once(RECORDS, scope="orders", lease=LEASE, wait=60.0)
app = Celery("orders", broker=BROKER)
app.conf.update(
    worker_prefetch_multiplier=1,
    broker_transport_options={"visibility_timeout": 1},
    broker_connection_retry_on_startup=True,
    task_ignore_result=True,
    worker_hijack_root_logger=False,
)


def die_once(order: str, moment: str) -> None:
    """Kill this process, if this is the order's moment and it was not killed for the order before."""
    if order != moment:
        return
    try:
        (FOLDER / f"died-{moment}").touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def effect(order: str, name: str) -> str:
    """An effect that must not happen twice."""
    with (FOLDER / "journal.jsonl").open("a") as journal:
        journal.write(json.dumps({"order": order, "effect": name, "worker": os.getpid()}) + "\n")
    return f"{name} of {order}"


def journal(folder: Path, order: str) -> list[str]:
    """The effects of one order."""
    path = folder / "journal.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line["effect"] for line in lines if line["order"] == order]


def reserve(order: str) -> str:
    """An effect in this service."""
    done = effect(order, "reserve")
    die_once(order, "reserving")
    return done


def charge(order: str) -> str:
    """An effect in another service."""
    done = effect(order, "charge")
    die_once(order, "charging")
    die_once(order, "unreconciled")
    return done


def statement(order: str) -> Found[str] | Finding:
    """Ask the other service whether the charge happened."""
    return Found(f"charge of {order}") if "charge" in journal(FOLDER, order) else NOT_DONE


def terms(order: str) -> dict[str, Any]:
    """The options of the charge's stage."""
    return {"external": True} if order == "unreconciled" else {"reconcile": statement}


def carry_out(order: str) -> dict[str, Any]:
    """Carry out an order, sync."""
    die_once(order, "claimed")
    idem.run("reserve", reserve, order)
    die_once(order, "reserve-recorded")
    charged = idem.run("charge", charge, order, **terms(order))
    die_once(order, "charge-recorded")
    idem.run("receipt", effect, order, "receipt")
    die_once(order, "before-completion")
    return {"order": order, "charged": charged, "attempt": idem.attempt}


async def acarry_out(order: str) -> dict[str, Any]:
    """Carry out an order, async."""
    die_once(order, "claimed")
    await idem.arun("reserve", reserve, order)
    die_once(order, "reserve-recorded")
    charged = await idem.arun("charge", charge, order, **terms(order))
    die_once(order, "charge-recorded")
    await idem.arun("receipt", effect, order, "receipt")
    die_once(order, "before-completion")
    return {"order": order, "charged": charged, "attempt": idem.attempt}


@app.task(name="order", acks_late=True, reject_on_worker_lost=True)
def celery_order(order: str) -> None:
    """A Celery task, acknowledged when the work is on record."""
    once.run(order, carry_out, order)
    die_once(order, "completed")


async def consume() -> None:
    """Take one message after another; acknowledge it when the work is on record."""
    client = redis.asyncio.from_url(BROKER)
    while await client.lmove(TAKEN, QUEUE):  # messages that the previous worker had taken
        pass
    while True:
        message = await client.blmove(QUEUE, TAKEN, 0)
        order = message.decode()
        try:
            await once.arun(order, acarry_out, order)
        except Exception as error:
            logging.warning("%s: %s: %s", order, type(error).__name__, error)
        die_once(order, "completed")
        await client.lrem(TAKEN, 1, message)


if __name__ == "__main__":
    asyncio.run(consume())
