"""Which other processes serve the same address: detection with real processes and real sockets."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from open_idempotency._runtime import processes
from open_idempotency._runtime.processes import Neighbour, PerProcess, find_neighbour

SECONDS = 60
ASK = "from open_idempotency._runtime.processes import find_neighbour; print(find_neighbour())"
HOLD = f"{ASK}; import sys; sys.stdout.flush(); sys.stdin.read()"


@pytest.fixture(autouse=True)
def _own_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder of this test alone, also for the processes that it starts."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(processes, "_of_process", PerProcess(processes._Locks))


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def _ask(*shared: socket.socket) -> str:
    command = [sys.executable, "-c", ASK]
    numbers = [each.fileno() for each in shared]
    done = subprocess.run(command, pass_fds=numbers, capture_output=True, text=True, timeout=SECONDS, check=True)
    return done.stdout.strip()


def test_a_process_that_shares_a_listening_socket_is_found(listener: socket.socket) -> None:
    """B-24: by its pid, however often it is asked."""
    assert find_neighbour() is None
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    assert _ask(listener) == str(Neighbour(os.getpid(), address))
    assert find_neighbour() is None


def test_a_socket_at_a_path_counts_too(tmp_path: Path) -> None:
    """B-24: such as a Unix socket behind nginx."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "server"))
        listener.listen()
        assert find_neighbour() is None
        assert _ask(listener) == str(Neighbour(os.getpid(), str(tmp_path / "server")))


def test_a_process_that_shares_no_socket_is_none(listener: socket.socket) -> None:
    """B-24: other servers of the same user, and child processes of the application."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert find_neighbour() is None
        assert _ask() == "None"
        other.set_inheritable(True)
    assert _ask() == "None"


def test_connections_are_no_sign(listener: socket.socket) -> None:
    """B-24: a worker's client connections have its server's address, and one process may pass them to another."""
    with socket.create_connection(listener.getsockname()) as client:
        accepted, _ = listener.accept()
        with accepted:
            assert find_neighbour() is None
            assert _ask(accepted, client) == "None"


def test_a_neighbour_that_has_ended_is_forgotten(listener: socket.socket) -> None:
    """B-24: a restarted worker is not its own neighbour, however the first process ended."""
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(
        command, pass_fds=[listener.fileno()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "None\n"
        found = find_neighbour()
        assert found is not None
        assert found.pid == other.pid
        other.kill()
        other.wait(SECONDS)
    assert find_neighbour() is None


@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "not blocking"])
def test_the_servers_sockets_keep_their_mode(listener: socket.socket, blocking: bool) -> None:
    """B-24: also where the application has set a default timeout for new sockets."""
    listener.setblocking(blocking)
    socket.setdefaulttimeout(5)
    try:
        find_neighbour()
    finally:
        socket.setdefaulttimeout(None)
    assert os.get_blocking(listener.fileno()) is blocking


def test_without_a_folder_for_its_file_nothing_is_found(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-24: on a read-only file system the check finds nothing, and continues."""
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    assert find_neighbour() is None


def test_the_c_class_of_sockets_borrows_a_number() -> None:
    """The private module that ``neighbours`` needs: a socket is made of a file descriptor, and returns it open."""
    import _socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        borrowed = _socket.socket(fileno=listener.fileno())
        assert borrowed.type == socket.SOCK_STREAM
        assert borrowed.detach() == listener.fileno()
        assert listener.getsockname()[1] > 0
