"""The mark that ``@idempotent`` leaves in a view: decorators above it are asked again before a replay.

A decorator above the mark (``permission_required``, ``roles_required``) refuses callers that have lost a permission. So
before a stored response is sent again, the view is called as far as the mark. The code below the mark does not run.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from open_idempotency._core.requests import Response
from open_idempotency._core.stored_response import REPLAYED

T = TypeVar("T")

_MARK = "_open_idempotency_mark"
_REVEALING = (409, 422)
_stopping: ContextVar[bool] = ContextVar("open_idempotency_stopping", default=False)


class Reached(BaseException):
    """A view that was called up to its mark has let the request through. No application ever sees it.

    It is no ``Exception``, so that the error handling of a framework or a view does not take it for one.
    """


def mark_view(view: Any) -> Any:
    """The view with a mark, at which ``call_to_mark`` stops. Classes and callable objects are returned as they are."""
    if not inspect.isfunction(view) or hasattr(view, _MARK):
        return view
    wrapper = _awaited(view) if inspect.iscoroutinefunction(view) else _plain(view)
    setattr(wrapper, _MARK, wrapper)
    return wrapper


def _plain(view: Callable[..., T]) -> Callable[..., T]:
    @functools.wraps(view)
    def stop_here(*args: Any, **kwargs: Any) -> T:
        if _stopping.get():
            raise Reached
        return view(*args, **kwargs)

    return stop_here


def _awaited(view: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
    @functools.wraps(view)
    async def stop_here(*args: Any, **kwargs: Any) -> T:
        if _stopping.get():
            raise Reached
        return await view(*args, **kwargs)

    return stop_here


def has_decorators_above(view: Any) -> bool:
    """Whether a view is marked and wrapped in a decorator that copies attributes, as ``functools.wraps`` does."""
    return getattr(view, _MARK, view) is not view


def is_marked(view: Any) -> bool:
    """Whether a view, or a function that it wraps, is marked."""
    return hasattr(view, _MARK)


def reveals_a_record(response: Response) -> bool:
    """Whether one of the library's responses depends on an earlier request: a replay, 409 or 422."""
    return REPLAYED in response.headers or response.status in _REVEALING


@contextmanager
def _stopping_at_marks() -> Generator[None, None, None]:
    """Views that are called in this context stop at their mark and raise ``Reached``."""
    token = _stopping.set(True)
    try:
        yield
    finally:
        _stopping.reset(token)


def call_to_mark(view: Callable[[], T]) -> T | None:
    """The response of a view above its mark; None if the view lets the request through. Raises what the view raises."""
    with _stopping_at_marks():
        try:
            return view()
        except Reached:
            return None


async def acall_to_mark(view: Callable[[], Awaitable[T]]) -> T | None:
    """``call_to_mark`` for coroutines."""
    with _stopping_at_marks():
        try:
            return await view()
        except Reached:
            return None
