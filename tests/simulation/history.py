"""One history of one plan: clients send, handlers work, and faults happen, until everything has come to rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from random import Random
from typing import Any

from open_idempotency import idem
from open_idempotency._engine.thread_calls import calls_here
from open_idempotency.backend import Lease
from open_idempotency.policy import IdempotencyPolicy
from tests.simulation.environment import LEASE
from tests.simulation.holding import in_thread
from tests.simulation.loop import Failure, Loop, Process
from tests.simulation.network import Weather
from tests.simulation.plans import Plan
from tests.simulation.site import HandlerFailed, Order, Site, Worker, here
from tests.simulation.surroundings import surroundings

#: seconds with clients and faults, and after which everything has to be at rest
TROUBLE, REST = 30.0, 150.0


class History:
    """The site of one plan, and everything that happens on it."""

    def __init__(self, made: Plan, make_site: type[Site] = Site, trace: Callable[[str], None] | None = None) -> None:
        self.plan = made
        self.loop = Loop(Random(made.seed))
        self._random = self.loop.random
        policy = IdempotencyPolicy(lease=LEASE, ttl=50_000.0, wait=made.wait, **made.policy)
        self.site = make_site(self.loop, self._handle, policy, self._before_sending, trace)
        self.site.network.weather = self._weather()
        self.workers = [self._new_worker(number) for number in range(made.workers)]
        self._old: list[Process] = []
        self._outside = Process("clients")
        self._troubled = True
        self._open = 0

    def _weather(self) -> Weather:
        names = ("lost_request", "lost_reply", "doubled", "late", "slow", "held", "local")
        rates = {name: self.plan.rates.get(name, 0.0) / 3 for name in names}
        return Weather(**rates, driver_retries=self._random.random() < 0.7)

    def _new_worker(self, number: int) -> Worker:
        return Worker(self.site, f"worker-{number}", self._random.uniform(-3600.0, 3600.0))

    def _happens(self, kind: str, share: float = 1.0) -> bool:
        return self._troubled and self._random.random() < self.plan.rates.get(kind, 0.0) * share

    # What the handlers do

    async def _handle(self, scope: Any, receive: Any, send: Any) -> None:
        order: Order = scope["order"]
        lease = here().lease
        record_id = lease.record_id if lease is not None else b""
        self.site.record_of[order.key, order.user] = record_id
        self.site.note(None, "handler", order.key, order.user, lease and (lease.attempt, lease.token))
        if scope["losses"] == self.site.losses_of(order):
            assert self.loop.process is not None
            self.site.oracle.started(record_id, lease, order.body, self.loop.process)
        if lease is not None and lease.attempt > self.plan.policy.get("max_attempts", lease.attempt):
            self.loop.fail(f"O-10: attempt {lease.attempt} runs")
        over = self._runs(record_id, lease, scope["losses"])
        try:
            for number in range(self.plan.stages):
                async with idem.stage(f"stage-{number}", external=self.plan.external) as stage:
                    if not stage.done:
                        key = idem.key_for(f"stage-{number}")
                        await self._work(partial(self._effect, f"stage-{number}", key, order))
                        stage.save(number)
            await self._work()
        finally:
            over()
        await self._respond(order, send)

    def _runs(self, record_id: bytes, lease: Lease | None, losses: int) -> Callable[[], None]:
        """Note that a part of an attempt runs, until the returned function is called."""
        process = self.loop.process
        if lease is None or process is None or losses != self.site.oracle.story(record_id).losses:
            return lambda: None
        return self.site.oracle.running(record_id, lease, process)

    def _effect(self, stage: str, key: str, order: Order, lease: Lease) -> None:
        external = self.plan.external
        self.site.oracle.effect(lease.record_id, stage, lease, order.body, key, external)

    async def _work(self, effect: Callable[[Lease], None] = lambda _: None) -> None:
        """Take a while, on the loop or in a thread; the effect is at the end."""
        seconds, lease = self._random.uniform(0.0, 0.3), here().lease
        assert lease is not None
        if self._happens("long"):
            seconds += self._random.uniform(0.0, 3 * LEASE)
        if self._random.random() < self.plan.threads:
            await self._work_in_thread(seconds, partial(effect, lease), lease)
        else:
            await self.loop.sleep(seconds)
            if self._happens("errors", 0.5):
                raise HandlerFailed("the handler failed")
            effect(lease)

    async def _work_in_thread(self, seconds: float, effect: Callable[[], None], lease: Lease) -> None:
        process, losses = self.loop.process, self.site.oracle.story(lease.record_id).losses
        assert process is not None
        over: list[Callable[[], None]] = []

        def happen(begins: bool) -> None:
            if begins:
                over.append(self._runs(lease.record_id, lease, losses))
                return
            self.site.note(process, "thread ends", lease.token)
            if losses == self.site.oracle.story(lease.record_id).losses:
                effect()
            over.pop()()

        def pool(call: Any) -> Any:
            return in_thread(self.loop, process, call, seconds, happen, self._random.uniform(0.0, 0.01))

        self.site.watch_threads(here())
        calls = calls_here()
        if calls is None:  # the attempt has ended meanwhile: the application's own clean-up
            await self.loop.sleep(seconds)
        else:
            await calls.run(pool, lambda: None)

    async def _respond(self, order: Order, send: Any) -> None:
        status = 201
        if self._happens("errors"):
            status = self._random.choice([500, 401, 404])
        body = b"%b|%b|%d" % (order.user.encode(), order.body, self.site.count())
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
        if self._random.random() < 0.3:
            await send({"type": "http.response.body", "body": body[:5], "more_body": True})
            await self.loop.sleep(0.01)
            body = body[5:]
        await send({"type": "http.response.body", "body": body, "more_body": False})

    # What goes wrong

    def _before_sending(self, process: Process) -> None:
        """Kill or freeze a process before, during or after one of its commands."""
        moment = self._random.choice([0.0, 0.005, 0.02, 0.05])
        if self._happens("crash", 0.2):
            self.loop.after(moment, lambda: self.kill(process))
        elif self._happens("freeze", 0.2):
            self.loop.after(moment, lambda: self.freeze(process))
        elif self._happens("block", 0.2):
            self.loop.after(moment, lambda: self.block(process))

    def kill(self, process: Process) -> None:
        """SIGKILL a process; another one soon replaces it."""
        for number, worker in enumerate(self.workers):
            if worker.process is process and not process.dead:
                self.site.note(process, "SIGKILL")
                worker.kill()
                self._old.append(process)
                self.loop.after(self._random.uniform(0.1, 2.0), partial(self._restart, number))
                return

    def _restart(self, number: int) -> None:
        self.workers[number] = self._new_worker(number)

    def freeze(self, process: Process, seconds: float | None = None) -> None:
        """SIGSTOP a process, and SIGCONT it after some seconds."""
        if seconds is None:
            seconds = self._random.uniform(0.1, 2.5 * LEASE)
        self.site.note(process, "SIGSTOP", f"for {seconds:.3f} s")
        process.paused_until = max(process.paused_until, self.loop.now + seconds)

    def _misfortunes(self) -> Iterator[tuple[str, Callable[[], None]]]:
        yield "crash", lambda: self.kill(self._some_worker().process)
        yield "freeze", lambda: self.freeze(self._some_worker().process)
        yield "block", lambda: self.block(self._some_worker().process)
        yield "outage", self._outage
        yield "full", self._fill
        yield "vanish", self._vanish
        yield "jump", self._jump
        yield "cancel", self._cancel

    def _some_worker(self) -> Worker:
        return self._random.choice(self.workers)

    def block(self, process: Process, seconds: float | None = None) -> None:
        """Block the event loop of a process for a while; its threads continue."""
        if seconds is None:
            least, most = self._random.choice([(0.01, 2.0), (0.85, 1.0)])
            seconds = self._random.uniform(least, most) * LEASE
        self.site.note(process, "event loop blocked", f"for {seconds:.3f} s")
        process.blocked_until = max(process.blocked_until, self.loop.now + seconds)

    def _outage(self) -> None:
        seconds = self._random.uniform(0.1, 1.5 * LEASE)
        self.site.note(None, "backend down", f"for {seconds:.3f} s")
        self.site.network.down_until = self.loop.now + seconds

    def _fill(self) -> None:
        seconds = self._random.uniform(0.1, 2.5 * LEASE)
        self.site.note(None, "backend full", f"for {seconds:.3f} s")
        self.site.network.full_until = self.loop.now + seconds

    def _vanish(self) -> None:
        found = self.site.memory.record_ids()
        if found:
            record_id = self._random.choice(found)
            self.site.note(None, "record lost", record_id[:3].hex())
            self.site.memory.delete(record_id)
            self.site.oracle.vanished(record_id)

    def _jump(self) -> None:
        seconds = self._random.uniform(0.0, 2.5 * LEASE)
        self.site.note(None, "backend's clock jumps", f"{seconds:.3f} s")
        self.site.memory.jump(seconds)

    def _cancel(self) -> None:
        tasks = list(self._some_worker().exchanges)
        if tasks:
            task, times = self._random.choice(tasks), self._random.choice([1, 1, 3, 10])
            self.site.note(task.process, "cancelled", task.name, f"{times} times")
            task.cancel(times)

    def _arrange(self) -> None:
        for kind, strike in self._misfortunes():
            rate = self.plan.rates.get(kind, 0.0)
            for _ in range(int(rate * 20) + 1 if rate else 0):
                # Most events happen in the first seconds.
                when = self._random.uniform(0.0, self._random.choice([1.0, 5.0, TROUBLE]))
                self.loop.at(when, strike)

    # What the clients do

    async def _client(self, order: Order, tries: int) -> int | None:
        self._open += 1
        await self.loop.sleep(self._random.choice([0.0, self._random.uniform(0.0, 2.0)]))
        status = None
        for _ in range(tries):
            status = await self._ask(order)
            if status in (201, 404, 422):
                break
            await self.loop.sleep(self._random.choice([0.05, 1.0, LEASE / 2]) * self._random.uniform(0.5, 1.5))
        self._open -= 1
        return status

    async def _ask(self, order: Order) -> int | None:
        worker = self._some_worker()
        exchange = worker.serve(order)
        patience = self._random.uniform(0.01, 1.0) if self._happens("leave") else 60.0
        self.loop.after(patience, exchange.break_off)
        reply = await exchange.reply
        return None if reply is None else int(reply[0])

    # The whole of it

    def run(self) -> None:
        """Run the history. Raises ``Failure``."""
        with self.surroundings():
            try:
                self._arrange()
                for order in self.plan.orders:
                    self.loop.spawn(self._outside, self._client(order, 12), "client")
                self.loop.run(TROUBLE)
                self._troubled = False
                self.site.network.weather = Weather()
                self.loop.run(TROUBLE + REST)
                self.site.oracle.rested()
                self._check_rest()
                self._probe()
            finally:
                self.end()

    def surroundings(self) -> AbstractContextManager[None]:
        """Within this context the library runs on this history's time."""
        return surroundings(
            self.loop, self.site.may_start_thread, self.site.clocks(), self.plan.holds and self.site.holds
        )

    def end(self) -> None:
        """Dispose of everything."""
        self.loop.end([*self._old, *(worker.process for worker in self.workers), self._outside])

    def _check_rest(self) -> None:
        if self._open:
            raise Failure(f"I6: {self._open} clients still wait for a response")
        for worker in self.workers:
            if worker.exchanges or worker.process.tasks:
                raise Failure(f"I11: {worker.process.name} still runs {[task.name for task in worker.exchanges]}")

    def _probe(self) -> None:
        """I5, I6: at the end, after all leases, each request is admitted at once and gets a final response."""
        seen: dict[tuple[str, str], Order] = {}
        for order in self.plan.orders:
            seen.setdefault((order.key, order.user), order)
        ends = [
            (order, self.loop.spawn(self._outside, self._client(order, 1), "probe").ended) for order in seen.values()
        ]
        self.loop.run(self.loop.now + 60.0)
        for order, ended in ends:
            if not ended.done or ended.value[0] not in self._final(order):
                raise Failure(f"I5: {order.user}'s {order.key} ends with {ended.value}")
            self._count_effects(order)

    def _final(self, order: Order) -> tuple[int, ...]:
        contested = any(o.body != order.body and (o.key, o.user) == (order.key, order.user) for o in self.plan.orders)
        # By this policy an external stage in doubt is 409 until an operator resolves it.
        undecided = (self.plan.external and self.plan.stages > 0) or self.plan.policy
        return (201, 404, *([422] if contested else []), *([409, 500] if undecided else []))

    def _count_effects(self, order: Order) -> None:
        record_id = self.site.record_of.get((order.key, order.user))
        if record_id is None or not self.plan.is_calm or self.plan.external or self.plan.policy:
            return
        effects = [stage for stage, _ in self.site.oracle.story(record_id).effects]
        if sorted(effects) != [f"stage-{number}" for number in range(self.plan.stages)]:
            raise Failure(f"I9: without any fault the effects of {order.key} are {effects}")
