"""What Django's session tells of a request whose view changes the caller (O-14).

``login()``, ``logout()``, ``cycle_key()`` and ``update_session_auth_hash()`` end the session with which the request
came: its secret names nobody any more. The session that a login begins carries the id of the record.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from django.conf import settings
from django.contrib.auth import HASH_SESSION_KEY
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from open_idempotency._core.caller_changes import Caller, Change
from open_idempotency.django import identity

_NAME = "_open_idempotency"
# A session is loaded with each request: it keeps the last few.
_MOST = 3


def _is_in_cookies() -> bool:
    return str(settings.SESSION_ENGINE).endswith(".signed_cookies")


class SessionTrace:
    """The session of one request, asked only where it is loaded already, so that none is loaded for it."""

    __slots__ = ("_hash", "_presented", "_request")

    def __init__(self, request: HttpRequest) -> None:
        self._request = request
        self._presented: str | None = request.COOKIES.get(settings.SESSION_COOKIE_NAME)
        #: what stands for the user's password in the session
        self._hash: object = None

    def carried(self, caller: Caller) -> bytes | None:
        """The record at which this session began, if it was by this request, and by the user that it has now."""
        session = self._loaded()
        if session is None or not caller.named:
            return None
        content = identity.read_session(self._request) or {}
        self._hash = content.get(HASH_SESSION_KEY)
        began = content.get(_NAME)
        found = began.get(caller.own.hex()) if isinstance(began, dict) else None
        return bytes.fromhex(found) if isinstance(found, str) else None

    def lost(self) -> str | None:
        """The digest of the session's secret, where the client presents one that is nobody's."""
        session = self._loaded()
        if session is None or not self._presented:
            return None
        # A session that is all in its cookie goes on for whoever presents it, unless its password was changed.
        gone = session.is_empty() if _is_in_cookies() else session.session_key != self._presented
        return self._digest() if gone else None

    def _digest(self) -> str:
        assert self._presented is not None
        return hashlib.sha256(self._presented.encode()).hexdigest()

    def change(self, caller: Caller, record_id: bytes, response: HttpResponseBase) -> Change | None:
        """What the view has made of the caller; None where it is the same."""
        session = self._loaded()
        if session is None or not (session.modified or self._names_nobody(session)):
            return None
        custom = callable(caller.policy.scope)
        user = None if custom else identity.name_after(self._request, caller.user)
        after = caller.as_left(user, identity.read_session(self._request))
        now = caller.record(after)
        lost = self._ended(session) if caller.named else None
        if now == caller.own:
            return None if lost is None else Change(True, lost)
        if now is None or not caller.names(after) or self._is_sent(response):
            return Change(False, lost)
        began = session.get(_NAME)
        kept = list(began.items())[1 - _MOST :] if isinstance(began, dict) else []
        session[_NAME] = {**dict(kept), now.hex(): record_id.hex()}
        return Change(True, lost)

    def _ended(self, session: Any) -> str | None:
        """The digest of the session with which the request came, if nobody is known by it any more."""
        if not self._presented:
            return None
        if _is_in_cookies():
            ended = session.get(HASH_SESSION_KEY, self._hash) != self._hash
        else:
            ended = session.session_key != self._presented
        return self._digest() if ended or self._names_nobody(session) else None

    def _names_nobody(self, session: Any) -> bool:
        """Whether the user has a new password, and the session the old one still: it ends when it is next looked at."""
        user: Any = getattr(self._request, "user", None)
        if not self._hash or user is None or identity.is_unloaded(user) or not hasattr(user, "get_session_auth_hash"):
            return False
        try:
            return bool(session.get(HASH_SESSION_KEY, self._hash) != user.get_session_auth_hash())
        except Exception:  # a model of the project's own: the view's outcome must not be lost for it
            return False

    def must_save(self, change: Change, response: HttpResponseBase) -> bool:
        """Whether the session was saved before it was told: the middleware is listed outside of the session's."""
        return change.carried and settings.SESSION_COOKIE_NAME in response.cookies

    def save(self, change: Change) -> Change:
        """Save it once more; what became of it. The view's outcome must not be lost for it."""
        try:
            self._request.session.save()
        except Exception:
            return replace(change, carried=False)
        return change

    def _is_sent(self, response: HttpResponseBase) -> bool:
        """Whether all of it is in a cookie of the response by now."""
        return _is_in_cookies() and settings.SESSION_COOKIE_NAME in response.cookies

    def _loaded(self) -> Any:
        session = getattr(self._request, "session", None)
        return session if session is not None and hasattr(session, "_session_cache") else None
