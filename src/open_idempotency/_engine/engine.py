"""The engine that every adapter holds: policy, sync and async backend, performers and heartbeat.

An engine is built once, at start, where wrong configuration is refused. It opens nothing until the first request. Its
two performers, sync and async, know which callable carries out which command. ``running`` is the one context variable
that says which request runs here: adapters set it, and ``idem`` reads it. ``Opened`` closes what an engine has opened,
and ``Covering`` leads from an application to its engine.
"""

from __future__ import annotations

import _thread
import atexit
import logging
import os
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from operator import methodcaller
from typing import Any, NamedTuple, Protocol

from open_idempotency import rules
from open_idempotency._core import fingerprint
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.commands import (
    AsyncDriver,
    Call,
    Claim,
    Command,
    Complete,
    DrawReference,
    Driver,
    Emit,
    Fail,
    Forget,
    Get,
    Handlers,
    KeepAlive,
    Look,
    Now,
    RecordLater,
    Release,
    Renew,
    Reserve,
    SaveStage,
    Sleep,
    TakeSlot,
    Unreserve,
    Wait,
    Withdraw,
)
from open_idempotency._core.notify import Advice
from open_idempotency._engine.event_log import draw_reference, report
from open_idempotency._engine.heartbeat import Heartbeat
from open_idempotency._runtime import clocks, loops
from open_idempotency._runtime.processes import KINDS, PerProcess, translated, unguarded
from open_idempotency.backend import AsyncBackend, Backend
from open_idempotency.backends.registry import Given, open_backend
from open_idempotency.backends.threaded import ThreadedBackend
from open_idempotency.events import Telemetry
from open_idempotency.exceptions import BackendUnavailable, ConfigurationError, NotStarted
from open_idempotency.ledger.transactions import alook, look
from open_idempotency.policy import SESSION_IDENTITY, IdempotencyPolicy, make_policy
from open_idempotency.rules import Rule


class Slots:
    """The slots in which requests of one process may wait. Nothing here waits itself.

    ``affordable``: how many slots there are where a command does not say; None for no limit."""

    def __init__(self, affordable: int | None) -> None:
        self._affordable = affordable
        self._taken = PerProcess(_Count)

    def take(self, command: TakeSlot) -> Callable[[], None] | None:
        """The function that frees the slot, to be called once; None where all slots are taken."""
        limit = self._affordable if command.slots is None else command.slots
        taken = self._taken.get()
        return taken.subtract if taken.add(limit) else None


class _Count:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._number = 0

    def add(self, limit: int | None) -> bool:
        with self._lock:
            if limit is not None and self._number >= limit:
                return False
            self._number += 1
        return True

    def subtract(self) -> None:
        with self._lock:
            self._number -= 1


# A request that waits in a thread occupies it, and no performer knows how many threads its server has.
_SLOTS_ON_THREADS = 2


class Keeper(Protocol):
    """Keeps the leases of running attempts: the heartbeat."""

    def keep(self, command: KeepAlive) -> None:
        """Renew the attempt's lease from now on. Raises ``BackendUnavailable`` where that is impossible."""

    def record(self, command: RecordLater) -> bool:
        """Carry out the steps in the background. False if there is no room for them."""
        ...


class _Nobody:
    """Keeps no lease: for steps that are carried out without an engine, and run no handler."""

    def keep(self, command: KeepAlive) -> None:
        """The lease ends by itself."""

    def record(self, command: RecordLater) -> bool:
        return False


_NOBODY = _Nobody()


def _at_once(keeper: Keeper, slots: Slots) -> dict[type[Command[Any]], Callable[[Any], Any]]:
    """The function that carries out each kind of command that needs no waiting; the same for both performers."""
    return {
        KeepAlive: keeper.keep,
        RecordLater: keeper.record,
        TakeSlot: slots.take,
        Now: lambda _: clocks.elapsed(),
        DrawReference: draw_reference,
        Emit: report,
    }


def _meant(command: Command[Any], error: BaseException) -> BaseException:
    """The error to raise for an error of an unguarded verb: a local failure is ``BackendUnavailable`` (B-10a)."""
    if isinstance(command, Claim | Complete) and isinstance(error, KINDS):
        return translated(error)
    return error


#: calls the adapter's function of a ``Call``
_call = methodcaller("function")


