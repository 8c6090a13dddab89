"""Which other process accepts connections on the same address: another worker of the same server.

No server says in a worker how many workers it has, and not every server is known here. So each process that asks locks
one byte of a file of its user, chosen by the address, for each address on which it listens; a byte that is locked
already belongs to another worker. Such locks end with their process, and a fork does not inherit them.
"""

from __future__ import annotations

import _socket
import errno
import os
import stat
import struct
import sys
import threading
from collections.abc import Iterator
from hashlib import sha256
from typing import Any, NamedTuple

from open_idempotency._runtime.processes import PerProcess

if sys.platform != "win32":
    import fcntl

_TAKEN = (errno.EACCES, errno.EAGAIN)


class Neighbour(NamedTuple):
    """Another process that listens on ``address``. ``pid`` is 0 where the system does not say which."""

    pid: int
    address: str


def find_neighbour() -> Neighbour | None:
    """Another process that has asked this before, lives, and listens where this one does; None where there is none.

    None also where that cannot be known: on Windows, or without a folder for temporary files.
    """
    if sys.platform == "win32":
        return None
    try:
        return _of_process.get().look()
    except OSError:
        return None


class _Locks:
    """The bytes that one process has locked. Closing the file would unlock them all."""

    def __init__(self) -> None:
        # A thread of this process must not see what another one does as a neighbour's work.
        self._mutex = threading.Lock()
        self._mine: set[int] = set()
        self._file: int | None = None

    def look(self) -> Neighbour | None:
        with self._mutex:
            found: Neighbour | None = None
            for address in _addresses():
                byte = _byte_of(address)
                if byte not in self._mine and not self._lock(byte):
                    found = found or Neighbour(self._owner(byte), address)
            return found

    def _lock(self, byte: int) -> bool:
        if self._file is None:
            self._file = _open()
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            return False
        self._mine.add(byte)
        return True

    def _owner(self, byte: int) -> int:
        """The process that holds the byte's lock. The structure is that of 64-bit systems."""
        assert self._file is not None
        asked = (fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
        if sys.platform == "linux" and struct.calcsize("P") == 8:
            return int(
                struct.unpack("hhqqi4x", fcntl.fcntl(self._file, fcntl.F_GETLK, struct.pack("hhqqi4x", *asked)))[4]
            )
        return 0


_of_process = PerProcess(_Locks)


def _open() -> int:
    import tempfile  # most processes need neither it nor what it imports

    path = os.path.join(tempfile.gettempdir(), f"open-idempotency-{os.getuid()}.lock")
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _byte_of(address: str) -> int:
    # Containers may share the folder, and have the same address each.
    with_namespace = f"{_network()} {address}"
    return int.from_bytes(sha256(with_namespace.encode()).digest()[:7], "big")


def _network() -> int:
    try:
        return os.stat("/proc/self/ns/net").st_ino
    except OSError:
        return 0


def _addresses() -> Iterator[str]:
    """Where this process accepts connections, or is about to, whoever has opened the sockets."""
    for name in os.listdir("/dev/fd"):
        try:
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                address = _address_of(int(name))
                if address is not None:
                    yield address
        except OSError:  # closed meanwhile, or of a kind that has no such option
            continue


def _address_of(number: int) -> str | None:
    # Not a socket of the module socket: gevent puts its own class there. Where the application has set a default
    # timeout, making an object changes the mode of the server's socket, so that is put back.
    blocks = os.get_blocking(number)
    name: Any = None
    borrowed = _socket.socket(fileno=number)
    try:
        if borrowed.type != _socket.SOCK_STREAM:
            return None
        name = borrowed.getsockname()
        if not name or (isinstance(name, tuple) and not name[1]):
            return None
        borrowed.getpeername()
        return None
    except OSError as error:  # no peer: it listens, or will
        if error.errno != errno.ENOTCONN or name is None:
            raise
        return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else os.fsdecode(name)
    finally:
        borrowed.detach()
        if os.get_blocking(number) != blocks:
            os.set_blocking(number, blocks)
