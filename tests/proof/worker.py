"""A server of workers: it imports everything once, and forks a worker for each job, which it watches.

``python -m tests.proof.worker RECORDS DATABASE``. Each line of JSON on stdin is a command, and gets one line as its
reply. ``start`` forks a worker for each of its jobs; ``stopped`` waits until workers have stopped themselves, ``thaw``
continues them, ``end`` waits for their ends: the signal that killed each, or the responses of its clients. It has one
thread, so a fork inherits no held lock.
"""

from __future__ import annotations

import asyncio
import faulthandler
import inspect
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any, BinaryIO

from tests.proof import FULL, PATIENCE
from tests.proof.forms import EVERY_FORM, Result, Setting
from tests.proof.traps import Trap

#: statuses that a client retries, and its pause
RETRIED = frozenset({409, 503})
_PAUSE = 0.05
#: seconds that a worker lives
LONGEST = 1200.0 if FULL else 90.0

_WARM = (
    "django.core.handlers.wsgi",
    "django.db.backends.postgresql.base",
    "fastapi.responses",
    "flask",
    "psycopg_pool",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.ext.asyncio",
    "sqlalchemy.orm",
    "starlette.applications",
    "open_idempotency.asgi",
    "open_idempotency.backends.redis.backend",
    "open_idempotency.django",
    "open_idempotency.flask",
    "open_idempotency.ledger.on_django",
    "open_idempotency.ledger.on_psycopg",
    "open_idempotency.ledger.on_sqlalchemy",
    "open_idempotency.wsgi",
)

Response = tuple[str, int, str]


class _Job:
    """Requests that one worker makes concurrently, as many as it has threads."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.make = EVERY_FORM[order["form"]]
        self.requests = [key for key in order["keys"] for _ in range(order["copies"])]
        self.at_once = int(order["at_once"])
        self.point: str | None = order["point"]
        self.stop = signal.Signals(order["stop"])

    def run(self, records: str, database: str) -> list[Response]:
        """The clients' responses, in the order of the requests."""
        call = self.make(Setting(records, database, Trap(self.point, len(self.requests), self.stop)))
        if inspect.iscoroutinefunction(getattr(call, "func", call)):
            return asyncio.run(self._arun(call))
        with ThreadPoolExecutor(self.at_once) as threads:
            return list(threads.map(lambda key: _retried(call, key), self.requests))

    async def _arun(self, call: Any) -> list[Response]:
        places = asyncio.Semaphore(self.at_once)

        async def one(key: str) -> Response:
            async with places:
                return await _aretried(call, key)

        return await asyncio.gather(*(one(key) for key in self.requests))


def _retried(call: Any, key: str) -> Response:
    deadline = time.monotonic() + PATIENCE
    while True:
        status, body = call(key)
        if status not in RETRIED or time.monotonic() > deadline:
            return _response(key, (status, body))
        time.sleep(_PAUSE * (0.5 + random.random()))


async def _aretried(call: Any, key: str) -> Response:
    deadline = time.monotonic() + PATIENCE
    while True:
        status, body = await call(key)
        if status not in RETRIED or time.monotonic() > deadline:
            return _response(key, (status, body))
        await asyncio.sleep(_PAUSE * (0.5 + random.random()))


def _response(key: str, result: Result) -> Response:
    return key, result[0], result[1].decode("latin-1")


class _Workers:
    """The children of this process."""

    def __init__(self, records: str, database: str) -> None:
        self._where = records, database
        self._outlets: dict[int, BinaryIO] = {}

    def start(self, jobs: list[dict[str, Any]]) -> list[int]:
        return [self._fork(_Job(job)) for job in jobs]

    def _fork(self, job: _Job) -> int:
        outlet = tempfile.TemporaryFile()  # noqa: SIM115 (closed where the worker's end is taken)
        pid = os.fork()
        if pid == 0:
            self._work(job, outlet)
        self._outlets[pid] = outlet
        return pid

    def _work(self, job: _Job, outlet: BinaryIO) -> None:
        """Run a job in the child and end it, without the parent's exit handlers."""
        code = 1
        # A worker that hangs prints where and exits; its parent reports the failure.
        faulthandler.dump_traceback_later(LONGEST, exit=True)
        try:
            outlet.write(json.dumps(job.run(*self._where)).encode())
            outlet.flush()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def stopped(self, pids: list[int]) -> None:
        for pid in pids:
            _, status = os.waitpid(pid, os.WUNTRACED)
            if not os.WIFSTOPPED(status):
                self._outlets.pop(pid).close()
                raise RuntimeError(f"worker {pid} ended ({status}) where it should have stopped")

    def thaw(self, pids: list[int]) -> None:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)

    def end(self, pids: list[int]) -> list[Any]:
        return [self._end(pid) for pid in pids]

    def _end(self, pid: int) -> Any:
        _, status = os.waitpid(pid, 0)
        with self._outlets.pop(pid) as outlet:
            if os.WIFSIGNALED(status):
                return os.WTERMSIG(status)
            if status:
                raise RuntimeError(f"worker {pid} failed; see its traceback")
            outlet.seek(0)
            return json.loads(outlet.read())

    def close(self) -> None:
        while self._outlets:
            pid, outlet = self._outlets.popitem()
            outlet.close()
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _warm() -> None:
    """Import the modules of the forms, so that a fork has them."""
    for name in _WARM:
        import_module(name)


def main() -> None:
    """Serve commands until stdin ends."""
    _warm()
    workers = _Workers(*sys.argv[1:])
    verbs: dict[str, Callable[[Any], Any]] = {
        verb.__name__: verb for verb in (workers.start, workers.stopped, workers.thaw, workers.end)
    }
    try:
        for line in sys.stdin:
            verb, argument = json.loads(line)
            try:
                reply = {"result": verbs[verb](argument)}
            except Exception as error:  # fails one test only: the next one starts without workers
                traceback.print_exc()
                workers.close()
                reply = {"error": repr(error)}
            sys.stdout.write(json.dumps(reply) + "\n")
            sys.stdout.flush()
    finally:
        workers.close()


if __name__ == "__main__":
    main()
