"""One cell of the matrix: the servers, the first request up to its point, the retry, and the checks.

The tests contain what differs from manner to manner.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from open_idempotency import open_backend
from open_idempotency.backend import Backend, Get
from open_idempotency.exceptions import BackendUnavailable
from tests.faults import matrix_leases
from tests.faults.apps.shop import STAGES, Shop, unfenced
from tests.faults.apps.stopping import NAMES_RECORD
from tests.faults.matrix import APPS, ASGI_SERVERS, BACKENDS, POINTS, SERVERS, Cell
from tests.faults.matrix_leases import Look, Retried
from tests.wire.case import Case, store_failed
from tests.wire.client import Connection, Response
from tests.wire.journal import PATIENCE
from tests.wire.servers import Server
from tests.wire.variants import BRISK_LEASE

LEASE = BRISK_LEASE
BEAT = LEASE / 3
#: a server of each interface, and the further adapters that it serves
_SUCCESSORS = {"asgi": ("uvicorn", ("asgi", "django_asgi")), "wsgi": ("gunicorn-gthread", ("flask",))}
_STEP = 0.005


def _variant(backend: str, *, brisk: bool) -> str:
    """The application's policy and backend."""
    policy = "brisk-postgres" if backend == "postgres" else "brisk"
    return f"{policy if brisk else 'default'}/{backend}"


class Fleet:
    """The servers of one test process, over one folder, and the database servers of the backends (``urls``).

    Servers that survive their test are shared; each of the others is started for one cell.
    """

    def __init__(self, stack: ExitStack, folder: Path, urls: Mapping[str, str]) -> None:
        self.folder = folder
        self._stack = stack
        self._backends = {f"WIRE_BACKEND_{backend.upper()}": url for backend, url in urls.items()}
        self._firsts: dict[str, Server] = {}
        self._successors: dict[str, Server] = {}
        self._records: dict[str, Backend] = {}

    def records(self, backend: str) -> Backend:
        """The records of a backend, opened in this process."""
        if backend not in self._records:
            url = self._backends.get(f"WIRE_BACKEND_{backend.upper()}", f"sqlite:///{self.folder}/records.db")
            self._records[backend] = opened = open_backend(url)
            self._stack.callback(opened.close)
        return self._records[backend]

    def first(self, name: str) -> Server:
        """The shared server of this name, for manners that it survives."""
        if name not in self._firsts:
            adapters = ("django_asgi",) if name in ASGI_SERVERS else ()
            self._firsts[name] = self._stack.enter_context(self.start(name, adapters=adapters))
        return self._firsts[name]

    def successor(self, name: str) -> Server:
        """The shared server that takes over: it serves the same applications, and is never disturbed."""
        name, adapters = _SUCCESSORS["asgi" if name in ASGI_SERVERS else "wsgi"]
        if name not in self._successors:
            self._successors[name] = self._stack.enter_context(self.start(name, adapters=adapters))
        return self._successors[name]

    def start(self, name: str, *options: str, adapters: Sequence[str] = (), **environment: str) -> Server:
        """A new server, not yet entered. ``adapters``: what it serves besides its own one.

        All of them are imported by then, since that may take longer than a test waits.
        """
        served = SERVERS[name]
        words = (*served.options, *options)
        built = [f"{APPS}.{adapter}/default/{on}" for adapter in (served.adapter, *adapters) for on in BACKENDS]
        environment = {**self._backends, "WIRE_BUILT": " ".join(built), **environment}
        if "--preload" in words:
            variants = [_variant(on, brisk=brisk) for brisk in (True, False) for on in BACKENDS]
            environment["WIRE_WARM"] = " ".join(f"{APPS}.{served.adapter}/{variant}" for variant in variants)
        return Server(served.kind, self.folder, words, **environment)


