"""What Flask's session tells of a request whose view changes the caller, as Flask-Login or ``scope=`` sees it (O-14).

The session is in a cookie, so the one with which a request came goes on for a client that has lost the response. The
session that a view makes of it carries the id of the record.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import session
from flask.sessions import NullSession

from open_idempotency._core.callers import Caller, Change

_NAME = "_open_idempotency"
# Cookies are small: only the last one is kept.


class SessionTrace:
    """The session of one request. It is looked at only where Flask-Login or ``scope=`` has found somebody."""

    __slots__ = ("_identify",)

    def __init__(self, identify: Callable[[], str | None]) -> None:
        self._identify = identify

    def carried(self, caller: Caller) -> bytes | None:
        """The record at which this session began, if it was by this request, and by the user that it has now."""
        # Asked as a plain dict: the session notes who reads it, and the response would begin to vary by cookie.
        began: Any = dict.get(_session(), _NAME) if caller.named else None
        found = began.get(caller.own.hex()) if isinstance(began, dict) else None
        return bytes.fromhex(found) if isinstance(found, str) else None

    def lost(self) -> str | None:
        """Nothing: a session in a cookie has no end on the server."""
        return None

    def change(self, caller: Caller, record_id: bytes) -> Change | None:
        """What the view has made of the caller; None where it is the same. To be asked before the session is saved."""
        custom = caller.policy.scope is not None
        if custom and not getattr(session, "modified", False):
            return None
        try:
            user = None if custom else self._identify()
        except Exception:  # the view's outcome must not be lost for it
            user = None
        now = caller.record(user)
        if now == caller.own:
            return None
        if now is None or (user is None and not custom) or isinstance(_session(), NullSession):
            return Change(carried=False)
        session[_NAME] = {now.hex(): record_id.hex()}
        return Change(carried=True)


def _session() -> dict[str, Any]:
    """The session itself, behind Flask's proxy; one that is no dict tells nothing."""
    found: Any = session._get_current_object()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    return found if isinstance(found, dict) else {}
