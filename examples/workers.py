"""Server processes of the examples, for the demo and the tests: started on a free port, watched, and killed.

A worker is one process. Workers with the same folder are one shop: another worker finds what a killed one has left
undone.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
START_WITHIN = 60.0
RESPONSE_WITHIN = 30.0

_ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")


class WorkerFailed(Exception):
    """The server did not start, or did not end; the message has its output."""


class Reply(NamedTuple):
    """A response as received. ``headers``: in order, with duplicates."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """The value of a header, if it is there."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


class Worker:
    """A server process of an example. ``command``: the module to run, and its arguments.

    ``environment``: what to set on top of this process's own environment.
    """

    def __init__(self, command: list[str], folder: Path, **environment: str) -> None:
        self._log = folder / f"worker-{time.monotonic_ns()}.log"
        settings = {"PORT": "0", "SHOP_FOLDER": str(folder), "PYTHONUNBUFFERED": "1", **environment}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=ROOT,
                env={**os.environ, **settings},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.port = 0

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    @property
    def log(self) -> str:
        """What the server has written so far."""
        return self._log.read_text(errors="replace")

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def wait_until_it_serves(self) -> Worker:
        """Returns when the server has named its address. Raises ``WorkerFailed``."""
        deadline = time.monotonic() + START_WITHIN
        while time.monotonic() < deadline and self._process.poll() is None:
            address = _ADDRESS.search(self.log)
            if address:
                self.port = int(address[1])
                return self
            time.sleep(0.02)
        self.stop()
        raise WorkerFailed(f"the server did not start:\n{self.log}")

    def request(self, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> Reply | None:
        """Send one request; None if the connection ended without a response."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=RESPONSE_WITHIN)
        try:
            connection.request(method, path, body or None, headers)
            response = connection.getresponse()
            return Reply(response.status, response.reason, response.getheaders(), response.read())
        except (HTTPException, ConnectionError):
            return None
        finally:
            connection.close()

    def wait_until_killed(self) -> bool:
        """Whether the process ended by SIGKILL, within ten seconds."""
        try:
            return self._process.wait(10) == -signal.SIGKILL
        except subprocess.TimeoutExpired:
            return False

    def stop(self) -> None:
        """End the process, and wait for its end."""
        self._process.kill()
        self._process.wait(10)
