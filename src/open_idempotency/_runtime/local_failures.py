"""The failures of this process, its machine or its network that count as those of a backend: named here, once.

A call that met one may succeed when it is made again: no thread could be started, no file descriptor or memory was
left. ``Backend`` and ``AsyncBackend`` turn them into ``BackendUnavailable`` at the edge of each verb, so that a
completion is tried again and never lost to them. Any other error is a bug, and stays what it is.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import wraps
from types import FunctionType
from typing import Any

from open_idempotency.exceptions import BackendUnavailable, first_line

#: what to catch, and then to ask ``is_local`` about
KINDS = (OSError, MemoryError, RuntimeError)

#: how the standard library says that no thread can be had; these errors have no class of their own
_NO_THREAD = (
    "can't start new thread",
    "can't create new thread",
    "can't register atexit after shutdown",
    "cannot schedule new futures",
    "Executor shutdown has been called",
)
_NO_FILES = (errno.EMFILE, errno.ENFILE)


def is_local(error: BaseException) -> bool:
    """Whether it is one of these failures."""
    if isinstance(error, RuntimeError):
        return str(error).startswith(_NO_THREAD)
    return isinstance(error, (OSError, MemoryError))


def translated(error: Exception) -> Exception:
    """The error to raise: ``BackendUnavailable`` with this one as its cause; this one where it is no local failure."""
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
    """A sync verb whose local failures are ``BackendUnavailable``."""

    @wraps(verb)
    def guard(*arguments: Any, **keywords: Any) -> Any:
        try:
            return verb(*arguments, **keywords)
        except KINDS as error:
            raise translated(error)  # noqa: B904 (it has its cause)

    return guard


def guarded_async(verb: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """The same for one that is awaited."""

    @wraps(verb)
    async def guard(*arguments: Any, **keywords: Any) -> Any:
        try:
            return await verb(*arguments, **keywords)
        except KINDS as error:
            raise translated(error)  # noqa: B904 (it has its cause)

    return guard


def guarded_scan(scan: Callable[[Any], Iterator[Any]]) -> Callable[[Any], Iterator[Any]]:
    """The same for one that is iterated over."""

    @wraps(scan)
    def guard(backend: Any) -> Iterator[Any]:
        try:
            yield from scan(backend)
        except KINDS as error:
            raise translated(error)  # noqa: B904 (it has its cause)

    return guard


def guarded_async_scan(scan: Callable[[Any], AsyncIterator[Any]]) -> Callable[[Any], AsyncIterator[Any]]:
    """The same for one that is iterated over asynchronously."""

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
    """A ``wait`` that does not raise local failures, but goes on as ``otherwise``."""

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
    """The same for one that is awaited."""

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
    "fail",
    "get",
    "health",
    "migrate",
    "purge",
    "release",
    "renew",
    "reserve",
    "save_stage",
    "unreserve",
    "withdraw",
)


def guard_verbs(cls: type, base: Any) -> None:
    """Guard those verbs that a class of sync backends defines itself. ``base``: whose ``wait`` needs nothing."""
    _replace(cls, dict.fromkeys(_VERBS, guarded))
    _replace(cls, {"scan": guarded_scan, "wait": lambda wait: guarded_wait(wait, base.wait)})


def guard_async_verbs(cls: type, base: Any) -> None:
    """The same for a class of asynchronous backends."""
    _replace(cls, dict.fromkeys(_VERBS, guarded_async))
    _replace(cls, {"scan": guarded_async_scan, "wait": lambda wait: guarded_async_wait(wait, base.wait)})


def _replace(cls: type, guards: dict[str, Callable[[Any], Any]]) -> None:
    for name, guard in guards.items():
        verb = vars(cls).get(name)
        if isinstance(verb, FunctionType):
            setattr(cls, name, guard(verb))
