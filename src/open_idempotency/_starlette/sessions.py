"""What Starlette's session tells of a request whose view changes the caller (O-14).

The session is in a cookie, so the one with which a request came goes on for a client that has lost the response. Who a
changed session names is known to the application's own authentication, when the next request comes. So the session
carries the id of the record, and a digest of what it was when the view had ended. It is believed if it is still that,
and if it names the user who was verified. Where the session itself names the caller (O-19), or ``scope=`` does, the new
caller is known at once, and the session carries the id of the record for that caller.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import MutableMapping
from typing import Any

from open_idempotency._core.caller_changes import Change
from open_idempotency._core.callers import Caller
from open_idempotency._core.session_identity import entries_of

_NAME = "_open_idempotency"


class SessionTrace:
    """The session of one request, which a ``SessionMiddleware`` has opened. Looking at it leaves no trace.

    ``sent``: the ``SessionMiddleware`` is inside, so its cookie is written before ``change`` can be asked.
    """

    __slots__ = ("_before", "_sent", "_session", "_told")

    def __init__(self, session: MutableMapping[str, Any], *, sent: bool = False) -> None:
        self._session = session
        self._sent = sent
        self._told = False
        self._before = self._content()

    def carried(self, caller: Caller) -> bytes | None:
        """The record of the request that made this session what it is, if that was this very request."""
        content = self._content()
        began = content.get(_NAME)
        if not isinstance(began, dict):
            return None
        if _is_of_application(caller):
            found = began.get(self._seal(caller)) if _names(content, caller.user) else None
        else:
            found = began.get(caller.own.hex()) if caller.named else None
        return bytes.fromhex(found) if isinstance(found, str) else None

    def lost(self) -> str | None:
        """Nothing: a session in a cookie has no end on the server."""
        return None

    def change(self, caller: Caller, record_id: bytes) -> Change | None:
        """What the view has made of the caller; None where nothing tells of it. To be asked before the session leaves.

        A session that the view has changed at all carries the record: it may name another user by now.
        """
        content = self._content()
        if self._told or content == self._before:
            return None
        self._told = True
        names: list[str] = []
        if _is_of_application(caller):
            changed = followed = _names(self._before, caller.user) and not _names(content, caller.user)
        else:
            after = caller.as_left(None, content)
            now = caller.record(after)
            changed = now != caller.own
            followed = changed and now is not None and caller.names(after)
            if followed and now is not None:
                names.append(now.hex())
        if not callable(caller.policy.scope):
            # The application's authentication may hand on a verified user whom it knows by this session.
            names.append(self._seal(caller))
        if self._sent:
            return Change(False) if changed else None
        if names and content:
            self._session[_NAME] = dict.fromkeys(names, record_id.hex())
        return Change(followed and bool(content)) if changed else None

    def _content(self) -> dict[str, Any]:
        return entries_of(self._session)

    def _seal(self, caller: Caller) -> str:
        content = {name: value for name, value in self._content().items() if name != _NAME}
        # As it will be read from the cookie: keys are text there.
        text = json.dumps(json.loads(json.dumps(content, default=str)), sort_keys=True)
        return caller.of_session(hashlib.sha256(text.encode()).hexdigest()).hex()


def _is_of_application(caller: Caller) -> bool:
    """Whether the application's authentication has said who the caller is."""
    return caller.user is not None and not callable(caller.policy.scope)


def _names(content: dict[str, Any], user: str | None) -> bool:
    """Whether a session says who the user is, so that it is the session by which that is known."""
    return user is not None and any(type(value) in (str, int) and str(value) == user for value in content.values())
