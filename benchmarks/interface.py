"""What the suite asks of an application module (``benchmarks/apps``) and of a peer module (``benchmarks/peers``).

The endpoint is the same everywhere: ``POST /charges`` reads the whole body and responds with 201, ``application/json``
and ``body_of(len(body))``, made beforehand so that nobody's JSON is measured. The header ``x-hold`` asks the endpoint
to wait on ``HELD`` (a ``Gate``) before it responds, which is how a duplicate meets a request in flight. Where the gate
has a script (``benchmarks/comparison``), the script decides. ``PATCH`` and ``/refunds`` reach the same endpoint.

An application is made once for each row and called many times in one process; an ASGI application's lifespan is run
if it has one, and its server's event loop is asyncio's.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from types import ModuleType
from typing import Any, Literal, NamedTuple, Protocol, cast

#: how an application is called
Style = Literal["asgi", "wsgi"]
#: by name; SQLite has one for each ``synchronous`` setting
BackendName = Literal["memory", "sqlite-normal", "sqlite-full", "redis", "postgres"]
#: what a request is to the middleware
Kind = Literal["no-key", "new-key", "replay", "duplicate"]
App = Any

BACKENDS: tuple[BackendName, ...] = ("memory", "sqlite-normal", "sqlite-full", "redis", "postgres")
KINDS: tuple[Kind, ...] = ("no-key", "new-key", "replay", "duplicate")

PATH, OTHER_PATH = "/charges", "/refunds"
METHODS = ("POST", "PATCH")
STATUS = 201
#: a request that has this field is held until the gate opens
HOLD = "x-hold"


class Application(Protocol):
    """A module ``benchmarks/apps/<name>.py``, such as ``starlette``, ``flask``, ``django_wsgi`` and ``django_asgi``."""

    STYLE: Style

    def bare(self) -> App:
        """The application alone."""

    def layer(self) -> App:
        """The application behind the least middleware of the kind that ``ours`` is, which does nothing."""

    def ours(self, backend_url: str, **documented: Any) -> App:
        """The application protected by this package, as its documentation sets it up; ``documented``: policy fields."""


class Peer(Protocol):
    """A module ``benchmarks/peers/<name>.py``; importing it must not fail where the peer is not installed."""

    #: its name on the package index, with which its version is found
    NAME: str
    STYLE: Style
    #: the application module whose bare application it is compared with, such as ``fastapi``
    FRAMEWORK: str
    #: the backends that it has
    BACKENDS: tuple[BackendName, ...]
    #: the kinds of request that it treats (one without a 409 for duplicates lacks "duplicate")
    ROWS: tuple[Kind, ...]
    #: what it leaves out that the floor does (compare bodies, store before sending, ...), for the table's footnote
    LACKS: tuple[str, ...]

    def available(self) -> bool:
        """Whether it is installed."""

    def make(self, backend: BackendName, url: str, **documented: Any) -> App:
        """The application protected by it, as its own documentation sets it up; ``documented``: options of its own."""


class Reply(NamedTuple):
    """A response as a script has it. ``streamed``: each part of the body is sent on its own, without a length."""

    status: int
    headers: dict[str, str]
    parts: tuple[bytes, ...]
    streamed: bool = False


class Script(Protocol):
    """Decides what the endpoint does with a request; it may also wait or raise."""

    def run(self) -> Reply:
        """For a sync endpoint."""

    async def run_async(self) -> Reply:
        """For an async endpoint."""


class Gate:
    """Holds requests: an endpoint that finds the header ``HOLD`` waits here, sync or async, until it is opened."""

    def __init__(self) -> None:
        #: what decides instead of the gate, where there is one
        self.script: Script | None = None
        self._thread = threading.Event()
        self._loop: asyncio.Event | None = None
        #: how many have come here since it was closed
        self.arrived = 0

    def wait(self) -> Reply | None:
        """For a sync endpoint; ends after a minute whatever happens. None: respond as always."""
        if self.script is not None:
            return self.script.run()
        self.arrived += 1
        self._thread.wait(60)
        return None

    async def wait_async(self) -> Reply | None:
        """For an async endpoint; the same."""
        if self.script is not None:
            return await self.script.run_async()
        self.arrived += 1
        if self._loop is None:
            self._loop = asyncio.Event()
        await asyncio.wait_for(self._loop.wait(), 60)
        return None

    def open(self) -> None:
        """Let all go on; from the event loop's own thread, where there is one."""
        self._thread.set()
        if self._loop is not None:
            self._loop.set()

    def close(self) -> None:
        """Hold the next ones."""
        self._thread.clear()
        self._loop = None
        self.arrived = 0


HELD = Gate()


@functools.cache
def body_of(size: int) -> bytes:
    """A JSON text of that many bytes (of 16 at least)."""
    return b'{"charged": "%s"}' % (b"x" * (size - len(b'{"charged": ""}')))


def application(module: ModuleType) -> Application:
    """The module, as what it is to the suite."""
    return cast("Application", module)


def peer(module: ModuleType) -> Peer:
    """The module, as what it is to the suite."""
    return cast("Peer", module)
