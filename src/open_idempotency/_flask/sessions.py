"""Flask's session: whom it names (O-19), and whether the view has changed the caller (O-14).

The session is in a cookie, so a client that has lost the response goes on with the session that it sent. The session
that the view has changed carries the id of the record.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import globals as flask_globals
from flask import session
from flask.sessions import NullSession

from open_idempotency._core.caller_changes import Change
from open_idempotency._core.callers import Caller
from open_idempotency._core.requests import Identity
from open_idempotency._core.session_identity import entries_of

_NAME = "_open_idempotency"
# Cookies are small: only the last record is carried.


class SessionTrace:
    """The session of one request. Reading it changes no response."""

    __slots__ = ()

    def carried(self, caller: Caller) -> bytes | None:
        """The record at which this session began, if this very request began it, and for the user that it names now."""
        began = read_session().get(_NAME) if caller.named else None
        found = began.get(caller.own.hex()) if isinstance(began, dict) else None
        return bytes.fromhex(found) if isinstance(found, str) else None

    def lost(self) -> str | None:
        """None: a session in a cookie has no end on the server."""
        return None

    def change(self, caller: Caller, record_id: bytes, identify: Callable[[], Identity]) -> Change | None:
        """The change that the view has made to the caller, or None. To be called before the session is saved.

        ``identify``: who the caller is now.
        """
        here = _session()
        try:
            identity = identify()
        except Exception:  # an error must not lose the view's outcome
            identity = Identity(None)
        # A session that is not marked as modified is not saved.
        if not getattr(here, "modified", True) and (callable(caller.policy.scope) or identity == caller.identity):
            return None
        now = caller.record(identity)
        if now == caller.own:
            return None
        if now is None or not caller.names(identity) or isinstance(here, NullSession):
            return Change(carried=False)
        session[_NAME] = {now.hex(): record_id.hex()}
        return Change(carried=True)


def read_session() -> dict[str, Any]:
    """A copy of the entries of the session. Reading them changes no response."""
    return entries_of(_session())


def _session() -> Any:
    """The session itself. Since Flask 3.1.3 its proxy marks it as accessed, so it is read from the context."""
    context: Any = vars(flask_globals).get("request_ctx")
    held = {} if context is None else vars(context._get_current_object())
    for name in ("_session", "session"):
        if held.get(name) is not None:
            return held[name]
    return session._get_current_object()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]  # a LocalProxy, typed as what it stands for