def _handlers(
    backend: Backend | AsyncBackend, at_once: Handlers, look: Callable[[Look], Any] | None
) -> dict[type[Command[Any]], Callable[[Any], Any]]:
    """The function that carries out each kind of command, except ``Sleep``; the same for both performers."""
    handlers: dict[type[Command[Any]], Callable[[Any], Any]] = {
        **at_once,
        Reserve: backend.reserve,
        Unreserve: backend.unreserve,
        # The performer itself does the work of the guards of these two.
        Claim: unguarded(backend.claim),
        Renew: backend.renew,
        SaveStage: backend.save_stage,
        Complete: unguarded(backend.complete),
        Fail: backend.fail,
        Release: backend.release,
        Withdraw: backend.withdraw,
        Get: backend.get,
        Forget: lambda command: backend.delete(command.record_id),
        Wait: backend.wait,
        Call: _call,
    }
    return handlers if look is None else {**handlers, Look: look}


class Performer(Driver):
    """Carries out commands on a sync ``Backend``. ``keeper``: the heartbeat on the same backend.

    ``look``: searches a ledger for a response.
    """

    def __init__(
        self, backend: Backend, keeper: Keeper = _NOBODY, look: Callable[[Look], bytes | None] | None = None
    ) -> None:
        self.backend = backend
        self._keeper = keeper
        handlers = _handlers(backend, _at_once(keeper, Slots(_SLOTS_ON_THREADS)), look)
        super().__init__({**handlers, Sleep: lambda command: time.sleep(command.seconds)}, clocks)

    def for_coroutines(self) -> AsyncPerformer:
        """A performer for coroutines in sync code, with the same backend and the same heartbeat.

        Such coroutines live on short-lived event loops, so they reach the backend through threads.
        """
        return AsyncPerformer(ThreadedBackend(self.backend), self._keeper, alook)

    def _meant(self, command: Command[Any], error: BaseException) -> BaseException:
        return _meant(command, error)


