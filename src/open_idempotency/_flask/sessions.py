"""What Flask's session tells of a request whose view changes the caller, as Flask-Login sees it (O-14).

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
    """The session of one request. It is looked at only where Flask-Login has found somebody in it."""

    __slots__ = ("_identify",)

    def __init__(self, identify: Callable[[], str | None]) -> None:
        self._identify = identify

    def carried(self, caller: Caller) -> bytes | None:
        """The record at which this session began, if it was by this request, and by the user that it has now."""
        began: Any = None if caller.user is None else session.get(_NAME)
        found = began.get(caller.record(caller.user).hex()) if isinstance(began, dict) else None
        return bytes.fromhex(found) if isinstance(found, str) else None

    def lost(self) -> str | None:
        """Nothing: a session in a cookie has no end on the server."""
        return None

    def change(self, caller: Caller, record_id: bytes) -> Change | None:
        """What the view has made of the caller; None where it is the same. To be asked before the session is saved."""
        try:
            user = self._identify()
        except Exception:  # the view's outcome must not be lost for it
            user = None
        if user == caller.user:
            return None
        carried = user is not None and not isinstance(session, NullSession)
        if carried:
            session[_NAME] = {caller.record(user).hex(): record_id.hex()}
        return Change(user, carried)
