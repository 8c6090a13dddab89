"""The values of the protocol: requests, responses, records, and the possible results of a claim.

Adapters translate requests and responses from and to these values. Headers and bodies are bytes, in order, with
duplicates; names of request headers are lower-case.

Records, leases and stages are what a backend stores. Their bytes (``fingerprint``, ``frame``, ``response``,
``about``) are opaque to it. Times are seconds on the backend's clock; durations are seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any, NamedTuple, Protocol

from open_idempotency._core.reading import read_form, read_json

Headers = Sequence[tuple[bytes, bytes]]
#: the most bytes of ``Claim.about``
MOST_ABOUT = 255


class Body(Protocol):
    """A request body that was received whole, in memory or spooled to disk."""

    def chunks(self) -> Iterable[bytes]:
        """The bytes in order, in pieces of bounded size; may be called again."""
        ...

    def read(self) -> bytes:
        """The bytes in one piece."""
        ...

    def digest(self) -> bytes:
        """The SHA-256 of the bytes. A long body was hashed while it arrived."""
        ...


@dataclass(slots=True)
class Request:
    """A covered request, as the callables of a policy see it: ``key=``, ``scope=``, ``fingerprint=``, ``on_replay=``.

    ``path`` and ``query`` are raw (percent-encoded). ``native`` is the framework's own request: the ASGI scope, the
    WSGI environ, Django's or Flask's request. ``body`` is None until it was received. ``alone``: the server handles no
    other request in this process meanwhile. ``route``: the template of the route as the framework writes it
    (``/orders/{id}``); None where it is not known before the claim.
    """

    method: str
    path: bytes
    query: bytes
    headers: Headers
    native: Any
    body: Body | None = None
    alone: bool = False
    route: str | None = None

    def header(self, name: bytes) -> list[bytes]:
        """All values of a header, given its lower-case name, in order."""
        values = []
        for header, value in self.headers:
            if header == name:
                values.append(value)
        return values

    def json(self) -> Any:
        """The JSON in the body, read anew with each call. Raises ``BodyUnreadable``: another type, or no JSON.

        For ``key=``, ``fingerprint=`` and ``on_replay=``: when ``scope=`` is called, the body may not be there yet.
        """
        return read_json(self._raw_body(), self.header(b"content-type"))

    def form(self) -> dict[str, list[str]]:
        """The fields of the form in the body, URL-encoded or multipart, each with all its values. See ``json``."""
        return read_form(self._raw_body(), self.header(b"content-type"))

    def _raw_body(self) -> bytes:
        if self.body is None:
            raise RuntimeError("the body was not received yet; key=, fingerprint= and on_replay= can read it")
        return self.body.read()


class Identity(NamedTuple):
    """Who sent a request, as a framework knows it: the verified user, if any, and the tenant that the user belongs to.

    ``tenant``: "" where the application has none. Users of two tenants can have one name. ``session``: a copy of the
    decoded session of a request without a verified user, as that may name the caller (O-19); None without a session.
    """

    user: str | None
    tenant: str = ""
    session: Mapping[str, Any] | None = None


class Cors(NamedTuple):
    """The CORS headers with which an inner layer has allowed the pages of one origin (R-11).

    ``origin``: the ``Origin`` of the request, empty without one; ``headers``: the ``Access-Control-*`` headers, their
    names in lower case.
    """

    origin: bytes
    headers: Headers


@dataclass(slots=True)
class Response:
    """A whole response. ``body`` is None if it was too large to be stored (a tombstone).

    Stored responses have four more attributes, which are never sent. ``omitted``: the names of credentials that the
    first client was given and that are not stored. ``cors``: the ``Access-Control-*`` headers that the first client was
    given, with its ``Origin``. ``note``: data with which an adapter makes its framework's response of a replay.
    ``first_trace``: the trace of the first request, if it was stored with telemetry on.
    """

    status: int
    headers: Headers
    body: bytes | None
    omitted: bytes = field(default=b"", compare=False)
    cors: Cors | None = field(default=None, compare=False)
    note: bytes = field(default=b"", compare=False)
    first_trace: str = field(default="", compare=False)

    def __eq__(self, other: object) -> bool:
        """Whether status, headers and body are equal. Raises ``TypeError`` for a number.

        ``store=`` is given a response. A hook that compares it with 200, as if it were a status, would never find them
        equal, and no response would be stored.
        """
        if isinstance(other, int):
            raise TypeError(f"a response was compared with the number {other}; compare response.status")
        if not isinstance(other, Response):
            return NotImplemented
        return (self.status, self.headers, self.body) == (other.status, other.headers, other.body)

    __hash__ = None  # type: ignore[assignment]  # its attributes change


class Sealer(Protocol):
    """The type of ``encryption=``: authenticated encryption of small byte strings, from any thread.

    Both methods run on the request's thread or event loop, so they must not wait for a network: fetch data keys
    beforehand. ``bound_to`` is a digest of the record, the attempt or the stage that the bytes belong to. Since 0.1.
    """

    def seal(self, plain: bytes, bound_to: bytes, /) -> bytes:
        """The sealed form of ``plain``, which ``unseal`` opens with this ``bound_to`` and with no other."""
        ...

    def unseal(self, sealed: bytes, bound_to: bytes, /) -> bytes:
        """The bytes that were sealed. Raises (anything) for bytes that were changed, moved, or sealed by other keys."""
        ...


# Records, and what backends return

#: a Django database alias, or what opens a transaction
Ledger = str | Callable[[], AbstractContextManager[Any] | AbstractAsyncContextManager[Any]]


class Status(IntEnum):
    """A record's status, with the numbers of the Open-Idempotency System."""

    NONE = 0
    IN_PROGRESS = 1
    COMPLETED = 2
    FAILED = 3


