"""One process: its values, its failures, and the workers beside it.

Connections, locks and threads must not survive a fork, so they are values of one process. There is no lock here, since
a lock can be inherited while it is held. What an ancestor made is never used and never closed in a child. It is only
referenced, so that its finaliser does not run.

Some failures of the process, its machine or its network count as failures of a backend: no thread could be started, no
file descriptor or memory was left. The same call may succeed later. ``Backend`` and ``AsyncBackend`` turn such failures
into ``BackendUnavailable`` at the edge of each verb, so that a completion is tried again and not lost. Any other error
is a bug, and is not changed.

A worker cannot know how many workers its server has. So each process that looks for neighbours locks bytes of a file
that belongs to its user: one byte, chosen by the address, for each address on which it listens. A byte that is locked
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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from functools import wraps
from hashlib import sha256
from math import inf
from types import FunctionType, MethodType
from typing import Any, Generic, NamedTuple, TypeVar

from open_idempotency.exceptions import BackendUnavailable, first_line

# Values of one process, and the limit of its server

T = TypeVar("T")


class PerProcess(Generic[T]):
    """A value made on first use in each process by ``make``, which may run more than once in a race.

    ``by_pid[os.getpid()]`` is the value that ``get`` returns, for code that every request runs. The pid is read each
    time, since some servers fork without the hooks of ``os.register_at_fork``.
    """

    __slots__ = ("by_pid",)

    def __init__(self, make: Callable[[], T]) -> None:
        self.by_pid = _Made(make)

    def get(self) -> T:
        """This process's value. If two callers make one at the same moment, both get the first."""
        return self.by_pid[os.getpid()]

    def pop(self) -> T | None:
        """Remove this process's value and return it, to be closed; None if there is none."""
        return self.by_pid.pop(os.getpid(), None)


class _Made(dict[int, T]):
    def __init__(self, make: Callable[[], T]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, pid: int) -> T:
        return self.setdefault(pid, self._make())


#: this process as ``host:pid``, by which operators find the worker. Made once for each process: a fork has another pid
names = PerProcess(lambda: f"{_socket.gethostname()}:{os.getpid()}")


def name() -> str:
    """See ``names``."""
    return names.get()


# Seconds of margin: the server counts from an earlier start of the request, and ending a request takes time.
_MARGIN = 2.0

#: seconds after its beginning by which the response to a request has to leave; infinite where the server sets no limit
limit = inf


def limit_requests(seconds: float) -> None:
    """Note that the server ends this process if a request takes longer than ``seconds``."""
    global limit
    limit = seconds - min(_MARGIN, seconds / 4)


# Failures of this process that count as those of a backend

#: the classes of errors to catch; ``is_local`` then decides
KINDS = (OSError, MemoryError, RuntimeError)

#: texts of the standard library's errors for a thread that cannot be started; they have no class of their own
_NO_THREAD = (
    "can't start new thread",
    "can't create new thread",
    "can't register atexit after shutdown",
    "cannot schedule new futures",
    "Executor shutdown has been called",
)
_NO_FILES = (errno.EMFILE, errno.ENFILE)


def is_local(error: BaseException) -> bool:
    """Whether an error is a failure of this process, its machine or its network."""
    if isinstance(error, RuntimeError):
        return str(error).startswith(_NO_THREAD)
    return isinstance(error, (OSError, MemoryError))


def translated(error: Exception) -> Exception:
    """The error to raise: ``BackendUnavailable``, with this one as its cause, for a local failure; else this one."""
    if not is_local(error):
        return error
    said = f"{type(error).__name__}: {first_line(error)}".removesuffix(": ")
    unavailable = BackendUnavailable(f"the call of the backend failed in this process: {said}{_hint(error)}")
    unavailable.__cause__ = error
    return unavailable


