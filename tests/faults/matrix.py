"""The crash matrix as tables: where a request is, what happens to its worker, on which server, with which backend.

A cell is one of each. Its expected outcome is looked up in ``OUTCOMES``; a combination that cannot be made is in
``IMPOSSIBLE`` with the reason. Nothing here starts a process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, NamedTuple

import pytest

from tests.faults.conftest import FULL

APPS = "tests.faults.apps.served"
BACKENDS = ("sqlite", "redis", "postgres")


class Point(NamedTuple):
    """A point at which a request waits. ``script``: the endpoint that reaches it."""

    words: str
    script: str = "order"
    #: whether its lease is being renewed there
    beating: bool = True


POINTS: Mapping[str, Point] = {
    "before-claim": Point("before the claim", beating=False),
    "after-claim": Point("after the claim, before the handler knows of it", beating=False),
    "between-stages": Point("between two stages"),
    "after-effect": Point("inside a stage, after its effect and before its record"),
    "before-completion": Point("after the last stage, before the completion"),
    "before-response": Point("after the completion, before the response is sent", beating=False),
    "mid-stream": Point("in the middle of a stream", "order in pieces"),
    "before-end": Point("after the completion of a stream, before its end leaves", "order in pieces", beating=False),
}

#: what happens to the worker, and the row of the table of faults that it belongs to
MANNERS: Mapping[str, tuple[str, int]] = {
    "kill": ("SIGKILL", 1),
    "freeze": ("SIGSTOP past the lease, then SIGCONT", 2),
    "stop": ("SIGTERM with time to finish", 13),
    "evict": ("SIGTERM without time to finish", 13),
    "cancel": ("handler cancelled", 12),
    "disconnect": ("client gone", 12),
}


class Served(NamedTuple):
    """A server of ``tests.wire.kinds`` and the adapter under it.

    ``evict`` and ``environment``: the server's options and the application's environment for a SIGTERM without grace.
    """

    kind: str
    adapter: str
    evict: tuple[str, ...]
    environment: Mapping[str, str] = {}
    options: tuple[str, ...] = ()


_HOOKS = ("--config", "python:open_idempotency.gunicorn")
_DRAINED = {"WIRE_DRAINED": "yes"}
SERVERS: Mapping[str, Served] = {
    "uvicorn": Served("uvicorn-httptools", "fastapi", ("--timeout-graceful-shutdown", "0"), _DRAINED),
    "hypercorn": Served("hypercorn", "asgi", ("--graceful-timeout", "0"), _DRAINED),
    "granian": Served("granian", "asgi", ("--workers-kill-timeout", "2"), {"WIRE_SIGTERM": "1"}),
    "gunicorn-sync": Served("gunicorn-sync", "flask", _HOOKS),
    "gunicorn-gthread": Served("gunicorn-gthread", "wsgi", _HOOKS),
    "gunicorn-gevent": Served("gunicorn-gevent", "wsgi", _HOOKS),
    "gunicorn-preload": Served("gunicorn-sync", "wsgi", _HOOKS, options=("--preload",)),
}
ASGI_SERVERS = ("uvicorn", "hypercorn", "granian")
#: gunicorn's time limit; the application starts before the fork, so that it does not count
TIME_LIMIT = ("--timeout", "1", "--preload")


class Outcome(NamedTuple):
    """The expected outcome. ``attempt``: the attempt whose response is finally on record.

    ``waits``: the retry is refused until the lease has ended. ``replays``: the retry runs nothing. ``twice``: the
    stages whose unfenced effect happens twice, which no lease can prevent; the fenced ones happen once everywhere.
    ``or_replays``: the handler may finish before it is ended; then the first attempt's response stands.
    """

    attempt: int
    waits: bool = False
    replays: bool = False
    twice: tuple[str, ...] = ()
    or_replays: bool = False


_NOTHING_HAPPENED = Outcome(attempt=1)
_COMPLETED = Outcome(attempt=1, replays=True)
_RESUMED = Outcome(attempt=2)
_RESUMED_IN_THE_GAP = Outcome(attempt=2, twice=("charge",))

_DEAD: Mapping[str, Outcome] = {
    "before-claim": _NOTHING_HAPPENED,
    "after-claim": _RESUMED._replace(waits=True),
    "between-stages": _RESUMED._replace(waits=True),
    "after-effect": _RESUMED_IN_THE_GAP._replace(waits=True),
    "before-completion": _RESUMED._replace(waits=True),
    "before-response": _COMPLETED,
    "mid-stream": _RESUMED._replace(waits=True),
    "before-end": _COMPLETED,
}
# A worker that is asked to end releases its claim, fails its attempt, and finishes a completion in progress.
_TERMINATED: Mapping[str, Outcome] = {
    "before-claim": _NOTHING_HAPPENED,
    "after-claim": _NOTHING_HAPPENED,
    "between-stages": _RESUMED,
    "after-effect": _RESUMED_IN_THE_GAP,
    "before-completion": _COMPLETED,
    "before-response": _COMPLETED,
    "mid-stream": _RESUMED,
    "before-end": _COMPLETED,
}
_UNDISTURBED: Mapping[str, Outcome] = dict.fromkeys(POINTS, _COMPLETED)

OUTCOMES: Mapping[str, Mapping[str, Outcome]] = {
    "kill": _DEAD,
    "freeze": _DEAD,
    "stop": _UNDISTURBED,
    "evict": _TERMINATED,
    "cancel": _TERMINATED,
    "disconnect": _UNDISTURBED,
}

#: (manner, point, server): exceptions of a server or its framework
EXCEPTIONS: Mapping[tuple[str, str, str], Outcome] = {
    # Starlette cancels the iterator of a stream whose client left, unless that has come to its end before.
    ("disconnect", "mid-stream", "uvicorn"): _RESUMED._replace(or_replays=True),
    # These servers kill without raising in the handler, so a hanging call ends with its lease.
    **{
        ("evict", point, server): _RESUMED._replace(waits=True)
        for point in ("after-claim", "before-completion")
        for server in SERVERS
        if server not in ("uvicorn", "hypercorn")
    },
}

_INVARIANTS: Mapping[str, tuple[str, ...]] = {
    "kill": ("I2", "I5", "I6", "I9"),
    "freeze": ("I1", "I2", "I3", "I6", "I9"),
    "stop": ("I2", "I4", "I6", "I9"),
    "evict": ("I2", "I5", "I6", "I9"),
    "cancel": ("I2", "I5", "I6", "I9"),
    "disconnect": ("I2", "I4", "I6", "I9"),
}


class Reason(NamedTuple):
    """Why the cells of a manner on these servers cannot be made."""

    manner: str
    servers: tuple[str, ...]
    why: str


IMPOSSIBLE: tuple[Reason, ...] = (
    Reason("cancel", ("gunicorn-gthread",), "no time limit applies to a thread, and nothing can cancel one"),
    Reason("cancel", ("gunicorn-gevent",), "no time limit applies to a greenlet; what ends one is the manner evict"),
)


class Cell(NamedTuple):
    """One combination."""

    point: str
    manner: str
    server: str
    backend: str

    @property
    def outcome(self) -> Outcome:
        """The expected outcome of this cell."""
        return EXCEPTIONS.get((self.manner, self.point, self.server), OUTCOMES[self.manner][self.point])

    @property
    def mark(self) -> pytest.MarkDecorator:
        """The mark of this cell, for the report."""
        words, row = MANNERS[self.manner]
        kind = "documented" if self.outcome.twice else "held"
        name = f"{words}: {POINTS[self.point].words}"
        return pytest.mark.fault(name, row=row, invariants=_INVARIANTS[self.manner], kind=kind, backend=self.backend)

    @property
    def param(self) -> Any:
        """The cell as a test's parameter."""
        return pytest.param(self, id="-".join(self), marks=self.mark)

    @property
    def external(self) -> Any:
        """The cell as a parameter of the test with an external stage."""
        name = "SIGKILL: inside an external stage, after its effect and before its record"
        mark = pytest.mark.fault(name, row=1, invariants=("I5", "I6", "I9"), backend=self.backend)
        return pytest.param(self, id="-".join(self), marks=mark)


