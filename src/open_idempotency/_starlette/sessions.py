"""Starlette's session follows a request whose view changes the caller (O-14).

The session is in a cookie, so a client that has lost the response goes on with the session that it sent. The
application's own authentication decides, at the next request, whom a changed session names. So the session carries the
id of the record, and a digest of its content after the view. A retry is led to the record if the content is still the
same, and names the user who was verified. If the session itself names the caller (O-19), or ``scope=`` does, the new
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
    """The session of one request, opened by a ``SessionMiddleware``. Reading it changes no response.

    ``sent``: the ``SessionMiddleware`` is inside, so its cookie is written before ``change`` can be asked.
    """

    __slots__ = ("_before", "_reported", "_sent", "_session")

    def __init__(self, session: MutableMapping[str, Any], *, sent: bool = False) -> None:
        self._session = session
        self._sent = sent
        self._reported = False
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
        """None: a session in a cookie has no end on the server."""
        return None

    def change(self, caller: Caller, record_id: bytes) -> Change | None:
        """The change that the view has made to the caller; None without one. To be called before the session is sent.

        Every session that the view has changed carries the record, since it may name another user now.
        """
        content = self._content()
        if self._reported or content == self._before:
            return None
        self._reported = True
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
            # The application's authentication may pass on a verified user whom it knows by this session.
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
    """Whether the application's authentication has verified the caller."""
    return caller.user is not None and not callable(caller.policy.scope)


def _names(content: dict[str, Any], user: str | None) -> bool:
    """Whether a session contains the user, so that it is the session by which the user is known."""
    return user is not None and any(type(value) in (str, int) and str(value) == user for value in content.values())
