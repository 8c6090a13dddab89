"""A real MariaDB for the tests of this process, from the server that the machine has installed.

pip has none, so it is used where the variable ``OI_TEST_MARIADB`` is ``installed`` and there is one (``tox -e
full``), or is ``required``: then a missing one is a failure (``.ci/run``, which installs Debian's). It has a folder
and a port of its own and is ended by its own pid; the machine's own service is left alone. ``OI_TEST_MYSQL_URL``
names another server instead, as ``mysql://user:password@host:port/name``, whose user has to be allowed to make
databases. Nothing here knows the library.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path

import pymysql

from tests.postgres_server import identity
from tests.servers import ServerMissing, free_port

_START_WITHIN = 60.0
_PORT_TRIES = 5
_GIVEN = os.environ.get("OI_TEST_MYSQL_URL")
_WANTED = os.environ.get("OI_TEST_MARIADB", "")
# Debian keeps servers out of the PATH of users.
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])


def _binary(*names: str) -> str | None:
    return next((found for name in names if (found := shutil.which(name, path=_PATH))), None)


_SERVER, _INSTALLER = _binary("mariadbd"), _binary("mariadb-install-db")

if _WANTED not in ("", "installed", "required"):
    raise ValueError(f"OI_TEST_MARIADB is {_WANTED!r}; it may be 'installed' or 'required'")

#: whether MySQL's and MariaDB's tests are collected
IN_USE = bool(_GIVEN) or _WANTED == "required" or (_WANTED == "installed" and _SERVER is not None)


class MariadbServer:
    """A server process on a free port of the loopback."""

    def __init__(self, *options: str) -> None:
        if _SERVER is None or _INSTALLER is None:
            raise ServerMissing("no mariadbd, or no mariadb-install-db; apt-get install mariadb-server")
        self._options = options
        self._folder = Path(tempfile.mkdtemp(prefix="oi-mariadb-"))
        self._identity = identity()
        if self._identity:
            os.chown(self._folder, self._identity["user"], self._identity["group"])
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self._run(_INSTALLER, f"--datadir={self._data}", "--auth-root-authentication-method=normal", "--skip-test-db")

    @property
    def url(self) -> str:
        """Where clients find a database."""
        return f"mysql://root@127.0.0.1:{self.port}/tests"

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def start(self) -> MariadbServer:
        """Start it and wait until it replies; a port that another program took is replaced."""
        for _ in range(_PORT_TRIES):
            self.port = free_port()
            self._process = self._launch()
            if self._replies():
                return self
            self.kill()
        raise ServerMissing(f"{_SERVER} did not start: {self._log.read_text(errors='replace')[-2000:]}")

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)
            self._process = None

    def stop(self) -> None:
        """End it and remove its folder."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _log(self) -> Path:
        return self._folder / "server.log"

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            # Its temporary tables would collide with those of a concurrent installation.
            [program, "--no-defaults", f"--tmpdir={self._folder}", *arguments],
            capture_output=True,
            timeout=120,
            check=False,
            cwd=self._folder,
            **self._identity,
        )
        if done.returncode:
            raise ServerMissing(f"{program}: {done.stderr.decode(errors='replace')}")

    def _launch(self) -> subprocess.Popen[bytes]:
        assert _SERVER is not None
        # Durability is not what the tests are about, and the disk is slow.
        quick: tuple[str, ...] = ("--skip-log-bin", "--innodb-flush-log-at-trx-commit=0", "--innodb-doublewrite=0")
        # A low limit, since the tests of large values have to be over it.
        quick += ("--max-allowed-packet=4M",)
        small = ("--innodb-buffer-pool-size=32M", "--innodb-log-file-size=16M", "--performance-schema=OFF")
        where = (f"--port={self.port}", "--bind-address=127.0.0.1", "--skip-name-resolve", "--socket=socket")
        files = (
            f"--datadir={self._data}",
            f"--tmpdir={self._folder}",
            f"--pid-file={self._folder / 'pid'}",
            f"--log-error={self._log}",
        )
        return subprocess.Popen(
            [_SERVER, "--no-defaults", *where, *files, *quick, *small, *self._options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self._folder,
            **self._identity,
        )

    def _replies(self) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + _START_WITHIN
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                connection = pymysql.connect(host="127.0.0.1", port=self.port, user="root", connect_timeout=5)
            except pymysql.err.OperationalError:
                time.sleep(0.02)
                continue
            with connection, connection.cursor() as cursor:
                # Another server may own the port: the folder identifies this one.
                cursor.execute("SELECT @@datadir")
                if Path(str(cursor.fetchone()[0])) != self._data:
                    return False
                cursor.execute("CREATE DATABASE IF NOT EXISTS tests CHARACTER SET utf8mb4")
                return True
        return False


@cache
def url() -> str:
    """A database on the server of this process, which is started once, or on the one that the variable names."""
    if _GIVEN:
        return _GIVEN
    server = MariadbServer().start()
    started_by = os.getpid()

    def stop() -> None:
        if os.getpid() == started_by:  # not in a process that it has forked
            server.stop()

    atexit.register(stop)
    return server.url


def for_django() -> None:
    """Let Django find PyMySQL, which needs no C library, where it looks for mysqlclient."""
    pymysql.install_as_MySQLdb()
