"""The simulated site: workers that run the real ASGI middleware, and the requests that reach them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from open_idempotency._core.attempt import Attempt
from open_idempotency._core.commands import Renew
from open_idempotency._engine.engine import Performer, running
from open_idempotency.asgi import IdempotencyMiddleware
from open_idempotency.backend import Renewal
from open_idempotency.policy import IdempotencyPolicy
from tests.simulation.environment import VirtualHeartbeat, VirtualPerformer
from tests.simulation.loop import Future, Loop, Process, Task
from tests.simulation.network import LOCAL_KINDS, Memory, Network, RemoteBackend
from tests.simulation.oracle import Oracle

Message = MutableMapping[str, Any]


class Order:
    """A client's request: its key, its user, and a body."""

    def __init__(self, key: str, user: str, body: bytes) -> None:
        self.key = key
        self.user = user
        self.body = body

    @property
    def scope(self) -> Message:
        """The ASGI scope of a request for this order."""
        headers = [
            (b"idempotency-key", f'"{self.key}"'.encode()),
            (b"authorization", self.user.encode()),
            (b"content-type", b"text/plain"),
        ]
        path = "/orders"
        return {
            "type": "http", "http_version": "1.1", "method": "POST", "path": path, "raw_path": path.encode(),
            "query_string": b"", "root_path": "", "scheme": "http", "headers": headers,
            "client": None, "server": None, "order": self,
        }  # fmt: skip


class Exchange:
    """One request at one worker, between the server's ``receive`` and ``send``."""

    def __init__(self, site: Site, order: Order) -> None:
        self._site = site
        self.order = order
        #: how often the record had been lost when the request came
        self.losses = site.losses_of(order)
        #: (status, body), or None where the connection broke
        self.reply = Future()
        self._gone = Future()
        self._received = False
        self._start: Message = {}
        self._pieces: list[bytes] = []

    async def receive(self) -> Message:
        """The body at once, then the disconnect when it comes."""
        if not self._received:
            self._received = True
            return {"type": "http.request", "body": self.order.body, "more_body": False}
        await self._gone
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Deliver to the client, if it is still connected."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        self._pieces.append(message.get("body", b""))
        if not message.get("more_body", False) and not self.reply.done:
            body = b"".join(self._pieces)
            self._site.left(self.order, self._start, body, len(self._pieces) > 1, self.losses)
            self.reply.set((self._start["status"], body))

    def break_off(self) -> None:
        """End the connection, for both sides."""
        self.reply.set(None)
        self._gone.set()


class Worker:
    """One process and its requests."""

    def __init__(self, site: Site, name: str, skew: float) -> None:
        self.process = Process(name, skew)
        self.exchanges: dict[Task, Exchange] = {}
        self._site = site
        backend = site.make_backend(site.network, self.process)
        self._app = IdempotencyMiddleware(site.handle, backend=backend, policy=site.policy)
        engine: Any = self._app.engine
        engine.aio = site.make_performer(site, self.process, backend)
        engine.heartbeat = engine.aio.heartbeat = site.make_heartbeat(site, self.process, backend)
        # The sync performer would keep the real heartbeat, which lives as long as its backend.
        engine.sync = Performer(engine.backend)

    def serve(self, order: Order) -> Exchange:
        """Begin a request."""
        exchange = Exchange(self._site, order)
        if self.process.dead:
            exchange.break_off()
            return exchange
        number = self._site.count()
        scope = {**order.scope, "losses": exchange.losses}
        coroutine = self._app(scope, exchange.receive, exchange.send)
        task = self._site.loop.spawn(self.process, coroutine, f"request {number} on {self.process.name}")
        self._site.note(self.process, "request", number, order.key, order.user, order.body)
        self.exchanges[task] = exchange
        task.ended.when_done(lambda: self._over(task))
        return exchange

    def _over(self, task: Task) -> None:
        exchange = self.exchanges.pop(task)
        _, error = task.ended.value
        self._site.note(self.process, "over", task.name, error)
        if isinstance(error, LOCAL_KINDS) and not isinstance(error, HandlerFailed):
            self._site.loop.fail(f"B-10a: {task.name} ended with {error!r}")
        if exchange.losses == self._site.losses_of(exchange.order):
            self._site.oracle.ended(task)
        exchange.break_off()

    def kill(self) -> None:
        """SIGKILL."""
        self._site.loop.kill(self.process)
        for exchange in self.exchanges.values():
            exchange.break_off()


class HandlerFailed(RuntimeError):
    """The application's own error."""


