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
from types import FunctionType
from typing import Any, TypeVar

from open_idempotency._core.requests import Response
from open_idempotency._core.stored_response import REPLAYED

T = TypeVar("T")

_MARK = "_open_idempotency_mark"
_STOPS = "_open_idempotency_stops"
_REVEALING = (409, 422)
_stopping: ContextVar[bool] = ContextVar("open_idempotency_stopping", default=False)


class Reached(BaseException):
    """A view that was called up to its mark has let the request through. No application ever sees it.

    It is no ``Exception``, so that the error handling of a framework or a view does not take it for one.
    """


def mark_view(view: Any, find_request: Callable[[], object] | None = None) -> Any:
    """The view with a mark, at which ``call_to_mark`` stops. Classes and callable objects are returned as they are.

    ``find_request``: returns the current request, where that is not the view's first argument, or a method's second.
    """
    if not inspect.isfunction(view) or hasattr(view, _MARK) or inspect.isasyncgenfunction(view):
        return view  # an async generator has no call that could raise
    wrapper = (_awaited if inspect.iscoroutinefunction(view) else _plain)(view, find_request)
    setattr(wrapper, _MARK, wrapper)
    return wrapper


def _stops(args: tuple[Any, ...], find_request: Callable[[], object] | None) -> bool:
    """Whether this call ends at the mark, also in a thread whose context a decorator has not copied."""
    if _stopping.get():
        return True
    requests = args[:2] if find_request is None else (find_request(),)
    return any(getattr(each, _STOPS, False) is True for each in requests)


def _plain(view: Callable[..., T], find_request: Callable[[], object] | None) -> Callable[..., T]:
    stops, reached = _stops, Reached

    def stop_here(*args: Any, **kwargs: Any) -> T:
        if stops(args, find_request):
            raise reached
        return view(*args, **kwargs)

    marked: Callable[..., T] = _like(view, stop_here)
    return marked


def _awaited(
    view: Callable[..., Awaitable[T]], find_request: Callable[[], object] | None
) -> Callable[..., Awaitable[T]]:
    stops, reached = _stops, Reached

    async def stop_here(*args: Any, **kwargs: Any) -> T:
        if stops(args, find_request):
            raise reached
        return await view(*args, **kwargs)

    marked: Callable[..., Awaitable[T]] = _like(view, stop_here)
    return marked


def _like(view: Callable[..., Any], wrapper: Any) -> Any:
    """The wrapper as frameworks see the view: they resolve annotations in the globals of the function they are given.

    So the wrapper's own code must name no globals.
    """
    scope: dict[str, Any] = getattr(inspect.unwrap(view), "__globals__", wrapper.__globals__)
    made = FunctionType(wrapper.__code__, scope, wrapper.__name__, None, wrapper.__closure__)
    return functools.wraps(view)(made)


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
def _stopping_at_marks(request: object) -> Generator[None, None, None]:
    """Views that are called in this context, or with this request, stop at their mark and raise ``Reached``."""
    token = _stopping.set(True)
    setattr(request, _STOPS, True)
    try:
        yield
    finally:
        delattr(request, _STOPS)
        _stopping.reset(token)


def call_to_mark(request: object, view: Callable[[], T]) -> T | None:
    """The response of a view above its mark; None if the view lets the request through. Raises what the view raises."""
    with _stopping_at_marks(request):
        try:
            return view()
        except Reached:
            return None


async def acall_to_mark(request: object, view: Callable[[], Awaitable[T]]) -> T | None:
    """``call_to_mark`` for coroutines."""
    with _stopping_at_marks(request):
        try:
            return await view()
        except Reached:
            return None
