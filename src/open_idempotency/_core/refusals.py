"""Exceptions of a ``scope=`` callable that say that a request is not authenticated, or not permitted (O-20).

These are ``NotAuthenticated`` and whatever the frameworks raise for a 401 or a 403. They are recognised by their
attributes, so no framework is imported here. Every other exception of the callable is a mistake in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from open_idempotency._core import problems
from open_idempotency.exceptions import CHALLENGE, NotAuthenticated, ScopeUnknown, is_challenge

# Django's exception has no status; its handler makes a 403 of it. Compared by name: the class may not be loaded.
_FORBIDDEN = ("django.core.exceptions", "PermissionDenied")
_CHALLENGE_HEADER = "www-authenticate"


class ScopeRefused(ScopeUnknown):
    """The ``scope=`` callable has refused the request. Code that does not catch it sees a ``ScopeUnknown``."""

    def __init__(self, error: Exception, http_status: int) -> None:
        super().__init__(f"the scope= callable refused the request: {type(error).__name__}")
        self.error = error
        self.http_status = http_status

    def problem(self) -> problems.Problem:
        """The problem to send if the framework makes no response of the error."""
        detail = _detail(self.error)
        if self.http_status == 403:
            return problems.forbidden(detail or "This caller may not send this request.")
        detail = detail or "This request has no credentials that name its caller."
        return problems.not_authenticated(detail, _challenge(self.error))


def refused_status(error: Exception) -> int | None:
    """401 or 403 if an exception stands for such a response; None for every other exception."""
    if isinstance(error, NotAuthenticated):
        return error.status
    status = getattr(error, "status_code", None)
    if status is None and callable(
        getattr(error, "get_response", None)
    ):  # werkzeug's; other exceptions have a code too
        status = getattr(error, "code", None) or getattr(getattr(error, "response", None), "status_code", None)
    if status is None and any((kind.__module__, kind.__qualname__) == _FORBIDDEN for kind in type(error).__mro__):
        status = 403
    return status if isinstance(status, int) and status in (401, 403) else None


def _detail(error: Exception) -> str:
    """The text of the exception that is meant for clients. The text of an unknown exception may not be."""
    if isinstance(error, NotAuthenticated):
        return str(error)
    for name in ("detail", "description"):
        said = getattr(error, name, None)
        if isinstance(said, str):
            return str(said)
    return ""


def _challenge(error: Exception) -> str:
    """The value of ``WWW-Authenticate`` that the exception carries, in the way of its framework."""
    carried: list[Any] = [getattr(error, "challenge", None), getattr(error, "auth_header", None)]
    get_headers = getattr(error, "get_headers", None)
    headers: Any = get_headers() if callable(get_headers) else getattr(error, "headers", None)
    carried.append(_joined(headers))
    return next((one for one in carried if is_challenge(one)), CHALLENGE)


def _joined(headers: Any) -> str:
    """All challenges among headers, a mapping or pairs, as one value (RFC 9110, section 5.3)."""
    pairs: Iterable[Any] = headers.items() if isinstance(headers, Mapping) else headers or ()
    return ", ".join(str(value) for name, value in pairs if str(name).lower() == _CHALLENGE_HEADER)
