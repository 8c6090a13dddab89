"""The calls of a running request that its framework's threads carry out, and that no cancellation stops (L-09).

This is the one module that knows how other libraries call threads; its wrappers do nothing outside of a running request
with a key. Starlette and FastAPI run ``def`` endpoints, ``def`` dependencies and ``run_in_threadpool`` by
``anyio.to_thread.run_sync``, as other frameworks do. That function gets the pool from ``get_async_backend`` of its own
module. The wrapper replaces that name, so it also works for code that has imported ``run_sync``. Django calls
``SyncToAsync.__call__`` of asgiref. a2wsgi runs WSGI applications by ``WSGIResponder.wsgi``, in the thread itself.

If anyio has another structure, ``run_sync`` itself is wrapped. If none of these functions is found, one warning is
logged, and requests are cancelled as if they had no threads.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Coroutine
from copy import copy
from functools import wraps
from math import inf
from types import ModuleType
from typing import Any

from open_idempotency._core.attempt import Attempt, Phase, Threads
from open_idempotency._engine.engine import running

#: the first release that lets a cancellation be taken back
_OLDEST_ANYIO = (4, 7)
_PUBLIC, _INNER, _VERB = "run_sync", "get_async_backend", "run_sync_in_worker_thread"
_DJANGOS, _RESPONDER, _IN_THREAD = "SyncToAsync", "WSGIResponder", "wsgi"
#: seconds after the end of a thread in which the response may be made and recorded
GRACE = 1.0
#: seconds between two looks at whether that has happened
LOOK = 0.05
LOOKS = round(GRACE / LOOK)
_logger = logging.getLogger("open_idempotency")


class ThreadCalls:
    """The thread calls of one request. ``touched`` is called on the event loop when one begins, and when it has ended.

    After ``max_run`` seconds they no longer count: the lease is no longer renewed, since a thread may be deadlocked.
    """

    __slots__ = ("_until", "ended", "left", "live", "touched")

    def __init__(self, max_run: float, touched: Callable[[], None] | None = None) -> None:
        #: changed by worker threads: each change is one atomic operation
        self.live: set[_Call] = set()
        self.left: set[_Call] = set()
        self.ended = -inf
        self._until = time.monotonic() + max_run
        self.touched = touched

    @property
    def running(self) -> bool:
        """Whether one of them runs at this moment."""
        return bool(self.live) and time.monotonic() < self._until

    @property
    def left_behind(self) -> bool:
        """Whether one of them still runs although the task that awaited it was cancelled."""
        return not self.left.isdisjoint(list(self.live)) and time.monotonic() < self._until

    def ran_within(self, seconds: float) -> bool:
        """Whether one of them runs, or has ended at most ``seconds`` ago."""
        return self.running or time.monotonic() < self.ended + seconds

    async def run(self, pool: Callable[..., Any], function: Callable[..., Any], *rest: Any, **options: Any) -> Any:
        """Let the pool run a function. The function counts as running until it has ended."""
        call = _Call(self, function)
        self._touch()
        try:
            return await pool(call, *rest, **options)
        except BaseException:
            call.leave()
            raise
        finally:
            self._touch()

    def _touch(self) -> None:
        if self.touched is not None:
            self.touched()


class _Call:
    """A function that reports when it runs. Before it has begun it can be withdrawn."""

    __slots__ = ("_calls", "_function", "_ticket")

    def __init__(self, calls: ThreadCalls, function: Callable[..., Any]) -> None:
        self._calls = calls
        self._function = function
        # Taking it decides whether the function runs.
        self._ticket = [None]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        calls = self._calls
        calls.live.add(self)
        try:
            if self._take():
                return self._function(*args, **kwargs)
            return None  # nobody awaits it
        finally:
            calls.ended = time.monotonic()
            calls.live.discard(self)

    def leave(self) -> None:
        """Note that no task awaits it any more. It does not begin, or its thread goes on."""
        if not self._take() and self in self._calls.live:
            self._calls.left.add(self)

    def _take(self) -> bool:
        try:
            self._ticket.pop()
        except IndexError:
            return False
        return True


class Patience:
    """How long a response is waited for after its thread has ended.

    Counted in looks, not in seconds: while the event loop or the process stands still, no response can be made.
    """

    __slots__ = ("_left", "_threads")

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._left = LOOKS

    def lasts(self, *, begun: bool = False) -> bool:
        """Whether to go on waiting; call it every ``LOOK`` seconds. ``begun``: the response has begun to leave."""
        self._left = self._left - 1 if begun or not self._threads.running else LOOKS
        return self._left > 0


class InView:
    """Stands for thread calls where a whole view runs in a thread until its attempt is settled."""

    __slots__ = ()
    running = True
    left_behind = False

    def ran_within(self, seconds: float) -> bool:
        """Always."""
        return True


def calls_here() -> ThreadCalls | None:
    """The thread calls of the request that runs in this context; None if no request with a key runs here."""
    found = running.get()
    if found is None or found[0].lease is None or found[0].phase is Phase.ENDED:
        return None
    attempt: Attempt = found[0]
    if attempt.threads is None:
        attempt.run_in_threads(ThreadCalls(attempt.policy.max_run))
    return attempt.threads if isinstance(attempt.threads, ThreadCalls) else None


def hook() -> None:
    """Wrap the thread calls of the libraries that are loaded by now."""
    for name in tuple(pending):
        if name not in sys.modules:
            continue
        install = pending.pop(name, None)
        if install is not None and not install(sys.modules[name]):
            _logger.warning(
                "%s: this release is not known, so a request that is cancelled does not wait for its threads, and its "
                "retry may run beside them; install an older release",
                name,
            )


def _is_too_old(release: str) -> bool:
    """Whether a release of anyio goes on cancelling a request whose thread was waited for (L-09)."""
    parts = release.split(".")[:2]
    return all(part.isdigit() for part in parts) and tuple(map(int, parts)) < _OLDEST_ANYIO


def _report_old_anyio() -> None:
    from importlib.metadata import PackageNotFoundError, version  # slow to import

    try:
        release = version("anyio")
    except PackageNotFoundError:
        return
    if _is_too_old(release):
        _logger.warning(
            "anyio %s: a request that a layer outside cancels, such as Starlette's BaseHTTPMiddleware, fails although "
            "its thread has ended, and its retry runs again; install anyio %s or later",
            release,
            ".".join(map(str, _OLDEST_ANYIO)),
        )


def _hook_anyio(module: ModuleType) -> bool:
    _report_old_anyio()
    public = getattr(module, _PUBLIC, None)
    names = _names_in(public)
    if _INNER in names and _VERB in names and hasattr(module, _INNER):
        setattr(module, _INNER, _with_known_calls(getattr(module, _INNER)))
    elif public is not None:
        # Code that imported the function by its name before calls it without the wrapper.
        setattr(module, _PUBLIC, _knowing(public))
    return public is not None


def _hook_asgiref(module: ModuleType) -> bool:
    kind = getattr(module, _DJANGOS, None)
    call = vars(kind).get("__call__") if isinstance(kind, type) else None
    if kind is None or call is None or not {"func", "run_in_executor"} <= set(_names_in(call)):
        return False
    kind.__call__ = _knowing_method(call)
    return True


def _hook_a2wsgi(module: ModuleType) -> bool:
    kind = getattr(module, _RESPONDER, None)
    method = vars(kind).get(_IN_THREAD) if isinstance(kind, type) else None
    if method is None:
        return False
    setattr(kind, _IN_THREAD, _known_by_itself(method))
    return True


#: the hooks that are not installed yet, each by the module that has to be imported first
pending: dict[str, Callable[[ModuleType], bool]] = {
    "anyio.to_thread": _hook_anyio,
    "asgiref.sync": _hook_asgiref,
    "a2wsgi.wsgi": _hook_a2wsgi,
}


def _names_in(function: object) -> tuple[str, ...]:
    """The global names and attributes that a function uses."""
    names: tuple[str, ...] = getattr(getattr(function, "__code__", None), "co_names", ())
    return names


def _with_known_calls(get_backend: Callable[..., Any]) -> Callable[..., Any]:
    def get_async_backend(*args: Any, **kwargs: Any) -> Any:
        backend, calls = get_backend(*args, **kwargs), calls_here()
        return backend if calls is None else _Pool(backend, calls)

    return get_async_backend


class _Pool:
    """anyio's backend for the thread calls of one request."""

    __slots__ = ("_backend", "_calls")

    def __init__(self, backend: Any, calls: ThreadCalls) -> None:
        self._backend = backend
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def run_sync_in_worker_thread(
        self, func: Callable[..., Any], *rest: Any, **options: Any
    ) -> Coroutine[Any, Any, Any]:
        return self._calls.run(self._backend.run_sync_in_worker_thread, func, *rest, **options)


def _knowing(run_sync: Callable[..., Any]) -> Callable[..., Any]:
    def run_sync_known(func: Callable[..., Any], *args: Any, **options: Any) -> Any:
        calls = calls_here()
        return run_sync(func, *args, **options) if calls is None else calls.run(run_sync, func, *args, **options)

    return run_sync_known


def _knowing_method(call: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(call)
    async def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807 (it replaces that method)
        calls = calls_here()
        if calls is None:
            return await call(self, *args, **kwargs)

        def in_thread(function: Callable[..., Any]) -> Any:
            known = copy(self)
            known.func = function
            return call(known, *args, **kwargs)

        return await calls.run(in_thread, self.func)

    return __call__


def _known_by_itself(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def known(*args: Any, **kwargs: Any) -> Any:
        calls = calls_here()
        return (method if calls is None else _Call(calls, method))(*args, **kwargs)

    return known
