"""The fault proxy itself, before a plain server that replies to each line with what it has received so far."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.faults.proxy import FaultProxy


class Echo:
    """Replies to each line, and remembers all lines."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.lines: list[bytes] = []
        self.more = threading.Condition()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as file:
            try:
                for line in file:
                    with self.more:
                        self.lines.append(line)
                        self.more.notify_all()
                    connection.sendall(b"re:" + line)
            except OSError:
                return

    def await_line(self, line: bytes) -> None:
        with self.more:
            assert self.more.wait_for(lambda: line in self.lines, 10), self.lines

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[FaultProxy]:
    with FaultProxy(echo.port) as proxy:
        yield proxy


def _connect(proxy: FaultProxy, timeout: float = 10) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", proxy.port), timeout=10)
    connection.settimeout(timeout)
    return connection


def _ask(connection: socket.socket, line: bytes) -> bytes:
    connection.sendall(line)
    return connection.recv(1000)


def test_it_relays_both_ways(proxy: FaultProxy) -> None:
    """Several commands on one connection."""
    with _connect(proxy) as connection:
        assert _ask(connection, b"one\n") == b"re:one\n"
        assert _ask(connection, b"two\n") == b"re:two\n"


def test_the_nth_matching_reply_is_lost_and_the_server_has_acted(proxy: FaultProxy, echo: Echo) -> None:
    """Other replies arrive, before and after."""
    loss = proxy.lose_reply(b"x", nth=2)
    with _connect(proxy) as connection:
        for line in (b"x1\n", b"y\n"):
            assert _ask(connection, line) == b"re:" + line
        assert _ask(connection, b"x2\n") == b""
    assert loss.happened.wait(10)
    assert echo.lines == [b"x1\n", b"y\n", b"x2\n"]
    with _connect(proxy) as connection:
        assert _ask(connection, b"x3\n") == b"re:x3\n"


def test_a_silent_loss_leaves_the_connection_open(proxy: FaultProxy) -> None:
    """The client waits until its own timeout."""
    loss = proxy.lose_reply(silently=True)
    with _connect(proxy, 0.2) as connection:
        with pytest.raises(TimeoutError):
            _ask(connection, b"x\n")
        assert loss.happened.wait(10)
        with pytest.raises(TimeoutError):
            _ask(connection, b"y\n")


def test_a_silent_partition_swallows_both_ways_until_it_heals(proxy: FaultProxy, echo: Echo) -> None:
    """Older connections stay half-open."""
    with _connect(proxy, 0.2) as before:
        assert _ask(before, b"one\n") == b"re:one\n"
        proxy.swallow()
        with pytest.raises(TimeoutError):
            _ask(before, b"two\n")
        with _connect(proxy, 0.2) as during, pytest.raises(TimeoutError):
            _ask(during, b"three\n")
        proxy.heal()
        with _connect(proxy) as after:
            assert _ask(after, b"four\n") == b"re:four\n"
        with pytest.raises(TimeoutError):
            _ask(before, b"five\n")
    assert echo.lines == [b"one\n", b"four\n"]


def test_what_was_held_back_is_delivered_late(proxy: FaultProxy, echo: Echo) -> None:
    """Even if its sender has left."""
    proxy.pause()
    with _connect(proxy) as connection:
        connection.sendall(b"late\n")
        assert proxy.held_back.wait(10)
    assert echo.lines == []
    proxy.resume()
    echo.await_line(b"late\n")


def test_a_delay_is_on_both_ways(proxy: FaultProxy) -> None:
    """Each way takes at least the delay."""
    proxy.delay(0.05, 0.01)
    with _connect(proxy) as connection:
        started = time.monotonic()
        assert _ask(connection, b"x\n") == b"re:x\n"
        assert time.monotonic() - started >= 0.1


def test_a_cut_ends_every_connection(proxy: FaultProxy) -> None:
    """New connections are served."""
    with _connect(proxy) as connection:
        assert _ask(connection, b"x\n") == b"re:x\n"
        proxy.cut()
        assert connection.recv(1000) == b""
    with _connect(proxy) as connection:
        assert _ask(connection, b"y\n") == b"re:y\n"


def test_a_server_that_is_down_ends_the_connection(proxy: FaultProxy, echo: Echo) -> None:
    """The client sees the end of its connection."""
    echo.close()
    with _connect(proxy) as connection:
        assert connection.recv(1000) == b""