@dataclass(slots=True, frozen=True)
class Stage:
    """One recorded stage, known by (name, key); ``key`` is ``""`` where none was given."""

    name: str
    key: str
    frame: bytes


@dataclass(slots=True)
class Lease:
    """Proof of one claim. Its holder owns the record until another claim is granted.

    ``token`` grows with every claim of the record and fences off earlier owners; ``owner`` is the random id that
    the claimer made, so that a claim resent after a lost reply is recognised. The remaining attributes let a backend
    re-create a record that vanished under its owner.
    """

    record_id: bytes
    owner: bytes
    token: int
    attempt: int
    fingerprint: bytes
    duration: float
    ttl: float


@dataclass(slots=True)
class Record:
    """A stored record as operators and the decision table see it. ``response`` and stages are frames.

    ``about``: for operators, the ``about`` of the claim that leased it last; empty in records of earlier versions, and
    if a vanished record was made anew.
    """

    record_id: bytes
    fingerprint: bytes
    status: Status
    owner: bytes
    token: int
    attempt: int
    claimed_at: float
    lease_end: float
    ttl: float
    expires_at: float
    final: bool = False
    response: bytes | None = None
    stages: tuple[Stage, ...] = ()
    about: bytes = b""


@dataclass(slots=True)
class Leased:
    """The caller owns the record; ``stages`` are those of earlier attempts, in the order they were saved."""

    lease: Lease
    stages: tuple[Stage, ...] = ()


@dataclass(slots=True)
class Busy:
    """Another owner has had the record for ``elapsed`` seconds, and has it for at least ``remaining`` seconds more."""

    elapsed: float
    remaining: float


@dataclass(slots=True)
class Finished:
    """Completed: the stored response frame."""

    response: bytes


class Refusal(Enum):
    """Why no further attempt is admitted although no response was completed."""

    FAILED = "failed"
    ABANDONED = "abandoned"
    ATTEMPTS = "attempts"
    WITHDRAWN = "withdrawn"


@dataclass(slots=True)
class Refused:
    """The record admits no further attempt; a failed response to replay may be stored with it."""

    reason: Refusal
    attempt: int
    response: bytes | None = None


@dataclass(slots=True)
class Mismatch:
    """The key is in use for a request with another fingerprint."""


ClaimResult = Leased | Busy | Finished | Refused | Mismatch


class Renewal(IntEnum):
    """The result of ``renew`` for one lease."""

    OWNED = 0
    LOST = 1
    VANISHED = 2


@dataclass(slots=True)
class StageSaved:
    """``frame`` is the value on record: always the first one saved under that name and key.

    ``recreated``: the record had vanished and now holds this stage only.
    """

    frame: bytes
    recreated: bool = False


@dataclass(slots=True)
class Reserved:
    """The key counts towards its caller's quota, from now on or already."""


@dataclass(slots=True)
class OverQuota:
    """The caller has as many live keys as it may have; the first of them counts for ``remaining`` seconds more."""

    remaining: float


ReserveResult = Reserved | OverQuota


class Freed(Enum):
    """The result of an operator's command to free a key. Only ``DONE`` has changed the record."""

    DONE = "done"
    ABSENT = "absent"
    #: the record is at another token or in another status than the one that the operator has seen
    CHANGED = "changed"
    #: its lease has not ended, and the command spares such attempts
    ALIVE = "alive"


@dataclass(slots=True)
class Completed:
    """The response is durable. ``recreated``: the record had vanished while its owner ran."""

    recreated: bool = False
