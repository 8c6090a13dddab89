"""Poolers in transaction mode for tests: each transaction of a client gets any free server connection.

``Pooler`` is a simulated one, as strict as PgBouncer before 1.21: no prepared statement, setting or notification
outlives a transaction, it refuses startup parameters that it does not know, and it hides real process ids.
``PgBouncer`` runs the real one if its binary is installed. Nothing here knows the library.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import psycopg

from tests.postgres_server import identity
from tests.servers import ServerMissing, free_port

SIZE = 4
_START_WITHIN = 20.0
_SSL, _GSS, _VERSION = 80877103, 80877104, 196608
#: startup parameters that a client may send, and parameters that it is sent
_KNOWN = {"user", "database", "application_name", "client_encoding"}
_SENT = {"server_version", "server_encoding", "client_encoding", "standard_conforming_strings", "integer_datetimes"}
Address = tuple[str, str]


def pgbouncer_binary() -> str | None:
    """The PgBouncer of this machine: named by ``OI_TEST_PGBOUNCER``, or on the path; pip has none."""
    return os.environ.get("OI_TEST_PGBOUNCER") or shutil.which("pgbouncer")


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


async def _read(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(5)
    return head + await reader.readexactly(struct.unpack("!I", head[1:])[0] - 4)


class _Server:
    """A connection to the server, and the client that has it during a transaction."""

    def __init__(self, idle: asyncio.Queue[_Server | None]) -> None:
        self._idle = idle
        self.reported: list[bytes] = []
        self.client: asyncio.StreamWriter | None = None
        #: pending replies to the client's messages
        self.owed = 0

    async def open(self, port: int, address: Address) -> _Server:
        self._reader, self.writer = await asyncio.open_connection("127.0.0.1", port)
        user, database = address
        said = f"user\0{user}\0database\0{database}\0application_name\0pooler\0\0".encode()
        self.writer.write(struct.pack("!II", len(said) + 8, _VERSION) + said)
        while not (message := await _read(self._reader)).startswith(b"Z"):
            if message.startswith(b"E"):
                raise ConnectionError(message)
            if message.startswith(b"S") and message[5:].split(b"\0")[0].decode() in _SENT:
                self.reported.append(message)
        self.pump = asyncio.ensure_future(self._pump())
        return self

    async def _pump(self) -> None:
        """Forward what the server sends; messages without a client, such as notifications, are lost."""
        try:
            while True:
                message = await _read(self._reader)
                if self.client is None:
                    continue
                self.client.write(message)
                if message.startswith(b"Z"):
                    self.owed -= 1
                    if not self.owed and message.endswith(b"I"):
                        self.client = None
                        self._idle.put_nowait(self)
        except (OSError, asyncio.IncompleteReadError):
            if self.client is not None:
                self.client.close()
        finally:
            self.writer.close()


class Pooler:
    """Listens on ``port`` and shares ``SIZE`` connections to the server there, for one database, until its end."""

    def __init__(self, upstream: int, database: str = "postgres") -> None:
        self._upstream = upstream
        self._address = ("postgres", database)
        self._loop = asyncio.new_event_loop()
        self._idle: asyncio.Queue[_Server | None] = asyncio.Queue()
        for _ in range(SIZE):
            self._idle.put_nowait(None)
        listening = asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._listener = self._loop.run_until_complete(listening)
        self.port: int = self._listener.sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever, name="pooler", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{self._address[1]}"

    def __enter__(self) -> Pooler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _end(self) -> None:
        self._listener.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        server: _Server | None = None
        try:
            if not await self._greet(reader, client):
                return
            while not (message := await _read(reader)).startswith(b"X"):
                if server is None or server.client is not client:
                    server = await self._take()
                    server.client, server.owed = client, 0
                server.owed += message[:1] in (b"Q", b"S")
                server.writer.write(message)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # one side has closed, or the pooler ends
        finally:
            if server is not None and server.client is client:
                # In the middle of a transaction: no other client may have this connection.
                server.client = None
                server.pump.cancel()
                self._idle.put_nowait(None)
            client.close()

    async def _take(self) -> _Server:
        """The connection that has been idle for longest, so that transactions share one as rarely as possible."""
        server = await self._idle.get()
        if server is not None and not server.pump.done():
            return server
        try:
            return await _Server(self._idle).open(self._upstream, self._address)
        except BaseException:
            self._idle.put_nowait(None)
            raise

    async def _greet(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> bool:
        while True:
            size, code = struct.unpack("!II", await reader.readexactly(8))
            body = await reader.readexactly(size - 8)
            if code not in (_SSL, _GSS):
                break
            client.write(b"N")
        words = body.decode().split("\0")
        said = dict(zip(words[0:-2:2], words[1:-2:2], strict=True))
        unknown = set(said) - _KNOWN
        if code != _VERSION or unknown or (said["user"], said["database"]) != self._address:
            text = f"SFATAL\0C08P01\0Munsupported startup parameter: {', '.join(unknown) or 'database'}\0\0"
            client.write(_message(b"E", text.encode()))
            return False
        server = await self._take()
        self._idle.put_nowait(server)
        key = _message(b"K", secrets.token_bytes(8))
        client.write(_message(b"R", bytes(4)) + b"".join(server.reported) + key + _message(b"Z", b"I"))
        return True


class PgBouncer:
    """PgBouncer before the server at a port, with as many connections; ended by its own pid."""

    def __init__(self, upstream: int, database: str = "postgres") -> None:
        binary = pgbouncer_binary()
        assert binary is not None
        self._folder = Path(tempfile.mkdtemp(prefix="oi-pgbouncer-"))
        self.port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/{database}"
        settings = self._folder / "pgbouncer.ini"
        settings.write_text(
            f"[databases]\n{database} = host=127.0.0.1 port={upstream} user=postgres\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\nauth_type = any\n"
            f"pool_mode = transaction\ndefault_pool_size = {SIZE}\nserver_round_robin = 1\n",
            encoding="utf-8",
        )
        who = identity()
        if who:
            for path in (self._folder, settings):
                os.chown(path, who["user"], who["group"])
        self._log = self._folder / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [binary, "-q", str(settings)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, **who
            )

    def __enter__(self) -> PgBouncer:
        deadline = time.monotonic() + _START_WITHIN
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(psycopg.OperationalError):
                psycopg.connect(self.url, connect_timeout=5).close()
                return self
            time.sleep(0.02)
        self._process.kill()
        self._process.wait(10)
        raise ServerMissing(f"pgbouncer did not start: {self._log.read_text(errors='replace')[-2000:]}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait(10)
        shutil.rmtree(self._folder, ignore_errors=True)


#: the poolers of this machine
POOLERS: Mapping[str, Callable[..., Pooler | PgBouncer]] = {
    "own": Pooler,
    **({"pgbouncer": PgBouncer} if pgbouncer_binary() else {}),
}