class Site:
    """Everything that belongs to one history. ``handle``: the application."""

    #: whether cancellations are delayed, if the plan allows it
    holds = True
    make_backend: type[RemoteBackend] = RemoteBackend
    make_performer: type[VirtualPerformer] = VirtualPerformer
    make_heartbeat: type[VirtualHeartbeat] = VirtualHeartbeat

    def __init__(
        self,
        loop: Loop,
        handle: Callable[[Any, Any, Any], Awaitable[None]],
        policy: IdempotencyPolicy,
        before_sending: Callable[[Process], None] = lambda _: None,
        trace: Callable[[str], None] | None = None,
    ) -> None:
        self.loop = loop
        self.policy = policy
        self.handle = handle
        self.memory = Memory(loop)
        self.network = Network(loop, self.carry_out, before_sending)
        self.oracle = Oracle(loop, self.memory, lambda: self.network.down_until)
        #: when the running command reached the backend
        self.arrived = 0.0
        self._trace = trace
        self._count = 0
        #: the record id of each order, taken from its claims
        self.record_of: dict[tuple[str, str], bytes] = {}

    def count(self) -> int:
        """The next number."""
        self._count += 1
        return self._count

    def losses_of(self, order: Order) -> int:
        """How often the backend has lost the record of an order."""
        record_id = self.record_of.get((order.key, order.user))
        return 0 if record_id is None else self.oracle.story(record_id).losses

    def note(self, process: Process | None, *what: object) -> None:
        """Add a line to the trace, if one is kept."""
        if self._trace is not None:
            name = process.name if process is not None else "world"
            self._trace(f"{self.loop.now:9.3f}  {name:<8} {'  '.join(str(part) for part in what)}")

    # The process's side

    def may_start_thread(self) -> None:
        """Raise if no thread can be started."""
        self.network.fail_to_start()

    def clocks(self) -> dict[Any, Callable[[], float]]:
        """The clocks of modules that see another time than their process."""
        return {}

    def watch_threads(self, attempt: Attempt) -> None:
        """A handler is about to use threads."""

    # The backend's side

    def carry_out(self, process: Process, verb: str, command: Any, arrived: float) -> Any:
        """Execute a command that has arrived."""
        self.arrived = arrived
        if isinstance(command, Renew):
            return self._renew(process, command)
        record_id = _record_of(command)
        before = self.memory.look(record_id)
        try:
            outcome: Any = self.decide(process, verb, command)
        except Exception as error:
            outcome = error
        self.note(process, verb, _short(command), "->", outcome)
        if verb != "get":
            self.oracle.arrived(command, before, self.memory.look(record_id), outcome)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def decide(self, process: Process, verb: str, command: Any) -> Any:
        """The real backend's result; a missing guard overrides it."""
        return getattr(self.memory, verb)(command)

    def _renew(self, process: Process, command: Renew) -> Any:
        """Renew one lease at a time, since two leases of a heartbeat may be of one record."""
        results: list[Renewal] = []
        for lease in command.leases:
            before = self.memory.look(lease.record_id)
            results += self.decide(process, "renew", Renew([lease]))
            self.oracle.renewed(lease, before, self.memory.look(lease.record_id), results[-1])
        self.note(process, "renew", [lease.token for lease in command.leases], "->", results)
        return results

    # The client's side

    def left(self, order: Order, start: Message, body: bytes, streamed: bool, losses: int) -> None:
        """The last byte of a response was sent to the client. A stream that has begun cannot be marked any more.

        ``losses``: the number of losses of the record when the request came; a further one voids the promise.
        """
        status, headers = start["status"], dict(start["headers"])
        self.note(None, "response", order.key, order.user, status, body)
        is_problem = headers.get(b"content-type") == b"application/problem+json"
        if not is_problem and not body.startswith(b"%b|%b|" % (order.user.encode(), order.body)):
            self.loop.fail(f"I10: {order.user} got another user's response, {body!r}")
        record_id = self.record_of.get((order.key, order.user))
        if record_id is None or losses != self.losses_of(order):
            return
        if is_problem and status == 422:
            self.oracle.refused_as_reused(record_id, order.body)
        elif not is_problem and status in (201, 404):
            marked = headers.get(b"idempotency-status") == b"unrecorded"
            task = self.loop.current
            assert task is not None
            unmarkable = streamed and task.root.unrecorded
            lease = here().lease if marked or unmarkable else None
            self.oracle.responded(record_id, status, body, None if lease is None else (lease.token, task.process))


def _record_of(command: Any) -> bytes:
    of = getattr(command, "claim", command)
    record_id: bytes = of.record_id if hasattr(of, "record_id") else of.lease.record_id
    return record_id


def _short(command: Any) -> str:
    command = getattr(command, "claim", command)
    lease = getattr(command, "lease", None)
    if hasattr(lease, "token"):
        return f"token {lease.token} {getattr(command, 'stage', '')}{getattr(command, 'response', '') or ''}"
    return f"{command.record_id[:3].hex()} by {getattr(command, 'owner', b'')[:3].hex()}"


def here() -> Attempt:
    """The attempt of the running handler."""
    found = running.get()
    assert found is not None
    return found[0]