def combinations() -> Iterator[Cell]:
    """All combinations, impossible ones too."""
    return (Cell(*names) for names in product(POINTS, MANNERS, SERVERS, BACKENDS))


def reasons(cell: Cell) -> list[str]:
    """Why the cell cannot be made; empty if it can."""
    return [reason.why for reason in IMPOSSIBLE if reason.manner == cell.manner and cell.server in reason.servers]


CELLS: tuple[Cell, ...] = tuple(cell for cell in combinations() if not reasons(cell))

#: the gap with an intent on record (S-04), one for each backend, and both interfaces
EXTERNAL: tuple[Cell, ...] = (
    Cell("after-effect", "kill", "uvicorn", "sqlite"),
    Cell("after-effect", "kill", "gunicorn-gthread", "redis"),
    Cell("after-effect", "kill", "hypercorn", "postgres"),
)

#: the short form: each point, manner, server and backend, in the most different pairs
SHORT: tuple[Cell, ...] = (
    Cell("before-claim", "kill", "gunicorn-sync", "redis"),
    Cell("after-claim", "kill", "uvicorn", "postgres"),
    Cell("between-stages", "kill", "gunicorn-preload", "postgres"),
    Cell("before-response", "kill", "granian", "sqlite"),
    Cell("after-effect", "freeze", "hypercorn", "redis"),
    Cell("before-completion", "freeze", "gunicorn-gevent", "sqlite"),
    Cell("mid-stream", "freeze", "uvicorn", "postgres"),
    Cell("before-completion", "stop", "gunicorn-gthread", "redis"),
    Cell("mid-stream", "stop", "hypercorn", "sqlite"),
    Cell("between-stages", "evict", "uvicorn", "redis"),
    Cell("after-claim", "evict", "hypercorn", "postgres"),
    Cell("after-effect", "cancel", "gunicorn-sync", "sqlite"),
    Cell("before-completion", "cancel", "hypercorn", "sqlite"),
    Cell("before-end", "disconnect", "gunicorn-gthread", "postgres"),
    Cell("mid-stream", "disconnect", "granian", "redis"),
)


def cells(manner: str) -> list[Any]:
    """The cells of a manner, as parameters: all of them in the full form."""
    return [cell.param for cell in (CELLS if FULL else SHORT) if cell.manner == manner]