class Trial:
    """One order that is stopped at its point on one server, and repeated on another one."""

    def __init__(
        self,
        cell: Cell,
        fleet: Fleet,
        first: Server,
        *,
        brisk: bool = False,
        adapter: str = "",
        script: str = "",
    ) -> None:
        self.cell = cell
        self.variant = _variant(cell.backend, brisk=brisk)
        self.first = first
        successor = fleet.successor(cell.server)
        self.case = Case(
            successor,
            f"{APPS}.{adapter or SERVERS[cell.server].adapter}",
            script or POINTS[cell.point].script,
            variant=self.variant,
        )
        self.worker = 0
        #: the record when the order was at its point, and nothing had been done to its worker
        self.begun = Look(None, 0.0)
        self._records = fleet.records(cell.backend)
        self._logged = len(successor.log)

    def begin(self) -> Connection:
        """Send the order, with the key, and wait until it is at its point."""
        connection = Connection(self.first.connect())
        connection.send(self.case.request(b"{}", f"X-Stop: {self.cell.point}".encode()))
        line = f"at {self.cell.point}"
        try:
            self.case.journal.await_line(line)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.first.log[-3000:]}") from error
        (self.worker,) = [pid for pid, what in self.case.journal.entries() if what == line]
        self.begun = self.look()
        return connection

    def look(self) -> Look:
        """The order's record, whose id the first server has written."""
        (name,) = {line for line in self.case.journal.lines() if line.startswith(NAMES_RECORD)}
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with suppress(BackendUnavailable):
                record = self._records.get(Get(bytes.fromhex(name.removeprefix(NAMES_RECORD))))
                return Look(record, time.time())
        raise AssertionError(f"the store did not respond within {PATIENCE} s")

    def ask(self) -> tuple[Response, bool]:
        """Send the order to the successor; the response, and whether the backend failed."""
        response = self.case.exchange(self.case.request())
        return response, store_failed(response, self.case.server.log[self._logged :])

    def duplicates_while_renewed(self) -> list[int]:
        """The statuses of duplicates while the order waits for longer than a lease, if that is renewed."""
        statuses: list[int] = []
        until = time.monotonic() + 1.2 * LEASE
        while POINTS[self.cell.point].beating and time.monotonic() < until:
            response, failed = self.ask()
            statuses += [response.status] * (not failed)
            time.sleep(BEAT / 4)
        return statuses

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the worker that runs the order."""
        os.kill(self.worker, number)

    def await_frozen(self) -> None:
        """Return when the worker has stopped."""
        deadline = time.monotonic() + PATIENCE
        while Path(f"/proc/{self.worker}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < deadline, "the worker does not stop"
            time.sleep(_STEP)

    def retry(self) -> Retried:
        """Repeat the order until it is let through."""
        return matrix_leases.retried(self.ask, self.look, PATIENCE)

    def open_gate(self) -> None:
        """Let the order continue."""
        self.case.journal.gate().set()

    def response(self, connection: Connection) -> Response | None:
        """The whole response to the first request; None if the connection ended before its end."""
        try:
            head = connection.read_head()
            return head._replace(body=connection.read_body(head))
        except (OSError, ValueError, AssertionError):
            return None

    def check_effects(self) -> None:
        """Check that each effect happened once, except unfenced ones that the matrix lists as ``twice``."""
        expected = {stage: 2 if stage in self.cell.outcome.twice else 1 for stage in STAGES}
        assert unfenced(self.case.journal) == expected, self.case.journal.entries()
        assert Shop(self.first.folder).fenced(f"case={self.case.key}") == dict.fromkeys(STAGES, 1)

    def check_waited(self, retried: Retried) -> None:
        """Check that no attempt ran beside a living lease, and none was refused for longer (I1, I5)."""
        matrix_leases.check_waited(self.cell.outcome, LEASE, retried)

    def check_recorded(self, retried: Retried) -> None:
        """The retry ran, or did not, as the matrix says; its response is final; it waited for no lease that
        was given back (I2, I4, L-04).
        """
        outcome, response = self.cell.outcome, retried.response
        if outcome.or_replays and response.replayed:
            outcome = outcome._replace(attempt=1, replays=True)
        matrix_leases.check_attempt(outcome, retried)
        matrix_leases.check_given_back(outcome, retried, self.begun)
        again = self.retry()
        assert not again.refused
        assert (again.response.status, again.response.replayed, again.response.body) == (201, True, response.body)


def closes_port(server: Server, seconds: float) -> bool:
    """Whether it stops accepting connections in time: some servers' workers keep their socket until they end."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            server.connect().close()
        except OSError:
            return True
        time.sleep(_STEP)
    return False


def fleet(folder: Path, urls: Mapping[str, str]) -> Iterator[Fleet]:
    """The servers of one test process, stopped at its end."""
    with ExitStack() as stack:
        yield Fleet(stack, folder, urls)
