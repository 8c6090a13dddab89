"""A cell of the matrix, carried out: the servers, the first request up to its point, the retry, and what is counted.

What differs from manner to manner is in the tests.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from tests.faults.apps.shop import STAGES, Shop, unfenced
from tests.faults.matrix import APPS, ASGI_SERVERS, BACKENDS, POINTS, SERVERS, Cell
from tests.wire.case import Case
from tests.wire.client import Connection, Response
from tests.wire.journal import PATIENCE
from tests.wire.servers import Server
from tests.wire.variants import BRISK_LEASE

LEASE = BRISK_LEASE
BEAT = LEASE / 3
#: a server of each interface, and what it serves beside its own adapter
_SUCCESSORS = {"asgi": ("uvicorn", ("asgi", "django_asgi")), "wsgi": ("gunicorn-gthread", ("flask",))}
_STEP = 0.005


def _variant(backend: str, *, brisk: bool) -> str:
    """The application's policy, and its backend."""
    policy = "brisk-postgres" if backend == "postgres" else "brisk"
    return f"{policy if brisk else 'default'}/{backend}"


class Fleet:
    """The servers of one test process, over one folder, and one server for each backend that is one (``urls``).

    Those that live through what is done to them are shared; each of the others is one cell's own.
    """

    def __init__(self, stack: ExitStack, folder: Path, urls: Mapping[str, str]) -> None:
        self.folder = folder
        self._stack = stack
        self._backends = {f"WIRE_BACKEND_{backend.upper()}": url for backend, url in urls.items()}
        self._firsts: dict[str, Server] = {}
        self._successors: dict[str, Server] = {}

    def first(self, name: str) -> Server:
        """The shared server of this name, for what it lives through."""
        if name not in self._firsts:
            adapters = ("django_asgi",) if name in ASGI_SERVERS else ()
            self._firsts[name] = self._stack.enter_context(self.start(name, adapters=adapters))
        return self._firsts[name]

    def successor(self, name: str) -> Server:
        """The shared server that takes over: it serves the same applications, and nothing is done to it."""
        name, adapters = _SUCCESSORS["asgi" if name in ASGI_SERVERS else "wsgi"]
        if name not in self._successors:
            self._successors[name] = self._stack.enter_context(self.start(name, adapters=adapters))
        return self._successors[name]

    def start(self, name: str, *options: str, adapters: Sequence[str] = (), **environment: str) -> Server:
        """A server of one's own, not yet entered. ``adapters``: what it is to serve beside its own one.

        All of it is imported by then, since that may take longer than a test waits.
        """
        served = SERVERS[name]
        words = (*served.options, *options)
        built = [f"{APPS}.{adapter}/default/{on}" for adapter in (served.adapter, *adapters) for on in BACKENDS]
        environment = {**self._backends, "WIRE_BUILT": " ".join(built), **environment}
        if "--preload" in words:
            variants = [_variant(on, brisk=brisk) for brisk in (True, False) for on in BACKENDS]
            environment["WIRE_WARM"] = " ".join(f"{APPS}.{served.adapter}/{variant}" for variant in variants)
        return Server(served.kind, self.folder, words, **environment)


class Retried(NamedTuple):
    """When retries were sent that were told to come back later, the answer to the first other one, and when it came."""

    refused: Sequence[float]
    answer: Response
    answered: float


