"""What the core knows of HTTP: a request to be protected, and a response to be sent.

Adapters translate to and from these. Headers and bodies are bytes, in order, with duplicates; request header
names are lower-case.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

Headers = Sequence[tuple[bytes, bytes]]


class Body(Protocol):
    """A request body that was received whole, in memory or spooled to disk."""

    def chunks(self) -> Iterable[bytes]:
        """The bytes in order, in pieces of bounded size; may be called again."""
        ...

    def read(self) -> bytes:
        """The bytes in one piece."""
        ...

    def digest(self) -> bytes:
        """The SHA-256 of the bytes, which were hashed as they arrived where they are many."""
        ...


@dataclass(slots=True)
class Request:
    """A covered request, as ``scope=`` and ``fingerprint=`` callables see it.

    ``path`` and ``query`` are raw (percent-encoded). ``native`` is the framework's own request: the ASGI scope, the
    WSGI environ, Django's or Flask's request. ``body`` is None until it was received. ``alone``: the server works at no
    other request in this process meanwhile.
    """

    method: str
    path: bytes
    query: bytes
    headers: Headers
    native: Any
    body: Body | None = None
    alone: bool = False

    def header(self, name: bytes) -> list[bytes]:
        """All values of a header, given its lower-case name, in order."""
        return [value for header, value in self.headers if header == name]


class Identity(NamedTuple):
    """Who sent a request, as a framework knows it: the verified user, if any, and the tenant that the user belongs to.

    ``tenant``: "" where the application has none. Users of two tenants can have one name. ``session``: a copy of the
    decoded session of a request without a verified user, as that may name the caller (O-19); None without a session.
    """

    user: str | None
    tenant: str = ""
    session: Mapping[str, Any] | None = None


class Cors(NamedTuple):
    """What a layer inside has allowed the pages of one origin (R-11).

    ``origin``: the ``Origin`` of the request, empty without one; ``headers``: the ``Access-Control-*`` headers, their
    names in lower case.
    """

    origin: bytes
    headers: Headers


@dataclass(slots=True)
class Response:
    """A whole response. ``body`` is None where it was too large to be kept (a tombstone).

    ``omitted``: of a stored one, the names of the credentials that its first client was given and that are not stored.
    ``cors``: of a stored one, the ``Access-Control-*`` headers that its first client was given, with that client's
    ``Origin``.
    """

    status: int
    headers: Headers
    body: bytes | None
    omitted: bytes = field(default=b"", compare=False)
    cors: Cors | None = field(default=None, compare=False)
