"""The kit: a backend in memory for every application of this process, and the accidents that a test can cause."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

from open_idempotency._engine.engine import Engine, engines, made
from open_idempotency._runtime import clocks
from open_idempotency._stages import blocks
from open_idempotency._stages.stages import StageUse
from open_idempotency.backend import Record
from open_idempotency.testing import _effects
from open_idempotency.testing._advice import SWALLOWED, UNPROTECTED
from open_idempotency.testing._clients import Reply, sender, shown
from open_idempotency.testing._scenarios import AsyncDriver, NotIdempotent, Plan, Scenarios, SyncDriver
from open_idempotency.testing._script import VERBS, WHEN, Clock, Crash, KitError, Script, When, is_ours
from open_idempotency.testing._worker import (
    AsyncKitPerformer,
    KitBackend,
    KitHeartbeat,
    KitPerformer,
    WatchedStage,
    pass_time,
)

#: seconds by which a moved clock is past the end of a lease
_PAST = 1.0
_DEFAULT_HEADER = "Idempotency-Key"
D = TypeVar("D", SyncDriver, AsyncDriver)


class InFlight(NamedTuple):
    """The responses to two requests with one key. ``duplicate`` was sent while ``first`` was in flight.

    Both are the client's own responses. Since 0.1.
    """

    first: Any
    duplicate: Any


class _Before(NamedTuple):
    """The parts of an engine before a kit replaced them."""

    engine: weakref.ref[Engine]
    parts: tuple[Any, Any, Any, Any]


class Kit:
    """Every application of this process has a fresh backend in memory while the kit is in use.

    Use ``with Kit() as idempotency:``, or the pytest fixture ``idempotency``. It replaces the backend of every
    application of any framework, created before or meanwhile, and changes nothing else in their configuration. Only one
    kit is in use at a time. Since 0.1.
    """

    def __init__(self) -> None:
        self._script = Script()
        #: the records, on ``clock``; for tests to read
        self.backend = KitBackend(self._script)
        self._heartbeat = KitHeartbeat(self.backend)
        self._sync = KitPerformer(self.backend, self._heartbeat)
        self._aio = AsyncKitPerformer(self.backend, self._heartbeat)
        self._taken: list[_Before] = []
        self._active = self._ended = False

    def __enter__(self) -> Kit:
        global _current
        if self._ended:
            raise KitError(
                "this kit was used before, and has the records of that block; make another one: with Kit() as ..."
            )
        if _current is not None:
            raise KitError("another kit is in use; use that one: the fixture idempotency, or the outer with block")
        _current = self
        self._active = True
        for engine in list(engines):
            self._take(engine)
        made.append(self._take)
        blocks.__dict__["StageUse"], WatchedStage.script = WatchedStage, self._script
        clocks.elapsed = self._script.clock.elapsed
        return self

    def __exit__(self, *unused: object) -> None:
        global _current
        _current = None
        self._active, self._ended = False, True
        clocks.elapsed = self._script.clock.real
        blocks.__dict__["StageUse"], WatchedStage.script = StageUse, None
        made.remove(self._take)
        for engine_ref, parts in self._taken:
            engine = engine_ref()
            if engine is not None:
                engine.backend, engine.sync, engine.aio, engine.heartbeat = parts
        self._taken.clear()

    def _take(self, engine: Engine) -> None:
        parts = (engine.backend, engine.sync, engine.aio, engine.heartbeat)
        self._taken.append(_Before(weakref.ref(engine), parts))
        engine.backend, engine.heartbeat = self.backend, self._heartbeat
        engine.sync, engine.aio = self._sync, self._aio

    # The clock and the records

    @property
    def clock(self) -> Clock:
        """The clock of the backend and of the workers. It stands still until ``advance`` moves it."""
        return self._script.clock

    def advance(self, seconds: float | timedelta, *, frozen: bool = False) -> None:
        """Let time pass. Living workers renew their leases meanwhile; killed ones do not.

        ``frozen``: living workers do not renew either, as on a paused machine, so that their leases end.
        """
        passed = seconds.total_seconds() if isinstance(seconds, timedelta) else seconds
        pass_time(self.backend, passed, frozen=frozen)

    def end_leases(self) -> None:
        """Move the clock past the end of the leases of all killed attempts, so that a retry resumes."""
        now, lost = self.clock(), self._script.lost
        ends = [record.lease_end for record in self.records if any(_is_of(lease, record) for lease in lost)]
        if ends and max(ends) >= now:
            self.advance(max(ends) - now + _PAST)
        lost.clear()

    @property
    def records(self) -> list[Record]:
        """The records, in no order, with their states and stages."""
        return list(self.backend.scan())

    @property
    def history(self) -> list[str]:
        """The events since the last scenario began, one line each: claims, stages, ends."""
        return list(self._script.seen.lines)

    # Accidents

    @contextmanager
    def crash_at(
        self, stage: str, *, key: str | int | None = None, when: When = "after"
    ) -> Generator[None, None, None]:
        """The next attempt that reaches this stage within the block dies there, as if its worker was killed.

        From then on the attempt records and releases nothing, and its client gets no response; the block catches its
        exception. Its lease lasts until the clock has passed it (``end_leases``), and the next request resumes.
        ``when``: ``"after"`` the stage is on record, ``"before"`` it begins, or ``"unrecorded"``, between its effect
        and its record. ``key``: that of the stage, if it is used with several. Raises ``KitError`` if no attempt gets
        there.
        """
        if when not in WHEN:
            raise KitError(f"when={when!r}: expected one of {', '.join(map(repr, WHEN))}")
        with self._crashing(Crash(stage, when, None if key is None else str(key))):
            yield

    @contextmanager
    def crash_at_end(self) -> Generator[None, None, None]:
        """The next attempt that ends within the block dies when its handler has run, with no response on record."""
        with self._crashing(Crash(None, "unrecorded")):
            yield

    @contextmanager
    def lost_reply(self) -> Generator[None, None, None]:
        """The next response within the block is recorded but never reaches its client. A retry gets the replay."""
        with self._crashing(Crash(None, "after")):
            yield

    @contextmanager
    def _crashing(self, crash: Crash) -> Generator[None, None, None]:
        self._check_use()
        script = self._script
        if script.crash is not None:
            raise KitError("a crash is planned already; end that block first")
        seen, script.crash = script.seen, crash
        before, swallowed = len(seen.stages), seen.swallowed
        try:
            yield
        except BaseException as error:
            if not (crash.fired and is_ours(error)):
                raise
        finally:
            script.crash = None
        used = sorted({each.name for each in seen.stages[before:]})
        if not crash.fired:
            raise KitError(_never_fired(crash, used, bool(seen.claims)))
        if seen.swallowed and not swallowed:
            raise KitError(SWALLOWED.format(what="the request", scenario="within the block"))

    @contextmanager
    def backend_down(self, *verbs: str) -> Generator[None, None, None]:
        """The backend raises ``BackendUnavailable`` within the block, in these verbs, or in all.

        ``verbs``: ``"claim"`` for new requests, ``"save_stage"``, ``"complete"`` when a response is recorded ...
        Waiting for the backend takes no real time: the clock moves instead. Delayed writes are made when the block
        ends.
        """
        self._check_use()
        unknown = sorted(set(verbs) - set(VERBS))
        if unknown:
            raise KitError(f"backend_down: {', '.join(unknown)} is no verb of a backend; known: {', '.join(VERBS)}")
        script = self._script
        before, script.down = script.down, frozenset(verbs or VERBS)
        try:
            yield
        finally:
            script.down = before
            if not before:
                self._heartbeat.catch_up(self._sync)

    def duplicate_in_flight(self, client: Any, request: Any, *, key: str | None = None, **options: Any) -> InFlight:
        """Send a request, and again while the first one is in flight: after its claim, before its handler.

        Returns both responses. A duplicate that waits (``wait=``) waits on the test's clock, until its time is up. The
        arguments are those of ``assert_idempotent``. Raises ``KitError`` if the first request makes no claim.
        """
        plan = self._prepare(client, request, options, awaits=False, key=None if key is None else lambda: key)
        first, duplicate = self._driver(SyncDriver, plan).send_both(plan.key())
        return InFlight(first.raw, duplicate.raw)

    async def aduplicate_in_flight(
        self, client: Any, request: Any, *, key: str | None = None, **options: Any
    ) -> InFlight:
        """``duplicate_in_flight``, for async clients."""
        plan = self._prepare(client, request, options, awaits=True, key=None if key is None else lambda: key)
        first, duplicate = await self._driver(AsyncDriver, plan).send_both(plan.key())
        return InFlight(first.raw, duplicate.raw)

    # The whole test

    def assert_idempotent(
        self,
        client: Any,
        request: Any,
        *,
        effects: Any = None,
        key: Callable[[], str] | None = None,
        header: str | None = None,
        status: int | None = None,
        ignore: Sequence[str] = (),
        compare_headers: Sequence[str] = (),
        crashes: bool = True,
        in_doubt: bool = True,
        reset: Callable[[], Any] | None = None,
        **options: Any,
    ) -> None:
        """Assert that a request may be sent again at any time: one effect, one response.

        It is sent twice, one after the other; with a lost response; concurrently; and after a worker was killed before,
        within and after each stage, and before the response is recorded. The first plain request shows the stages, and
        the others are compared with it. Each scenario has its own key.

        ``client``: a test client; ``request``: ``"POST /payments"``, with what the client takes as ``options``
        (``json=``, ``data=``, ``headers=``), a dictionary of these, or a function that takes the headers to send, sends
        and returns the response. ``effects``: a function that returns the number of effects, or their rows; a list that
        the application appends to; or a mock that it calls. Without it only responses are compared, and an endpoint
        without stages is refused. ``key``: makes a key, by default a UUID; ``header``: its header, by default that of
        the application's policy. ``status``: of the outcome to test, by default a success. ``ignore``: members of JSON
        bodies that are not compared, such as ``"created_at"``. ``compare_headers``: names of headers to compare in
        addition to ``Content-Type``, ``Location``, ``ETag`` and similar ones. ``crashes=False`` kills no worker;
        ``in_doubt=False`` kills none between a stage's effect and its record. ``reset``: called before each scenario,
        to bring the application back to the same state.

        Raises ``NotIdempotent``, an ``AssertionError`` that says what was seen and what to do, and ``KitError`` for
        a test that cannot work.
        """
        __tracebackhide__ = True
        plan = self._prepare(
            client, request, options, awaits=False, effects=effects, key=key, header=header, status=status,
            ignore=ignore, compare_headers=compare_headers, crashes=crashes, in_doubt=in_doubt, reset=reset,
        )  # fmt: skip
        try:
            self._driver(SyncDriver, plan).run(self._scenarios(plan).steps())
        except (NotIdempotent, KitError) as error:  # so that a test's report shows the line of this call
            raise error.with_traceback(None) from error.__cause__

    async def aassert_idempotent(
        self,
        client: Any,
        request: Any,
        *,
        effects: Any = None,
        key: Callable[[], str] | None = None,
        header: str | None = None,
        status: int | None = None,
        ignore: Sequence[str] = (),
        compare_headers: Sequence[str] = (),
        crashes: bool = True,
        in_doubt: bool = True,
        reset: Callable[[], Any] | None = None,
        **options: Any,
    ) -> None:
        """``assert_idempotent``, for async clients; ``effects`` and ``reset`` may be async as well."""
        __tracebackhide__ = True
        plan = self._prepare(
            client, request, options, awaits=True, effects=effects, key=key, header=header, status=status,
            ignore=ignore, compare_headers=compare_headers, crashes=crashes, in_doubt=in_doubt, reset=reset,
        )  # fmt: skip
        try:
            await self._driver(AsyncDriver, plan).run(self._scenarios(plan).steps())
        except (NotIdempotent, KitError) as error:
            raise error.with_traceback(None) from error.__cause__

    def _prepare(
        self, client: Any, request: Any, options: dict[str, Any], *, awaits: bool, key: Any = None, **asked: Any
    ) -> Plan:
        """The plan of the test, checked before anything is sent."""
        self._check_use()
        if self._script.crash is not None or self._script.down:
            raise KitError("a crash is planned, or the backend is down, in this block; end it before this call")
        sends = sender(client, request, options)
        name = "duplicate_in_flight" if not asked else "assert_idempotent"
        if sends.awaits and not awaits:
            raise KitError(f"{sends.what}: the client is async; write await idempotency.a{name}(...)")
        if awaits and not sends.awaits and not callable(request):
            raise KitError(f"{sends.what}: the client is sync; write idempotency.{name}(...), without await")
        for name in ("ignore", "compare_headers"):
            if isinstance(asked.get(name, ()), str):
                raise KitError(f"{name}: a tuple of names is expected, as in ({asked[name]!r},)")
        for name, value in (("key", key), ("reset", asked.get("reset"))):
            if value is not None and not callable(value):
                raise KitError(f"{name}: a function is expected, got {type(value).__name__}")
        if asked.get("effects") is not None and not _is_async(asked["effects"]):
            _effects.snapshot(_effects.looked(asked["effects"]))
        plan = Plan(send=sends, **asked)
        if key is not None:
            plan.key = key
        return plan

    def _scenarios(self, plan: Plan) -> Scenarios:
        return Scenarios(plan, self._script, self.end_leases, self._why_unprotected)

    def _driver(self, kind: type[D], plan: Plan) -> D:
        return kind(self._script, plan, self._key_headers(plan), self._why_unprotected)

    def _check_use(self) -> None:
        if not self._active:
            raise KitError("the kit is not in use: write with Kit() as idempotency, or use the fixture idempotency")

    def _key_headers(self, plan: Plan) -> set[str]:
        """The headers that may carry the key: the one that the test names, else those of all policies.

        Many applications create their middleware at the first request, so it is unknown before which one is called.
        """
        if plan.header is not None:
            return {plan.header}
        return {_DEFAULT_HEADER, *(engine.policy.header for engine in self._engines() if engine.policy.enabled)}

    def _engines(self) -> list[Engine]:
        return [engine for engine in (each.engine() for each in self._taken) if engine is not None]

    def _why_unprotected(self, reply: Reply, what: str) -> str:
        """Why a request made no claim, and what to do."""
        found = self._engines()
        if not found:
            return UNPROTECTED["nowhere"].format(what=what, status=reply.status)
        if not any(engine.policy.enabled for engine in found):
            return UNPROTECTED["off"].format(what=what, status=reply.status)
        if reply.status is not None and reply.status >= 400:
            return UNPROTECTED["refused"].format(what=what, status=reply.status, body=shown(reply.body))
        return UNPROTECTED["not covered"].format(what=what, status=reply.status)


_current: Kit | None = None


def current() -> Kit | None:
    """The kit that is in use; None without one."""
    return _current


def _is_of(lease: Any, record: Record) -> bool:
    return bool(lease.record_id == record.record_id and lease.token == record.token)


def _is_async(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _never_fired(crash: Crash, used: list[str], claimed: bool) -> str:
    if not claimed:
        return (
            "no request with an idempotency key came within the block, so no attempt could die; send one with an "
            "Idempotency-Key header, to an application that is protected"
        )
    if crash.stage is None:
        return "no attempt ended within the block, so none could die: were its requests replayed or refused?"
    came = f"the attempts came to {', '.join(map(repr, used))}" if used else "the attempts came to no stage"
    more = " with that key" if crash.key is not None else ""
    if crash.stage in used:
        return (
            f"stage {crash.stage!r} was on record already, or was not used{more}, so no attempt could die "
            f"{crash.when!r} it; {came}"
        )
    return f"no attempt came to a stage {crash.stage!r}{more} within the block; {came}"
