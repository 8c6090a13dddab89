"""Flask's contexts by the names that they have in each of its versions. These names are not documented.

Flask 2.1 keeps stacks of contexts; later versions have proxies, and the latest have one kind of context only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from flask import Request, request
from flask import globals as flask_globals

if TYPE_CHECKING:
    from werkzeug.local import LocalProxy

_NAMES = vars(flask_globals)


def current_request() -> Request:
    """The request object behind Flask's proxy."""
    proxy = cast("LocalProxy[Request]", request)
    return proxy._get_current_object()  # pyright: ignore[reportPrivateUsage]  # documented by Werkzeug


def request_context() -> Any:
    """The context of the current request, or the one context that the latest versions have; None without one."""
    return _current("request_ctx", "_request_ctx_stack") or app_context()


def app_context() -> Any:
    """The current context of the application; None without one."""
    return _current("app_ctx", "_app_ctx_stack")


def _current(proxy: str, stack: str) -> Any:
    # asked for by name each time: a later version warns of the names that it no longer wants
    if proxy in _NAMES:
        try:
            return _NAMES[proxy]._get_current_object()
        except RuntimeError:  # there is none
            return None
    return _NAMES[stack].top if stack in _NAMES else None
