"""One subject, served by a separate process and called over HTTP, with a backend of its own."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from benchmarks.comparison.script import Lead
from benchmarks.comparison.subjects import Option, Subject
from benchmarks.interface import HOLD, PATH
from benchmarks.servers import Servers

BODY = b'{"amount": 100}'
#: seconds: what happens sooner happens at once
AT_ONCE = 1.5
_START_SECONDS = 60.0
_SECONDS = 45.0
#: how often is looked whether something has happened
_POLL = 0.02
#: between two retries
_PAUSE = 0.5


def _environment() -> dict[str, str]:
    """With this package of benchmarks on the path, wherever the command was started."""
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


class NotApplicable(Exception):
    """A scenario that does not apply to a subject, and why."""


class Got(NamedTuple):
    """A response as the client sees it; ``status`` is 0 without a response."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float

    def same(self, other: Got) -> bool:
        """Whether the bodies are the same JSON."""
        return self._json() is not None and self._json() == other._json()

    def _json(self) -> Any:
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def has(self, name: str) -> bool:
        """Whether it has this header, by its name in lower case."""
        return name in self.headers


class Retried(NamedTuple):
    """The result of retries: after how many seconds the endpoint ran, if it did, and the last response."""

    seconds: float | None
    last: Got | None

    @property
    def at_once(self) -> bool:
        """Whether the first retry ran without waiting."""
        return self.seconds is not None and self.last is None and self.seconds < AT_ONCE


class Worker:
    """One process that serves the subject; ``arguments`` are those of ``server``."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        self._log = log
        command = [sys.executable, "-m", "benchmarks.comparison.server", *arguments]
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, env=_environment()
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.kill()
            raise RuntimeError(f"the application does not start: {self._last_words()}")
        self.port = int(line)
        if not _happens(self._responds, _START_SECONDS):
            self.kill()
            raise RuntimeError(f"the application does not respond: {self._last_words()}")

    def alive(self) -> bool:
        """Whether it is running."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._process.kill()
        self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _last_words(self) -> str:
        return self._log.read_text(errors="replace").strip().rpartition("\n")[2]

    def _responds(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/")
            connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            return not self.alive()
        finally:
            connection.close()
        return True


def _happens(true: Callable[[], bool], bound: float) -> bool:
    until = time.monotonic() + bound
    while not true():
        if time.monotonic() > until:
            return False
        time.sleep(_POLL)
    return True


class Rig:
    """A context manager; call ``serve`` before sending."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._ends = ExitStack()
        self._folder = Path(self._ends.enter_context(tempfile.TemporaryDirectory(prefix="oi-comparison-")))
        self.lead = Lead(self._folder)
        self._servers = self._ends.enter_context(Servers())
        self._url = self._servers.url(subject.backend)
        self._threads = ThreadPoolExecutor(16)
        self._ends.callback(self._threads.shutdown, cancel_futures=True)
        self._ends.callback(self.kill)
        self._worker: Worker | None = None
        self.option: Option | None = None

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *exc: object) -> None:
        self._ends.close()

    def serve(self, option: Option | None = None) -> None:
        """Serve the subject, with this documented option; does nothing if it is served like that already."""
        if self._worker is not None and self._worker.alive() and option == self.option:
            return
        self.kill()
        self.option = option
        self._worker = self._start()

    @contextmanager
    def second_worker(self) -> Iterator[None]:
        """Start a second worker; at the end the first is killed, and all later requests reach the second."""
        second = self._start()
        try:
            yield
        finally:
            self.kill()
            self._worker = second

    def kill(self) -> None:
        """End the worker with SIGKILL, as the kernel does when memory is short."""
        if self._worker is not None:
            self._worker.kill()
            self._worker = None

    def _start(self) -> Worker:
        chosen = self.option or self.subject.always
        subject, option = self.subject, chosen.path if chosen else ""
        arguments = [subject.make, subject.style, subject.backend, self._url, str(self._folder), option]
        return Worker(arguments, self._folder / "log")

    def stop_backend(self) -> None:
        """End the server of the backend with SIGKILL."""
        if self.subject.backend == "redis":
            self._servers.redis.kill()
        elif self.subject.backend == "postgres":
            self._servers.postgres.kill()
        else:
            raise NotApplicable(f"{self.subject.backend.partition('-')[0]}: no server that could be down")

    def new_key(self) -> str:
        """A key as clients make them."""
        return str(uuid4())

    def send(
        self,
        key: str | None,
        *,
        body: bytes = BODY,
        path: str = PATH,
        method: str = "POST",
        caller: str = "anna",
        seconds: float = _SECONDS,
    ) -> Got:
        """Send a request and wait for its response."""
        start = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", self._served().port, timeout=seconds)
        try:
            connection.request(method, path, body, self._headers(key, caller))
            response = connection.getresponse()
            read = response.read()
        except (OSError, http.client.HTTPException):
            return Got(0, {}, b"", time.monotonic() - start)
        finally:
            connection.close()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Got(response.status, headers, read, time.monotonic() - start)

    def begin(self, key: str | None) -> Future[Got]:
        """Send a request without waiting for its response."""
        return self._threads.submit(self.send, key)

    def begin_held(self, key: str) -> tuple[str, Future[Got]]:
        """Send a request that stays in the endpoint; returns the gate at which it waits."""
        gate, before = self.lead.hold(), self.lead.count("begin")
        sent = self.begin(key)
        self._until(lambda: self.lead.count("begin") > before, "the request does not come to the endpoint", 15)
        return gate, sent

    def begin_and_leave(self, key: str) -> str:
        """Send a request that stays in the endpoint, and close the connection; returns the gate at which it waits."""
        gate, before = self.lead.hold(), self.lead.count("begin")
        headers = {"Host": "127.0.0.1", "Content-Length": str(len(BODY)), **self._headers(key, "anna")}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        with socket.create_connection(("127.0.0.1", self._served().port), timeout=5) as connection:
            connection.sendall(f"POST {PATH} HTTP/1.1\r\n{head}\r\n".encode() + BODY)
            self._until(lambda: self.lead.count("begin") > before, "the request does not come to the endpoint", 15)
        return gate

    def retry(self, key: str, bound: float) -> Retried:
        """Repeat the request until the endpoint begins to run, or for ``bound`` seconds."""
        before, start, last = self.lead.count("begin"), time.monotonic(), None
        sent, again = self.begin(key), start
        while (now := time.monotonic()) - start < bound:
            if self.lead.count("begin") > before:
                return Retried(now - start, last)
            if sent.done() and now >= again:
                last, again = sent.result(), now + _PAUSE
                sent = self.begin(key)
            time.sleep(_POLL)
        return Retried(None, sent.result() if last is None and sent.done() else last)

    def happens(self, true: Callable[[], bool], bound: float) -> bool:
        """Whether the condition becomes true within ``bound`` seconds."""
        return _happens(true, bound)

    def _served(self) -> Worker:
        assert self._worker is not None, "serve() comes first"
        return self._worker

    def _until(self, true: Callable[[], bool], otherwise: str, bound: float) -> None:
        if not _happens(true, bound):
            raise TimeoutError(otherwise)

    @staticmethod
    def _headers(key: str | None, caller: str) -> dict[str, str]:
        keyed = {} if key is None else {"Idempotency-Key": key}
        return {"Content-Type": "application/json", "Authorization": f"Bearer {caller}", HOLD: "1", **keyed}
