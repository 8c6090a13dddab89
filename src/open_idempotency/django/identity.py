"""Who the caller is, as far as Django's authentication has verified it (O-19).

A lazy ``request.user`` is loaded only if there is a session, so that a request without a session loads none. REST
framework's views authenticate for themselves; ``rest`` calls their authenticators.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any
from uuid import UUID

from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.auth import HASH_SESSION_KEY
from django.contrib.sessions.backends.base import SessionBase
from django.db import DEFAULT_DB_ALIAS, connections, router
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.functional import LazyObject, empty

from open_idempotency._core.caller_changes import Change
from open_idempotency._core.identity import entries_of
from open_idempotency._core.keys import Caller
from open_idempotency._core.models import Identity
from open_idempotency.django import identity, rest
from open_idempotency.exceptions import ScopeUnknown

_SESSION_AUTHENTICATION = "django.contrib.auth.middleware"


def identify(request: HttpRequest, lend: rest.Lend) -> Identity:
    """The authenticated user, or an anonymous caller's session; and the tenant, if the project has tenants."""
    name = _identify(request, lend)
    return Identity(name, tenant(request), None if name is not None else read_session(request))


async def aidentify(request: HttpRequest, lend: rest.Lend) -> Identity:
    """``identify``, without blocking the event loop."""
    name = await _aidentify(request, lend)
    if name is not None:
        return Identity(name, await atenant(request))
    session = read_session(request) if _is_at_hand(request) else await sync_to_async(read_session)(request)
    return Identity(None, await atenant(request), session)


async def atenant(request: HttpRequest) -> str:
    """``tenant``, awaited. A lazy tenant is read from the database, in Django's own thread."""
    lazy = issubclass(type(getattr(request, "tenant", None)), LazyObject)
    return await sync_to_async(tenant)(request) if lazy else tenant(request)


def read_session(request: HttpRequest) -> dict[str, Any] | None:
    """A copy of the entries of a request's session, which may name the caller (O-19); None without a session.

    A session is loaded only if the client has presented one. It does not count as accessed, so the response does not
    begin to vary by cookie. Its key is never among the entries.
    """
    session: Any = getattr(request, "session", None)
    if not isinstance(session, SessionBase):
        return entries_of(session) or None
    if session.is_empty():
        return None
    accessed = session.accessed
    try:
        return dict(session.items())
    finally:
        session.accessed = accessed


def _is_at_hand(request: HttpRequest) -> bool:
    """Whether the session can be read without loading it, which may block."""
    session: Any = getattr(request, "session", None)
    return not isinstance(session, SessionBase) or session.is_empty() or hasattr(session, "_session_cache")


def tenant(request: HttpRequest) -> str:
    """The tenant of a request: ``request.tenant`` and the schema of the default connection; "" if there are none.

    Packages for tenants set one of them, or both. Raises ``ScopeUnknown`` for a tenant that has no identity.
    """
    schema = getattr(connections[DEFAULT_DB_ALIAS], "schema_name", None)
    found: Any = getattr(request, "tenant", None)
    if not found and not schema:
        return ""
    return json.dumps([None if not found else _name_of_tenant(found), None if schema is None else str(schema)])


def _name_of_tenant(found: Any) -> str:
    if isinstance(found, str | int | UUID):
        return str(found)
    for name in ("pk", "id", "schema_name", "slug"):
        value = getattr(found, name, None)
        if isinstance(value, str | int | UUID) and str(value):
            return f"{name}:{value}"
    raise ScopeUnknown(
        f"request.tenant, a {type(found).__name__}, has no pk, id, schema_name or slug; set IDEMPOTENCY_SCOPE to a "
        "callable that names tenant and user"
    )


def _identify(request: HttpRequest, lend: rest.Lend) -> str | None:
    """The authenticated user's primary key; None for an anonymous one or without authentication.

    In a REST framework view it is the user whom the view's authenticators verify, or Django's own user if they verify
    none. ``lend`` lends the body to the authenticators. Raises ``ScopeUnknown`` for an authenticated user without a
    primary key.
    """
    view = rest.find_authenticating_view(request)
    name = None if view is None else _name_in_view(request, view, lend)
    if name is not None:
        return name
    user: Any = getattr(request, "user", None)
    return None if user is None or _is_surely_anonymous(request, user) else _name(user)


async def _aidentify(request: HttpRequest, lend: rest.Lend) -> str | None:
    """``_identify``, awaited: REST framework's authenticators run in Django's own thread."""
    view = rest.find_authenticating_view(request)
    name = None if view is None else await sync_to_async(_name_in_view)(request, view, lend)
    if name is not None:
        return name
    user: Any = getattr(request, "user", None)
    return None if user is None or _is_surely_anonymous(request, user) else await _aname(request, user)


async def _aname(request: HttpRequest, user: Any) -> str | None:
    if not is_unloaded(user):
        return _name(user)
    if _is_of_session(user) and hasattr(request, "auser"):
        return _name(await request.auser())
    # Django 4.2, or another middleware's lazy user: only Django's own thread may load it, as it has the connection.
    return await sync_to_async(_name)(user)


def name_after(request: HttpRequest, before: str | None) -> str | None:
    """The caller after the view, which may have logged a user in or out; ``before`` if that is unknown."""
    user: Any = getattr(request, "user", None)
    if user is None or is_unloaded(user):
        return before
    try:
        return _name(user)
    except ScopeUnknown:
        return before


