"""The driver of the proof: it kills and freezes workers, flushes the records, retries, and counts the rows.

It proves a batch of keys at once. Each key belongs to a cell: a point, and what happens to the worker there.
"""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from open_idempotency.ledger.dialects import MYSQL, POSTGRESQL
from tests.ledger.databases import Database
from tests.proof import PATIENCE
from tests.servers import Server

#: concurrent retries of each key, from two processes
RETRIES = 64
PROCESSES = 2
#: requests that die or freeze together
GROUP = 10
#: concurrent requests that wait to be killed; each has one of PostgreSQL's hundred connections
AT_ONCE = 30
#: seconds for each step of a call; five of them have to fit into a lease
TIMEOUT = 0.25

_ROOT = Path(__file__).parent.parent.parent
#: seconds to the first flush of a storm, and by how much each pause is longer than the one before: else a storm that
#: has hardly a processor would never get through
_FLUSHES, _GROWTH = 0.15, 1.05
_ORDERS = "CREATE TABLE orders (name varchar(80) NOT NULL, number varchar(80) NOT NULL)"


class Cell(NamedTuple):
    """Where and how workers are stopped: SIGKILL, or SIGSTOP until a lease has passed."""

    point: str
    stop: signal.Signals = signal.SIGKILL


class Served(NamedTuple):
    """The responses of one key's clients: the bodies of 201, and all others."""

    bodies: Counter[str]
    others: Counter[tuple[int, str]]


#: how many transactions wait for a lock
_WAITING = {
    POSTGRESQL: "SELECT count(*) FROM pg_locks WHERE NOT granted",
    MYSQL: "SELECT count(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'",
}


class Site:
    """Valkey for the records, an empty database for the rows, and the server of workers."""

    def __init__(self, records: Server, rows: Database) -> None:
        self._records = records
        self._rows = rows
        for statement in (rows.dialect.schema() + _ORDERS).split(";"):
            rows.query(statement)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.proof.worker", f"{records.url}?timeout={TIMEOUT}", rows.url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=_ROOT,
            text=True,
        )

    def close(self) -> None:
        """End the workers and their server."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(PATIENCE)
        finally:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()

    # Commands

    def _start(self, form: str, keys: list[str], at_once: int, copies: int = 1, cell: Cell | None = None) -> int:
        """Fork a worker for these keys; its pid."""
        point, stop = (None, signal.SIGKILL) if cell is None else cell
        job = {"form": form, "keys": keys, "copies": copies, "at_once": at_once, "point": point, "stop": int(stop)}
        pids: list[int] = self._ask("start", [job])
        return pids[0]

    def _ask(self, verb: str, argument: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([verb, argument]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the server of workers ended"
        reported = json.loads(line)
        assert "error" not in reported, f"{verb}: {reported['error']}"
        return reported["result"]

    def die(self, form: str, groups: list[tuple[Cell, list[str]]]) -> None:
        """Kill workers, each at its point with all its keys."""
        for some in _shares(groups, AT_ONCE):
            pids = [self._start(form, keys, len(keys), cell=cell) for cell, keys in some]
            ends = self._ask("end", pids)
            assert ends == [signal.SIGKILL] * len(pids), "a worker did not come to its point"

    def freeze(self, form: str, groups: list[tuple[Cell, list[str]]]) -> list[int]:
        """Freeze workers, each at its point with all its keys."""
        pids = [self._start(form, keys, len(keys), cell=cell) for cell, keys in groups]
        self._ask("stopped", pids)
        return pids

    def thaw(self, pids: list[int]) -> None:
        """Continue frozen workers."""
        self._ask("thaw", pids)

    def served(self, pids: list[int], into: dict[str, Served]) -> None:
        """Add the responses of these workers' clients."""
        for responses in self._ask("end", pids):
            for key, status, body in responses:
                if status == 201:
                    into[key].bodies[body] += 1
                else:
                    into[key].others[status, body] += 1

    def storm(self, form: str, keys: list[str]) -> list[int]:
        """Retry every key ``RETRIES`` times concurrently."""
        share = RETRIES // PROCESSES
        return [self._start(form, keys, share, share) for _ in range(PROCESSES)]

    # The servers

    def flush(self) -> None:
        """Delete every record."""
        with self._records.connect() as client:
            client.flushall()

    @contextmanager
    def flushing(self) -> Iterator[None]:
        """Delete the records again and again within the block."""
        over = threading.Event()

        def flush() -> None:
            pause = _FLUSHES
            with self._records.connect() as client:
                while not over.wait(pause):
                    client.flushall()
                    pause *= _GROWTH

        self.flush()
        thread = threading.Thread(target=flush)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(PATIENCE)

    def wait_for_the_frozen(self) -> None:
        """Wait until a retry waits for the row lock of a frozen worker."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if self._rows.query(_WAITING[self._rows.dialect])[0][0]:
                return
            time.sleep(0.02)
        raise AssertionError("no retry came to wait for a frozen worker")

    def orders(self, keys: list[str]) -> dict[str, list[str]]:
        """The numbers of the rows of each key."""
        found: dict[str, list[str]] = {key: [] for key in keys}
        for key, number in self._rows.query("SELECT name, number FROM orders"):
            if key in found:
                found[key].append(number)
        return found


def new_served() -> dict[str, Served]:
    """No responses yet."""
    return defaultdict(lambda: Served(Counter(), Counter()))


def wrong(orders: dict[str, list[str]], served: dict[str, Served], responses: int) -> dict[str, str]:
    """Violations by key: not exactly one row, or a client without the response that has its number, byte for byte."""
    found: dict[str, str] = {}
    for key, numbers in orders.items():
        bodies, others = served[key]
        if len(numbers) != 1:
            found[key] = f"{len(numbers)} rows"
        elif others:
            found[key] = f"got {others}"
        elif len(bodies) != 1 or json.loads(next(iter(bodies))) != {"order": numbers[0]}:
            found[key] = f"row {numbers[0]}, bodies {bodies}"
        elif bodies.total() < responses:
            found[key] = f"{bodies.total()} responses"
    return found


def groups_of(cell: Cell, count: int) -> list[tuple[Cell, list[str]]]:
    """``count`` new keys for a cell, in groups that share a worker."""
    keys = [f"{secrets.token_hex(12)}" for _ in range(count)]
    return [(cell, keys[start : start + GROUP]) for start in range(0, count, GROUP)]


def keys_of(groups: list[tuple[Cell, list[str]]]) -> list[str]:
    """All keys of these groups."""
    return [key for _, keys in groups for key in keys]


def _shares(groups: list[tuple[Cell, list[str]]], most: int) -> Iterator[list[tuple[Cell, list[str]]]]:
    """The groups in order, in lists of at most ``most`` keys."""
    share: list[tuple[Cell, list[str]]] = []
    for group in groups:
        if share and len(keys_of([*share, group])) > most:
            yield share
            share = []
        share.append(group)
    yield share
