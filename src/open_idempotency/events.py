"""What happened, for metrics and logs: one frozen event for each decision.

A listener is any callable that takes an event; pass it as ``on_event=``. It is called on the request's own thread
or event loop, and on the heartbeat's thread for what that finds, so it should return quickly and be thread-safe.
Events hold short digests, never keys, credentials or bodies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from open_idempotency.exceptions import first_line

_LONGEST_DETAIL = 300


@dataclass(frozen=True, slots=True)
class Event:
    """``record``: the first 12 hex digits of the record id."""

    record: str


@dataclass(frozen=True, slots=True)
class Claimed(Event):
    """A request owns its record and runs. ``attempt`` above 1: it resumes an earlier one."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Replayed(Event):
    """A stored answer was sent again; the handler did not run."""

    status: int


@dataclass(frozen=True, slots=True)
class Conflicted(Event):
    """A duplicate came while the first request was running: 409."""

    remaining: float


@dataclass(frozen=True, slots=True)
class KeyReused(Event):
    """The key came with another request: 422."""


@dataclass(frozen=True, slots=True)
class Rejected(Event):
    """No further attempt is admitted: 409 ``outcome-unknown``. ``reason``: failed, abandoned or attempts."""

    reason: str


@dataclass(frozen=True, slots=True)
class Completed(Event):
    """The answer is recorded. ``stored``: false for a tombstone, whose body was not kept."""

    status: int
    stored: bool


@dataclass(frozen=True, slots=True)
class Failed(Event):
    """The attempt ended without a result; a retry resumes from its stages."""

    status: int | None


@dataclass(frozen=True, slots=True)
class Released(Event):
    """The claim was given back: the answer is of a kind that is not kept."""

    status: int | None


@dataclass(frozen=True, slots=True)
class OwnershipLost(Event):
    """The attempt outlived its lease and another one took the record over."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Recreated(Event):
    """The record vanished while its owner ran (evicted, flushed) and was written anew."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Unrecorded(Event):
    """An answer went out although it could not be recorded within ``record_within`` seconds."""

    status: int | None


@dataclass(frozen=True, slots=True)
class BackendFailed(Event):
    """A backend call failed during ``verb``. ``error``: the class name of the cause; ``detail``: what was said of it,
    shortened. It may name a host, a user or a table, and nothing that came with a request.
    """

    verb: str
    error: str
    detail: str = ""

    @classmethod
    def of(cls, record: str, verb: str, error: BaseException) -> BackendFailed:
        """The event of an error; ``record`` as ``short`` makes it."""
        printable = "".join(char if char.isprintable() else "?" for char in first_line(error)[:_LONGEST_DETAIL])
        return cls(record, verb, type(error.__cause__ or error).__name__, printable)


@dataclass(frozen=True, slots=True)
class HookFailed(Event):
    """A callable of the policy raised after the handler had run; its default was taken. ``hook``: the field."""

    hook: str
    error: str


@dataclass(frozen=True, slots=True)
class Uncommitted(Event):
    """A view returned a response, and left the transaction of its ``tx=`` or ``idem.atomic`` open or rolled it back."""


@dataclass(frozen=True, slots=True)
class InDoubt(Event):
    """A stage was begun by an attempt that did not record its end. ``answer``: what was decided.

    ``found``, ``not_done`` or ``unknown`` by ``reconcile=``, else ``rerun`` or ``raise`` by ``on_doubt=``.
    """

    stage: str
    answer: str


@dataclass(frozen=True, slots=True)
class QuotaReached(Event):
    """A new key was refused, since its caller has ``limit`` live ones: 429 ``too-many-keys``."""

    limit: int


@dataclass(frozen=True, slots=True)
class FailedOpen(Event):
    """The backend was down and the route's policy let the request run unprotected."""


@dataclass(frozen=True, slots=True)
class CredentialScoped(Event):
    """A caller was known by its ``Authorization`` field alone, so a new token is a new caller. Told once."""


Listener = Callable[[Event], None]


def short(record_id: bytes) -> str:
    """The digest that stands for a record in events and logs."""
    return record_id[:6].hex()