def _name_in_view(request: HttpRequest, view: Any, lend: rest.Lend) -> str | None:
    user: Any = getattr(request, "user", None)
    if user is not None and _is_surely_anonymous(request, user):
        from django.contrib.auth.models import AnonymousUser

        user = AnonymousUser()  # so an authenticator that reads it does not load the session
    return _name(rest.find_user(request, view, user, lend))


def is_unloaded(user: Any) -> bool:
    """Whether a user is a lazy object that was not loaded yet."""
    return issubclass(type(user), LazyObject) and vars(user).get("_wrapped") is empty


def _is_of_session(user: Any) -> bool:
    """Whether a lazy user was set by AuthenticationMiddleware, and not replaced by another middleware."""
    return getattr(vars(user).get("_setupfunc"), "__module__", None) == _SESSION_AUTHENTICATION


def _is_surely_anonymous(request: HttpRequest, user: Any) -> bool:
    """Whether an empty session proves that there is no user. Loading it would add Vary: Cookie to the response."""
    return is_unloaded(user) and _is_of_session(user) and request.session.is_empty()


def _name(user: Any) -> str | None:
    if not getattr(user, "is_authenticated", False):
        return None
    key = getattr(user, "pk", None)
    if key is None or not str(key):
        raise ScopeUnknown("request.user is authenticated and has no primary key; set IDEMPOTENCY_SCOPE")
    # Users of different models can have the same primary key.
    label = getattr(getattr(user, "_meta", None), "label", settings.AUTH_USER_MODEL)
    name = str(key) if label == settings.AUTH_USER_MODEL else f"{label}:{key}"
    # So can users of different databases. This takes the database for writing, since a router may choose another
    # replica for each request.
    database = router.db_for_write(user.__class__, instance=user) if hasattr(user, "_state") else DEFAULT_DB_ALIAS
    return name if database == DEFAULT_DB_ALIAS else f"{database}:{name}"


_NAME = "_open_idempotency"
# A session is loaded with each request, so it carries only the last few records.
_MOST = 3


def _is_in_cookies() -> bool:
    return str(settings.SESSION_ENGINE).endswith(".signed_cookies")


class SessionTrace:
    """The session of one request, read only if it is loaded already, so that none is loaded for this."""

    __slots__ = ("_hash", "_presented", "_request")

    def __init__(self, request: HttpRequest) -> None:
        self._request = request
        self._presented: str | None = request.COOKIES.get(settings.SESSION_COOKIE_NAME)
        #: the digest of the user's password in the session
        self._hash: object = None

    def carried(self, caller: Caller) -> bytes | None:
        """The record that began this session, if it was this same request, for the user whom the session names now."""
        session = self._loaded()
        if session is None or not caller.named:
            return None
        content = identity.read_session(self._request) or {}
        self._hash = content.get(HASH_SESSION_KEY)
        began = content.get(_NAME)
        found = began.get(caller.own.hex()) if isinstance(began, dict) else None
        return bytes.fromhex(found) if isinstance(found, str) else None

    def lost(self) -> str | None:
        """The digest of the session's secret, if the client presents a session that no longer exists."""
        session = self._loaded()
        if session is None or not self._presented:
            return None
        # A session in a cookie stays valid for every client that presents it, unless its password was changed.
        gone = session.is_empty() if _is_in_cookies() else session.session_key != self._presented
        return self._digest() if gone else None

    def _digest(self) -> str:
        assert self._presented is not None
        return hashlib.sha256(self._presented.encode()).hexdigest()

    def change(self, caller: Caller, record_id: bytes, response: HttpResponseBase) -> Change | None:
        """The change that the view has made to the caller, or None."""
        session = self._loaded()
        if session is None or not (session.modified or self._names_no_user(session)):
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
        """The digest of the session that the request presented, if that session no longer names a user."""
        if not self._presented:
            return None
        if _is_in_cookies():
            ended = session.get(HASH_SESSION_KEY, self._hash) != self._hash
        else:
            ended = session.session_key != self._presented
        return self._digest() if ended or self._names_no_user(session) else None

    def _names_no_user(self, session: Any) -> bool:
        """Whether the session has the user's old password, so that it ends at its next use."""
        user: Any = getattr(self._request, "user", None)
        if not self._hash or user is None or identity.is_unloaded(user) or not hasattr(user, "get_session_auth_hash"):
            return False
        try:
            return bool(session.get(HASH_SESSION_KEY, self._hash) != user.get_session_auth_hash())
        except Exception:  # of the project's user model: an error must not lose the view's outcome
            return False

    def must_save(self, change: Change, response: HttpResponseBase) -> bool:
        """Whether the session was saved before this change, because this middleware is listed before the session's."""
        return change.carried and settings.SESSION_COOKIE_NAME in response.cookies

    def save(self, change: Change) -> Change:
        """Save the session again. Returns the change as it is then. Never raises, so the outcome is kept."""
        try:
            self._request.session.save()
        except Exception:
            return replace(change, carried=False)
        return change

    def _is_sent(self, response: HttpResponseBase) -> bool:
        """Whether the whole session is in a cookie of the response already."""
        return _is_in_cookies() and settings.SESSION_COOKIE_NAME in response.cookies

    def _loaded(self) -> Any:
        session = getattr(self._request, "session", None)
        return session if session is not None and hasattr(session, "_session_cache") else None