class Trial:
    """One order that is stopped at its point on one server, and repeated on another one."""

    def __init__(
        self,
        cell: Cell,
        first: Server,
        successor: Server,
        *,
        brisk: bool = False,
        adapter: str = "",
        script: str = "",
    ) -> None:
        self.cell = cell
        self.variant = _variant(cell.backend, brisk=brisk)
        self.first = first
        self.case = Case(
            successor,
            f"{APPS}.{adapter or SERVERS[cell.server].adapter}",
            script or POINTS[cell.point].script,
            variant=self.variant,
        )
        self.worker = 0
        self.begun = 0.0

    def begin(self) -> Connection:
        """Send the order, with the key, and wait until it is at its point."""
        connection = Connection(self.first.connect())
        self.begun = time.monotonic()
        connection.send(self.case.request(b"{}", f"X-Stop: {self.cell.point}".encode()))
        line = f"at {self.cell.point}"
        try:
            self.case.journal.await_line(line)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.first.log[-3000:]}") from error
        (self.worker,) = [pid for pid, what in self.case.journal.entries() if what == line]
        return connection

    def duplicates_while_renewed(self) -> list[int]:
        """What duplicates get while the order is at its point for longer than a lease, where it is renewed there."""
        statuses: list[int] = []
        until = time.monotonic() + 1.2 * LEASE
        while POINTS[self.cell.point].beating and time.monotonic() < until:
            statuses.append(self.case.ask().status)
            time.sleep(BEAT / 4)
        return statuses

    def signal(self, number: signal.Signals) -> None:
        """To the worker that runs the order."""
        os.kill(self.worker, number)

    def await_frozen(self) -> None:
        """Return when the worker has stopped."""
        deadline = time.monotonic() + PATIENCE
        while Path(f"/proc/{self.worker}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < deadline, "the worker does not stop"
            time.sleep(_STEP)

    def retry(self, seconds: float = PATIENCE) -> Retried:
        """Repeat the order until it is let through."""
        refused: list[float] = []
        deadline = time.monotonic() + seconds
        while True:
            sent = time.monotonic()
            assert sent < deadline, f"still refused after {seconds} s: {self.case.journal.entries()}"
            answer = self.case.ask()
            if b":in-progress" not in answer.body:
                return Retried(refused, answer, time.monotonic())
            refused.append(sent)
            time.sleep(_STEP)

    def open_gate(self) -> None:
        """Let the order go on."""
        self.case.journal.gate().set()

    def answer(self, connection: Connection) -> Response | None:
        """The whole answer to the first request; None where the connection ended within it, or before it."""
        try:
            head = connection.read_head()
            return head._replace(body=connection.read_body(head))
        except (OSError, ValueError, AssertionError):
            return None

    def check_effects(self) -> None:
        """Each effect happened once, but for the unfenced ones of which the matrix says otherwise."""
        expected = {stage: 2 if stage in self.cell.outcome.twice else 1 for stage in STAGES}
        assert unfenced(self.case.journal) == expected, self.case.journal.entries()
        assert Shop(self.first.folder).fenced(f"case={self.case.key}") == dict.fromkeys(STAGES, 1)

    def check_waited(self, retried: Retried, since: float) -> None:
        """Nothing ran beside a lease that may have been alive; nothing was refused for longer (I1, I5).

        ``since``: when the worker could no longer renew it.
        """
        if self.cell.outcome.waits:
            assert retried.refused or retried.answered - self.begun >= LEASE, "it ran beside a living lease"
        else:
            assert not retried.refused
        late = [sent - since for sent in retried.refused if sent - since > LEASE + BEAT]
        assert not late, f"refused {late} s later"

    def check_recorded(self, answer: Response) -> None:
        """The retry ran, or did not, as the matrix says, and its answer is on record for good (I2, I4)."""
        outcome = self.cell.outcome
        if outcome.or_replays and answer.replayed:
            outcome = outcome._replace(attempt=1, replays=True)
        assert (answer.status, answer.replayed) == (201, outcome.replays)
        assert f"attempt {outcome.attempt} ".encode() in answer.body
        again = self.case.ask()
        assert (again.status, again.replayed, again.body) == (201, True, answer.body)


def closes_port(server: Server, seconds: float) -> bool:
    """Whether it takes no more connections in time: some servers' workers keep their socket until they end."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            server.connect().close()
        except OSError:
            return True
        time.sleep(_STEP)
    return False


def fleet(folder: Path, urls: Mapping[str, str]) -> Iterator[Fleet]:
    """The servers of one test process, ended at its end."""
    with ExitStack() as stack:
        yield Fleet(stack, folder, urls)
