"""A TCP proxy that injects network faults: lost replies, cuts, silence, delays, commands that are held back.

It stands before one server on the loopback, on a port of its own, and relays bytes without parsing a protocol: the
bytes that are sent before a reply count as one command. Two threads a connection.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from contextlib import suppress
from types import TracebackType

PATIENCE = 20.0
_CHUNK = 65536


class Watch:
    """A command that a test waits for. ``happened``: set when the server has replied to it."""

    def __init__(self, command: bytes, nth: int) -> None:
        self.command = command
        self.left = nth
        self.happened = threading.Event()


class Loss(Watch):
    """A command whose reply is lost. ``happened``: set when the server has replied, which the client never sees."""

    def __init__(self, command: bytes, nth: int, silently: bool) -> None:
        super().__init__(command, nth)
        self.silently = silently


class Hold(Watch):
    """A command that is held back, with the rest of its connection, while other connections are served.

    ``arrived``: set when it has arrived; ``happened``: when the server has replied to it, after ``deliver``.
    """

    def __init__(self, command: bytes, nth: int) -> None:
        super().__init__(command, nth)
        self.arrived = threading.Event()
        self._delivered = threading.Event()

    def deliver(self) -> None:
        """Let the command continue, even if its client has left."""
        self._delivered.set()

    def pass_on(self) -> None:
        """Wait for ``deliver``, in the thread of the connection."""
        self.arrived.set()
        self._delivered.wait(PATIENCE)


class FaultProxy:
    """Listens on ``port`` and relays to ``upstream`` on the loopback, until the end of its block."""

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        self._watches: list[Watch] = []
        self._lock = threading.Lock()
        self._links: set[_Link] = set()
        self._flowing = threading.Event()
        self._flowing.set()
        self._delay = (0.0, 0.0)
        self._mute = False
        self._closed = False
        self._random = random.Random(7)
        #: set when bytes of a client have been held back
        self.held_back = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="fault-proxy", daemon=True).start()

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self._flowing.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def lose_reply(self, command: bytes = b"", *, nth: int = 1, silently: bool = False) -> Loss:
        """Lose the reply to the ``nth`` next command whose bytes contain ``command``.

        The server executes it. The client's connection ends or, with ``silently``, stays silent for ever.
        """
        loss = Loss(command, nth, silently)
        with self._lock:
            self._watches.append(loss)
        return loss

    def watch(self, command: bytes, *, nth: int = 1) -> Watch:
        """Watch the ``nth`` next command whose bytes contain ``command``, until the server has replied."""
        watch = Watch(command, nth)
        with self._lock:
            self._watches.append(watch)
        return watch

    def hold(self, command: bytes, *, nth: int = 1) -> Hold:
        """Hold back the ``nth`` next command whose bytes contain ``command``."""
        hold = Hold(command, nth)
        with self._lock:
            self._watches.append(hold)
        return hold

    def cut(self) -> None:
        """End every connection; new ones are served."""
        with self._lock:
            links = list(self._links)
        for link in links:
            link.cut()

    def swallow(self) -> None:
        """A silent partition: connections stay open, and nothing arrives on either side, on new ones too."""
        with self._lock:
            self._mute = True
            for link in self._links:
                link.mute = True

    def heal(self) -> None:
        """End a silent partition for new connections; older ones stay half-open for ever."""
        with self._lock:
            self._mute = False

    def lead_to(self, upstream: int) -> None:
        """Relay new connections to another server; open ones keep theirs."""
        self._upstream = upstream

    def pause(self) -> None:
        """Hold back all bytes until ``resume``."""
        self.held_back.clear()
        self._flowing.clear()

    def resume(self) -> None:
        """Deliver what was held back, even if its client has left."""
        self._flowing.set()

    def delay(self, seconds: float, jitter: float = 0.0) -> None:
        """Delay every command and every reply by this long, and up to ``jitter`` seconds more."""
        self._delay = (seconds, jitter)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._upstream), timeout=PATIENCE)
            except OSError:
                if self._closed:
                    return
                client.close()  # the server is down: the client sees its connection end
                continue
            link = _Link(client, server)
            with self._lock:
                link.mute = self._mute
                self._links.add(link)
            threading.Thread(target=self._relay_commands, args=(link,), daemon=True).start()
            threading.Thread(target=self._relay_replies, args=(link,), daemon=True).start()

    def _relay_commands(self, link: _Link) -> None:
        while data := link.receive(link.client):
            if not self._flowing.is_set():
                self.held_back.set()
            self._linger()
            if not link.mute:
                found = self._matching(data)
                for hold in found:
                    if isinstance(hold, Hold):
                        hold.pass_on()
                link.watches += found
                link.send(link.server, data)
        # The last command of a client that left is delivered nevertheless.
        link.end(link.server)
        self._left(link)

    def _relay_replies(self, link: _Link) -> None:
        while data := link.receive(link.server):
            self._linger()
            watches, link.watches = link.watches, []
            for watch in watches:
                if isinstance(watch, Loss):
                    link.mute = True
                    if not watch.silently:
                        link.cut()
                watch.happened.set()
            if not link.mute:
                link.send(link.client, data)
        if not link.mute:
            link.cut()
        self._left(link)

    def _left(self, link: _Link) -> None:
        """End one of a link's two threads; the last one closes the link."""
        with self._lock:
            link.threads -= 1
            if link.threads == 0:
                self._links.discard(link)
                link.client.close()
                link.server.close()

    def _linger(self) -> None:
        fixed, jitter = self._delay
        if fixed or jitter:
            time.sleep(fixed + self._random.random() * jitter)
        self._flowing.wait(PATIENCE)

    def _matching(self, data: bytes) -> list[Watch]:
        """The watches for which these bytes are the ``nth`` matching command."""
        with self._lock:
            concerned = [watch for watch in self._watches if watch.command in data]
            for watch in concerned:
                watch.left -= 1
            found = [watch for watch in concerned if watch.left == 0]
            self._watches = [watch for watch in self._watches if watch.left > 0]
            return found


class _Link:
    """One client's connection, and the corresponding one to the server."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.mute = False
        self.watches: list[Watch] = []
        self.threads = 2
        for end in (client, server):
            # Without it, small commands wait for the acknowledgement of the previous packet.
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.settimeout(None)

    @staticmethod
    def receive(end: socket.socket) -> bytes:
        """The next bytes; empty at the end."""
        try:
            return end.recv(_CHUNK)
        except OSError:
            return b""

    @staticmethod
    def send(end: socket.socket, data: bytes) -> None:
        """Send bytes to a peer that may have left."""
        with suppress(OSError):
            end.sendall(data)

    @staticmethod
    def end(end: socket.socket) -> None:
        """Close the sending side."""
        with suppress(OSError):
            end.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """End both sides at once, with a shutdown: a thread still reads from each."""
        for end in (self.client, self.server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