def _hint(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "; raise the memory limit of the process"
    if isinstance(error, RuntimeError):
        return "; raise the limit of threads (ulimit -u, pids.max), unless the process is ending"
    if isinstance(error, OSError) and error.errno in _NO_FILES:
        return "; raise the limit of open files (ulimit -n)"
    return ""


def guarded(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a sync verb, so that its local failures become ``BackendUnavailable``."""

    @wraps(verb)
    def guard(*arguments: Any, **keywords: Any) -> Any:
        try:
            return verb(*arguments, **keywords)
        except KINDS as error:
            raise translated(error)  # noqa: B904 (it has its cause)

    return guard


def guarded_async(verb: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Wrap an async verb like ``guarded``."""

    @wraps(verb)
    async def guard(*arguments: Any, **keywords: Any) -> Any:
        try:
            return await verb(*arguments, **keywords)
        except KINDS as error:
            raise translated(error)  # noqa: B904 (it has its cause)

    return guard


_any: Any = print
#: the code that all guards of one kind share
_GUARDS = (guarded(_any).__code__, guarded_async(_any).__code__)


def unguarded(verb: Callable[..., Any]) -> Callable[..., Any]:
    """A backend's verb without its guard, for a caller that passes its errors to ``translated`` itself.

    Other wrappers around the verb stay.
    """
    method: Any = verb
    guard: Any = getattr(method, "__func__", None)
    if getattr(guard, "__code__", None) not in _GUARDS:
        return verb
    return MethodType(guard.__wrapped__, method.__self__)


def guarded_scan(scan: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Wrap a verb that returns an iterator like ``guarded``."""

    @wraps(scan)
    def guard(*arguments: Any, **keywords: Any) -> Iterator[Any]:
        try:
            yield from scan(*arguments, **keywords)
        except KINDS as error:
            raise translated(error)  # noqa: B904 (it has its cause)

    return guard


def guarded_async_scan(scan: Callable[[Any], AsyncIterator[Any]]) -> Callable[[Any], AsyncIterator[Any]]:
    """Wrap a verb that returns an async iterator like ``guarded``."""

    @wraps(scan)
    async def guard(backend: Any) -> AsyncIterator[Any]:
        found = scan(backend)
        try:
            async for each in found:
                yield each
        except KINDS as error:
            raise translated(error)  # noqa: B904 (it has its cause)
        finally:
            close = getattr(found, "aclose", None)
            if close is not None:
                await close()

    return guard


def guarded_wait(wait: Callable[..., None], otherwise: Callable[..., None]) -> Callable[..., None]:
    """Wrap a ``wait``, so that it calls ``otherwise`` after a local failure instead of raising."""

    @wraps(wait)
    def guard(*arguments: Any) -> None:
        try:
            wait(*arguments)
        except KINDS as error:
            if not is_local(error):
                raise
            otherwise(*arguments)

    return guard


def guarded_async_wait(
    wait: Callable[..., Awaitable[None]], otherwise: Callable[..., Awaitable[None]]
) -> Callable[..., Awaitable[None]]:
    """``guarded_wait`` for an async ``wait``."""

    @wraps(wait)
    async def guard(*arguments: Any) -> None:
        try:
            await wait(*arguments)
        except KINDS as error:
            if not is_local(error):
                raise
            await otherwise(*arguments)

    return guard


#: the verbs that return or await one result
_VERBS = (
    "claim",
    "complete",
    "delete",
    "examine",
    "fail",
    "free",
    "get",
    "health",
    "migrate",
    "now",
    "purge",
    "release",
    "renew",
    "reserve",
    "save_stage",
    "unreserve",
    "withdraw",
)


def guard_verbs(cls: type, base: Any) -> None:
    """Guard the verbs that a class of sync backends defines itself. ``base``: the class whose ``wait`` cannot fail."""
    _replace(cls, dict.fromkeys(_VERBS, guarded))
    _replace(cls, dict.fromkeys(("scan", "scan_headers", "ids"), guarded_scan))
    _replace(cls, {"wait": lambda wait: guarded_wait(wait, base.wait)})


def guard_async_verbs(cls: type, base: Any) -> None:
    """``guard_verbs`` for a class of async backends."""
    _replace(cls, dict.fromkeys(_VERBS, guarded_async))
    _replace(cls, {"scan": guarded_async_scan, "wait": lambda wait: guarded_async_wait(wait, base.wait)})


def _replace(cls: type, guards: dict[str, Callable[[Any], Any]]) -> None:
    for name, guard in guards.items():
        verb = vars(cls).get(name)
        if isinstance(verb, FunctionType):
            setattr(cls, name, guard(verb))


# Workers beside this one

if sys.platform != "win32":
    import fcntl

_TAKEN = (errno.EACCES, errno.EAGAIN)


class Neighbour(NamedTuple):
    """Another process that listens on ``address``. ``pid`` is 0 where the system does not say which."""

    pid: int
    address: str


def find_neighbour(name: str | None = None) -> Neighbour | None:
    """A living process that has called this before and listens on an address of this one; None if there is none.

    ``name``: used instead of an address, for processes that do not listen: neighbours pass the same name. Also None
    where neighbours cannot be found: on Windows, or without a folder for temporary files.
    """
    if sys.platform == "win32":
        return None
    try:
        return _of_process.get().look(None if name is None else [name])
    except OSError:
        return None


class _Locks:
    """The bytes that one process has locked. Closing the file would unlock them all."""

    def __init__(self) -> None:
        # One thread of this process must not take the lock of another one for a neighbour's.
        self._mutex = threading.Lock()
        self._mine: set[int] = set()
        self._file: int | None = None

    def look(self, names: Iterable[str] | None) -> Neighbour | None:
        with self._mutex:
            found: Neighbour | None = None
            for address in _addresses() if names is None else names:
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
    """The addresses where this process accepts connections, or is about to, also on inherited sockets."""
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
