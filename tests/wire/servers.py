"""Real server processes on free ports, each in its own folder, ended by their process ids.

Nothing here knows the library.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from uuid import uuid4

from tests.wire.kinds import KINDS

ROOT = Path(__file__).resolve().parents[2]
#: seconds; generous, for a busy machine
START_WITHIN = 60.0
LISTS_PROCESSES = Path("/proc/self/task").exists()
_PORT_TRIES = 5


class Server:
    """A server process over the records and gates of one folder. Several may share it."""

    def __init__(self, kind: str, folder: Path, options: Sequence[str] = (), **environment: str) -> None:
        self.kind = kind
        self.folder = folder
        self.port = 0
        self._options = options
        self._nonce = uuid4().hex
        self._environment = {
            **os.environ,
            "WIRE_FOLDER": str(folder),
            "WIRE_NONCE": self._nonce,
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
            "PYTHONWARNINGS": "error",
            **environment,
        }
        self._log = folder / f"server-{self._nonce}.log"
        self._process = self._start()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process that was started; for gunicorn and granian the parent of the workers."""
        return self._process.pid

    @property
    def log(self) -> str:
        """What the server has written so far."""
        return self._log.read_text(errors="replace")

    def connect(self) -> socket.socket:
        """A connection to it."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def terminate(self) -> None:
        """Ask it to stop."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float = 25) -> bool:
        """Whether it ends by itself within a timeout that is shorter than a lease."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self) -> None:
        """Kill it and the processes that it has started; itself first, so that it starts no other."""
        if not LISTS_PROCESSES:
            self.terminate()
            self.wait()
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(10)

    def pids(self) -> list[int]:
        """Its processes that are alive: itself first, then its workers, if the system lists them."""
        found, pending = [], [self.pid] if self._process.poll() is None else []
        while pending:
            pid = pending.pop()
            found.append(pid)
            with suppress(FileNotFoundError, ProcessLookupError):
                pending += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return found

    def _start(self) -> subprocess.Popen[bytes]:
        for _ in range(_PORT_TRIES):
            self.port = _free_port()
            process = self._launch()
            if self._responds(process):
                return process
            process.kill()
            process.wait(10)
        raise AssertionError(f"{self.kind} did not start: {self.log[-3000:]}")

    def _launch(self) -> subprocess.Popen[bytes]:
        words = [word.format(port=self.port) for word in KINDS[self.kind].command]
        if self.kind == "waitress":
            words[-1:-1] = self._options
        else:
            words += self._options
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *words],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _responds(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether this server responds on the port: another one may have taken it in between."""
        deadline = time.monotonic() + START_WITHIN
        while time.monotonic() < deadline and process.poll() is None:
            try:
                with self.connect() as connection:
                    connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    response = b"".join(iter(lambda: connection.recv(65536), b""))
                return self._nonce.encode() in response
            except OSError:
                time.sleep(0.02)
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
