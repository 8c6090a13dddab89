"""The place of ``@idempotent`` in a view: what stands above it lets a request through, or does not, on every try.

A decorator above the mark (``permission_required``, ``roles_required``) refuses who may no longer do something. So it
is asked before a response of an earlier try is sent again: the view is called, and comes as far as the mark.
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

_PLACE = "_open_idempotency_place"
_ASKED = "_open_idempotency_asked"
_TELLING = (409, 422)
_asking: ContextVar[bool] = ContextVar("open_idempotency_asking", default=False)


class Reached(BaseException):
    """The view was called to see whether it lets the request through, and has. Never seen by an application.

    No ``Exception``, so that a framework's or a view's own error handling does not take it for one.
    """


def placed(view: Any, find_request: Callable[[], object] | None = None) -> Any:
    """The view, which stops at this place while it is only asked. A class, or a callable object, as it is.

    ``find_request``: the request that is under way, where it is not the view's first argument, or a method's second.
    """
    if not inspect.isfunction(view) or hasattr(view, _PLACE):
        return view
    wrapper = (_awaited if inspect.iscoroutinefunction(view) else _plain)(view, find_request)
    setattr(wrapper, _PLACE, wrapper)
    return wrapper


def _is_asked(args: tuple[Any, ...], find_request: Callable[[], object] | None) -> bool:
    """Whether this call is a question only, also in a thread whose context a decorator has not copied."""
    if _asking.get():
        return True
    requests = args[:2] if find_request is None else (find_request(),)
    return any(getattr(each, _ASKED, False) is True for each in requests)


def _plain(view: Callable[..., T], find_request: Callable[[], object] | None) -> Callable[..., T]:
    @functools.wraps(view)
    def stop_here(*args: Any, **kwargs: Any) -> T:
        if _is_asked(args, find_request):
            raise Reached
        return view(*args, **kwargs)

    return stop_here


def _awaited(
    view: Callable[..., Awaitable[T]], find_request: Callable[[], object] | None
) -> Callable[..., Awaitable[T]]:
    @functools.wraps(view)
    async def stop_here(*args: Any, **kwargs: Any) -> T:
        if _is_asked(args, find_request):
            raise Reached
        return await view(*args, **kwargs)

    return stop_here


def has_something_above(view: Any) -> bool:
    """Whether a view is marked, and wrapped in something that keeps its attributes, as ``functools.wraps`` does."""
    return getattr(view, _PLACE, view) is not view


def is_placed(view: Any) -> bool:
    """Whether a view, or what it is wrapped around, is marked."""
    return hasattr(view, _PLACE)


def tells_of_a_record(answer: Response) -> bool:
    """Whether an answer of ours depends on an earlier request: a replay, 409 or 422."""
    return REPLAYED in answer.headers or answer.status in _TELLING


@contextmanager
def asking(request: object) -> Generator[None, None, None]:
    """Views that are called in here with this request stop where they are marked: ``Reached``."""
    mark = _asking.set(True)
    setattr(request, _ASKED, True)
    try:
        yield
    finally:
        delattr(request, _ASKED)
        _asking.reset(mark)


def ask(request: object, view: Callable[[], T]) -> T | None:
    """What a view answers above its mark; None if it lets the request through. Raises what the view raises there."""
    with asking(request):
        try:
            return view()
        except Reached:
            return None


async def aask(request: object, view: Callable[[], Awaitable[T]]) -> T | None:
    """The same, awaited."""
    with asking(request):
        try:
            return await view()
        except Reached:
            return None