class AsyncPerformer(AsyncDriver):
    """Carries out commands on an ``AsyncBackend``."""

    def __init__(
        self,
        backend: AsyncBackend,
        keeper: Keeper = _NOBODY,
        look: Callable[[Look], Awaitable[bytes | None]] | None = None,
    ) -> None:
        self.backend = backend
        # Cleanup after a cancellation may cost two calls; it is bounded, since shutdown waits for it.
        #: seconds that a cleanup may take
        self.patience = 2 * backend.call_timeout + 1.0
        handlers = _handlers(backend, _at_once(keeper, Slots(None)), look)
        super().__init__({**handlers, Sleep: lambda command: loops.sleep(command.seconds)}, clocks)

    def _meant(self, command: Command[Any], error: BaseException) -> BaseException:
        return _meant(command, error)

    async def _shield(self, call: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await loops.shielded(call, self.patience)
        except TimeoutError as error:
            raise BackendUnavailable("a backend call during cleanup did not end in time") from error


# The engine

_logger = logging.getLogger("open_idempotency")
_said_off = False


class Engine:
    """What an adapter needs to protect requests.

    ``backend``: a URL, a sync or async instance, or a client that a backend takes. ``threads``: the adapter is sync, so
    coroutines under it live on short-lived event loops and reach the backend through threads. ``sessions``: the adapter
    reads sessions. Raises ``ConfigurationError``.
    """

    def __init__(
        self,
        backend: Given | None,
        policy: IdempotencyPolicy | None,
        fields: Mapping[str, Any],
        *,
        threads: bool,
        sessions: bool = True,
    ) -> None:
        self._sessions = sessions
        self.policy = make_policy(policy, fields)
        if not self.policy.enabled:
            say_off()
            # Each request runs as one without a key, wherever no key is needed.
            self.policy = self.policy.replace(required=False, strict_stages=False)
            backend = "memory://" if backend is None else backend
        self.backend = open_backend(_named(backend))
        self._check(self.policy)
        sync, aio = self.backend, ThreadedBackend(self.backend) if threads else self.backend.to_async()
        make_watched: Callable[[], dict[bytes, Any]] = dict
        if isinstance(self.policy.on_event, Telemetry):
            from open_idempotency._engine.measuring import measure  # only telemetry needs it

            sync, aio, make_watched = measure(sync, aio, self.policy.on_event)
        self.heartbeat = Heartbeat(sync, make_watched)
        #: what is closed with the server, with this engine and with the process; a backend only if it was made here
        self.opened = Opened(self.heartbeat, None if isinstance(backend, Backend | AsyncBackend) else self.backend)
        weakref.finalize(self, self.opened.close_beside).atexit = False
        self.sync = Performer(sync, self.heartbeat, look)
        self.aio = AsyncPerformer(aio, self.heartbeat, alook)
        self.advice = Advice()
        #: which rules views have
        self.rules = rules.registry
        self._policies: dict[Rule, IdempotencyPolicy] = {}
        engines.add(self)
        for each in made:
            each(self)

    def policy_for(self, rule: Rule | None) -> IdempotencyPolicy | None:
        """The policy of a route with this rule; made and checked once for each rule.

        None for an exempt route, and for one without a rule where only marked routes are covered.
        """
        if rule is None:
            return None if self.policy.cover == "marked" else self.policy
        if rule.exempt:
            return None
        policy = self._policies.get(rule)
        if policy is None:
            policy = self.policy.replace(**rule.fields)
            self._check(policy)
            self._policies[rule] = policy
        return policy

    def _check(self, policy: IdempotencyPolicy) -> None:
        fingerprint.prepare(policy.fingerprint)
        if isinstance(policy.on_event, Telemetry) and policy.on_event is not self.policy.on_event:
            raise ConfigurationError(
                "on_event: telemetry measures a whole application, so a route has none of its own; pass it to the "
                "middleware, the extension or IDEMPOTENCY_ON_EVENT"
            )
        if policy.max_live_keys is not None and not self.backend.quotas:
            raise ConfigurationError(
                f"max_live_keys: {type(self.backend).__name__} has no quotas; leave it out, or take another backend"
            )
        if not self._sessions and policy.session_identity != SESSION_IDENTITY:
            raise ConfigurationError(
                "session_identity: WSGI hands on no decoded session, so this has no effect; return the caller by scope="
            )
        slowest = self.backend.call_timeout
        if slowest >= policy.lease:
            raise ConfigurationError(
                f"lease: {policy.lease} s is not longer than the slowest backend call ({slowest} s); raise lease, "
                "or lower the backend's timeout (?timeout= in its URL)"
            )


#: the engines of this process, and what is to be done with each new one: for tests that give applications a backend
engines: weakref.WeakSet[Engine] = weakref.WeakSet()
made: list[Callable[[Engine], None]] = []


def say_off() -> None:
    """Warn, once in each process, that nothing is protected."""
    global _said_off
    if not _said_off:
        _said_off = True
        _logger.warning(
            "enabled=False switches idempotency off in this process: no key is read, no response is stored, and a "
            "retry runs again. That is meant for tests; remove it anywhere else"
        )


def _named(backend: Given | None) -> Given:
    if backend is None:
        raise ConfigurationError('backend: none given; pass a URL such as backend="sqlite:///idempotency.db"')
    return backend


#: makes a random id for one request's claim; a claim resent with it is recognised as the same one
new_owner: Callable[[], bytes] = partial(os.urandom, 16)


class Performers(Protocol):
    """The performers that carry out stages, sync and async. The adapter's engine is one."""

    @property
    def sync(self) -> Performer:
        """For sync code."""
        ...

    @property
    def aio(self) -> AsyncPerformer:
        """For coroutines."""
        ...


# The request that runs in this context

# A plain tuple: one is made for each covered request, also for those without a key.
Running = tuple[Attempt, Performers]

running: ContextVar[Running | None] = ContextVar("open_idempotency_running", default=None)


def here() -> Running:
    """The request that is running in this context. Raises ``NotStarted`` outside of one."""
    found = running.get()
    if found is None:
        raise NotStarted(
            "no idempotent request is running here: is the middleware installed, and does it cover this route and its "
            "method (POST and PATCH, unless methods= says more)? A FastAPI dependency runs before the claim; use "
            "idem in the endpoint. A thread of your own runs in contextvars.copy_context().run(...)"
        )
    return found


# What an engine has opened is closed again: when its server shuts down, when it is garbage, and at the interpreter's
# exit. An engine opens two things: the heartbeat's thread, and connections of its backend. It owns the backend that it
# has made from a URL. A backend that the application has made is the application's to close. Closing is harmless at any
# time, since a backend and a heartbeat begin anew when they are used again.

#: seconds to wait at a close for responses that are still being recorded
PATIENCE = 5.0
#: the same at the interpreter's exit, where ``drain`` has run before
_AT_EXIT = 1.0

_logger = logging.getLogger("open_idempotency")
#: the function that is registered at exit; forks inherit the registration
_registered: list[object] = []


class Opened:
    """The resources that one engine has opened. This object does not refer to the engine, so it can outlive it.

    ``own``: the backend that the engine has made; None where the application has made it.
    """

    def __init__(self, heartbeat: Heartbeat, own: Backend | None) -> None:
        self._heartbeat = heartbeat
        self._own = own if own is not None and type(own).close is not Backend.close else None
        if self._own is not None:
            _close_at_exit(self)

    def close(self, patience: float = PATIENCE) -> None:
        """Wait for what is being recorded, then close everything. Blocks; errors of the backend are logged.

        A request that still runs keeps its heartbeat: its lease is renewed over a new connection.
        """
        self._heartbeat.close_unless_running(patience)
        if self._own is None:
            return
        try:
            self._own.close()
        except Exception:
            _logger.exception("%r could not be closed; its connections end with the process", self._own)

    async def aclose(self) -> None:
        """See ``close``; closes the connections of the running event loop as well."""
        await loops.in_thread(self._heartbeat.close_unless_running, PATIENCE)
        if self._own is None:
            return
        try:
            await self._own.to_async().close()
        except Exception:
            _logger.exception("%r could not be closed; its connections end with the process", self._own)

    def close_beside(self) -> None:
        """Close everything in a thread of its own. For a finaliser, which may interrupt code that holds any lock."""
        if self._own is None:
            return  # the heartbeat has a finaliser of its own
        # Not ``threading.Thread``, which takes a lock that the interrupted code may hold.
        with suppress(RuntimeError):  # no thread can be started; connections that are garbage close by themselves
            _thread.start_new_thread(self.close, ())


_at_exit: weakref.WeakSet[Opened] = weakref.WeakSet()


def _close_at_exit(opened: Opened) -> None:
    if not _registered:
        # Registered once, before any heartbeat runs: so at exit the leases are given up first (L-06).
        _registered.append(atexit.register(_close_all))
    _at_exit.add(opened)


def _close_all() -> None:
    for opened in list(_at_exit):
        opened.close(_AT_EXIT)


async def aclose_all() -> None:
    """Close what all engines of this process have opened: its server shuts down."""
    for opened in list(_at_exit):
        await opened.aclose()


# From an object of an application to its engine and to the policies of its routes, without a request. An adapter's
# application has ``covering``, which lists the routes that it covers. No request looks at it: operators do, to find the
# record of a key by the rules that a request would have met.

#: how many layers around an application are looked through
_DEEPEST = 100
# Where frameworks and layers keep what they wrap.
_WRAPPED = ("app", "wsgi_app", "application", "__wrapped__")
#: where an extension of Flask keeps its engine, and its ``Covering``
EXTENSION, COVERING = "open_idempotency", "open_idempotency.covering"


class Covered(NamedTuple):
    """One covered route: its method and its template ("" for all that have no rule of their own), and its policy."""

    method: str
    path: str
    policy: IdempotencyPolicy


class Covering(Protocol):
    """The routes that an adapter covers."""

    def every(self) -> Iterable[Covered]:
        """Every route that is covered; where routes are not known, what the policy and each rule by path cover."""
        ...

    def at(self, method: str, path: str) -> IdempotencyPolicy | None:
        """The policy of a request with this path; None where it is not covered, or no route leads there."""
        ...


class Protected(NamedTuple):
    """The protection of an application: its engine, and the covered routes, if they are known."""

    engine: Engine
    covering: Covering | None


#: functions of adapters that wrap no application: each returns what protects a given object, or None
finders: list[Callable[[object], Protected | None]] = []


def protected_in(application: object) -> list[Protected]:
    """Find what protects an application, the outermost first. Opens and calls nothing.

    If the layers of an application are not built yet, as those of Starlette before the first request, they are built
    only for this call.
    """
    found: list[Protected] = []
    for each in _layers(application, set(), _DEEPEST):
        protected = _protected_by(each)
        if protected is not None and all(protected.engine is not known.engine for known in found):
            found.append(protected)
    return found


def _protected_by(layer: object) -> Protected | None:
    if isinstance(layer, Engine):
        return Protected(layer, None)
    extensions = getattr(layer, "extensions", None)
    held: dict[str, Any] = extensions if isinstance(extensions, dict) else {}
    for engine in (getattr(layer, "engine", None), getattr(layer, "_engine", None), held.get(EXTENSION)):
        if isinstance(engine, Engine):
            covering: Covering | None = getattr(layer, "covering", None) or held.get(COVERING)
            return Protected(engine, covering)
    return next((protected for find in finders if (protected := find(layer)) is not None), None)


def _layers(application: object, seen: set[int], depth: int) -> Iterator[object]:
    """An application, the layers around it from the outermost on, and the applications that its routes lead to."""
    layer: Any = application
    for _ in range(depth):
        # What a framework calls its application may be a method of it.
        layer = getattr(layer, "__self__", layer)
        if layer is None or id(layer) in seen:
            return
        seen.add(id(layer))
        yield layer
        build = getattr(layer, "build_middleware_stack", None)
        if callable(build):
            yield from _layers(getattr(layer, "middleware_stack", None) or build(), seen, depth - 1)
        routes = getattr(layer, "routes", None)
        for route in routes if isinstance(routes, list | tuple) else ():
            yield from _layers(getattr(route, "app", None), seen, depth - 1)
        layer = next((inner for name in _WRAPPED if (inner := getattr(layer, name, None)) is not None), None)
