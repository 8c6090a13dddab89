"""What may name the caller of a request: a ``scope=`` callable, a decoded session, a cookie.

A ``scope=`` callable may refuse a request as not authenticated or not permitted (O-20): by ``NotAuthenticated``, or by
what its framework raises for a 401 or a 403. Such exceptions are recognised by the names of their classes, so no
framework is imported here. Every other exception of the callable is a mistake in it, also one that has a status: the
clients of other services raise exceptions with the status that those services responded with, and a 401 that this
server got is not meant for its own client.

A decoded session names a caller (O-19) as reliably as a user that a framework passes on: an outer layer has verified
its signature, or found its record on the server. The text of a cookie proves nothing, since sessions are signed anew
and load balancers set cookies of their own. It only shows that the caller might be known (O-19a).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any
from uuid import UUID

from open_idempotency._core import problems
from open_idempotency.exceptions import CHALLENGE, NotAuthenticated, ScopeUnknown, is_challenge
from open_idempotency.policy import NO_IDENTITY

#: exceptions by which a handler ends a request, and the attribute that has the status; FastAPI's are Starlette's
_STATUS_OF = {
    ("starlette.exceptions", "HTTPException"): "status_code",
    ("rest_framework.exceptions", "APIException"): "status_code",
    ("ninja.errors", "HttpError"): "status_code",
    ("werkzeug.exceptions", "HTTPException"): "code",
}
# Django's exception has no status; its handler makes a 403 of it.
_FIXED = {("django.core.exceptions", "PermissionDenied"): 403}
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
    for kind in type(error).__mro__:
        name = kind.__module__, kind.__qualname__
        if name in _FIXED:
            return _FIXED[name]
        if name in _STATUS_OF:
            status = getattr(error, _STATUS_OF[name], None)
            if status is None:  # werkzeug's may carry a whole response instead
                status = getattr(getattr(error, "response", None), "status_code", None)
            return status if status in (401, 403) else None
    return None


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


# Sessions and cookies: whom they name (O-19, O-19a)

# Members of an entry that is an account, such as the claims of an OpenID provider. Never a name or an address: two
# people may have one name, and an address changes hands.
_IDS = ("sub", "user_id", "id", "uid", "pk")
# Authlib stores the whole token response of a provider, with the account's claims as one member.
_CLAIMS = "userinfo"
# Anonymous visitors get a CSRF token too.
_NOT_OF_CALLERS = ("csrf", "xsrf")
_OWN_ENTRY = "_open_idempotency"
#: how many cookies, and how many entries of the session, a warning names
_NAMED = 5


def entries_of(session: object) -> dict[str, Any]:
    """A copy of the entries of a decoded session; empty if the session is no mapping.

    Sessions note that they were read, and then the response would vary by cookie. Nearly all sessions are a kind of
    dict (Flask, Flask-Session, Starlette), and are read as a plain dict.
    """
    if isinstance(session, dict):
        return dict(dict.items(session))
    return dict(session) if isinstance(session, Mapping) else {}


def named_by_session(session: Mapping[str, object] | None, names: tuple[str, ...]) -> str | None:
    """The caller that a session names, as text; None if it names nobody.

    The first of these entries that names somebody counts. None, booleans and empty values name nobody: a logout leaves
    them. The name of the entry is part of the caller, as ``user_id`` 7 need not be ``uid`` 7. Raises ``ScopeUnknown``
    for an entry that is no id, and for an account without an id.
    """
    if not session:
        return None
    for name in names:
        value = session.get(name)
        found = _of_account(name, value) if isinstance(value, Mapping) else _member(session, name, name)
        if found is not None:
            return json.dumps(found)
    return None


def _member(holder: Mapping[str, object], name: str, entry: str) -> list[str] | None:
    """The id in a member of the session, or of an account in it. ``entry``: the member's name in the session."""
    text = _text(entry, holder[name]) if name in holder else None
    if text is None:
        return None
    issuer = holder.get("iss")
    # A subject is unique for one issuer only (RFC 7519, section 4.1.2).
    return [entry, text, issuer] if name == "sub" and isinstance(issuer, str) else [entry, text]


def _of_account(entry: str, account: Mapping[str, object]) -> list[str] | None:
    claims = account.get(_CLAIMS)
    holder: Mapping[str, object] = claims if isinstance(claims, Mapping) else account
    known = [name for name in _IDS if name in holder]
    if holder and not known:
        raise ScopeUnknown(
            f"the session's entry {entry!r} is a mapping with none of {', '.join(_IDS)} in it, so it does not name "
            "the caller; name the entry that holds the caller's id by session_identity=, or pass scope="
        )
    for name in known:
        found = _member(holder, name, f"{entry}.{name}")
        if found is not None:
            return found
    return None


def _text(entry: str, value: object) -> str | None:
    """An id as text; None for nobody. Only types whose text is the same in every process are accepted."""
    if isinstance(value, str):
        return str.__str__(value) if value.strip() else None
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, int):
        return _digits(entry, int(value))
    if isinstance(value, UUID):
        return str(value)
    if not value:
        return None
    raise ScopeUnknown(
        f"the session's entry {entry!r} is a {type(value).__name__}, and an id is a string, an integer or a UUID; name "
        "the entry that holds the caller's id by session_identity=, or pass scope="
    )


def _digits(entry: str, number: int) -> str:
    try:
        return str(number)
    except ValueError:  # sys.set_int_max_str_digits: Python writes no number of more digits
        raise ScopeUnknown(
            f"the session's entry {entry!r} is a number of more digits than Python writes, so it does not name the "
            "caller; name the entry that holds the caller's id by session_identity=, or pass scope="
        ) from None


def cookie_names(headers: Iterable[bytes]) -> tuple[str, ...]:
    """The names of the first few cookies by which a caller might be known. ``headers``: their values.

    CSRF tokens do not count.
    """
    return tuple(islice(filter(_may_be_of_caller, _cookies(headers)), _NAMED))


def entry_names(session: Mapping[str, object] | None) -> tuple[str, ...]:
    """The names of the first few entries of a session by which a caller might be known.

    CSRF tokens do not count, nor does what frameworks store beside the user.
    """
    names = (str(name) for name in session or () if name != _OWN_ENTRY and name not in NO_IDENTITY)
    return tuple(islice(filter(_may_be_of_caller, names), _NAMED))


def _cookies(headers: Iterable[bytes]) -> Iterator[str]:
    for header in headers:
        for pair in header.split(b";"):
            name, separator, _ = pair.partition(b"=")
            # Without a separator all of it is a value.
            if separator and name.strip():
                yield name.strip().decode("latin-1")


def _may_be_of_caller(name: str) -> bool:
    return not any(part in name.lower() for part in _NOT_OF_CALLERS)
