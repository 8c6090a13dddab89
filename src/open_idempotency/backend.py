"""The interface of backends: the same verbs, sync and async, each one atomic call on the backend's own clock.

To write a backend: subclass ``Backend`` or ``AsyncBackend``, carry out each command as its docstring says, and run the
shipped suite ``open_idempotency.conformance`` against it. A backend stores ``fingerprint``, ``frame``,
``response`` and ``about`` as opaque bytes; it never parses, unpickles or logs them. In a backend with a lock or a
transaction, the module ``open_idempotency.decisions`` makes the decisions, and the backend only loads and saves.

Every verb may raise ``BackendUnavailable`` (the driver's error is its cause) and ``RecordUnreadable``. The owner's
verbs may also raise ``LeaseLost``, and verbs that store a value ``RecordTooLarge``, if its size is refused each time.
Local failures (no thread, no file descriptor, no memory, any ``OSError``) become ``BackendUnavailable`` in each verb of
a subclass without further code. No verb may take longer than ``call_timeout`` seconds, retries of the driver included.
Constructing a backend opens nothing: connections open lazily, for each process, so that a fork is harmless.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

from open_idempotency._core.commands import (
    Claim,
    Complete,
    Fail,
    Free,
    Get,
    Release,
    Renew,
    Reserve,
    SaveStage,
    Unreserve,
    Wait,
    Withdraw,
)
from open_idempotency._core.models import (
    MOST_ABOUT,
    Busy,
    ClaimResult,
    Completed,
    Finished,
    Freed,
    Lease,
    Leased,
    Mismatch,
    OverQuota,
    Record,
    Refusal,
    Refused,
    Renewal,
    Reserved,
    ReserveResult,
    Stage,
    StageSaved,
    Status,
)
from open_idempotency._runtime import loops, processes
from open_idempotency.exceptions import ConfigurationError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "MOST_ABOUT",
    "AsyncBackend",
    "Backend",
    "Busy",
    "Claim",
    "ClaimResult",
    "Complete",
    "Completed",
    "Fail",
    "Finding",
    "Finished",
    "Free",
    "Freed",
    "Get",
    "Health",
    "Lease",
    "Leased",
    "Level",
    "Mismatch",
    "OverQuota",
    "Record",
    "Refusal",
    "Refused",
    "Release",
    "Renew",
    "Renewal",
    "Reserve",
    "ReserveResult",
    "Reserved",
    "SaveStage",
    "Stage",
    "StageSaved",
    "Status",
    "Unreserve",
    "Wait",
    "Withdraw",
]


@dataclass(frozen=True, slots=True)
class Health:
    """The result of ``health``. ``warnings``: a sentence for each known danger to records.

    Since 0.1.
    """

    warnings: tuple[str, ...] = ()


class Level(Enum):
    """How serious a finding is."""

    OK = "ok"
    #: unknown, since the permission to find out is missing
    UNKNOWN = "unknown"
    WARNING = "warning"
    #: records are in danger, or requests fail
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check of ``examine``.

    ``check``: the name of the check, in one or two words. ``found``: a sentence without a full stop. ``cure``: what to
    do; empty if nothing is to be done. Since 0.1.
    """

    check: str
    level: Level
    found: str
    cure: str = ""


_NO_QUOTAS = "backend: it has no quotas (Backend.quotas), so max_live_keys cannot be set"
_NO_FREEING = "backend: it cannot free a key for an operator (Backend.frees); delete() forgets the record"


class Backend(ABC):
    """The sync verbs. Safe to use from many threads."""

    #: seconds that the slowest call may take before it raises BackendUnavailable
    call_timeout: float = 0.0
    #: whether it has ``reserve`` and ``unreserve``; without them a policy with ``max_live_keys`` is refused at start
    quotas: bool = False
    #: whether it has ``free``; without it operators can only ``delete``
    frees: bool = False
    #: the file that the first call creates; None for a backend without such a file
    file: str | None = None
    #: whether its records exist only in the memory of one process
    in_memory: bool = False

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Wrap the verbs of a subclass, so that local failures raise ``BackendUnavailable`` (B-10a)."""
        super().__init_subclass__(**keywords)
        processes.guard_verbs(cls, Backend)

    @abstractmethod
    def claim(self, c: Claim, /) -> ClaimResult:
        """Insert or take over the record, or return its state. A claim that its owner resends is leased again.

        The record keeps the ``about`` of the claim that was leased last.
        """

    @abstractmethod
    def renew(self, c: Renew, /) -> Sequence[Renewal]:
        """Extend many leases in one call. The results have the order of ``c.leases``. Never raises ``LeaseLost``."""

    @abstractmethod
    def save_stage(self, c: SaveStage, /) -> StageSaved:
        """Append the stage, or return the frame that was saved before.

        Raises ``AlreadyCompleted`` after the completion, and ``RecordTooLarge`` if the backend refuses the frame for
        its size.
        """

    @abstractmethod
    def complete(self, c: Complete, /) -> Completed:
        """Make the response durable for ``c.lease.ttl`` seconds. Re-creates a vanished record. Succeeds if sent twice.

        Raises ``RecordTooLarge`` if the backend refuses the response for its size; the attempt still owns the record.
        """

    @abstractmethod
    def fail(self, c: Fail, /) -> None:
        """End the attempt and keep its stages. Succeeds if sent twice. Does nothing if the record has vanished.

        Raises ``RecordTooLarge`` if the backend refuses the response for its size.
        """

    @abstractmethod
    def release(self, c: Release, /) -> None:
        """Release the claim. The record is deleted unless it has stages or earlier attempts."""

    def withdraw(self, c: Withdraw, /) -> None:
        """Withdraw a claim whose caller was cancelled, and refuse it from now on, since it may arrive later (B-08c).

        For ``decisions.WITHDRAWN_FOR`` seconds a claim of that owner gets no lease: ``Refused(Refusal.WITHDRAWN)``. By
        default the claim is only released, and one that arrives later holds its key for a lease.
        """
        result = self.claim(c.claim)
        if isinstance(result, Leased):
            self.release(Release(result.lease))

    @abstractmethod
    def get(self, c: Get, /) -> Record | None:
        """Read one record with its stages; None if it is absent or expired."""

    @abstractmethod
    def delete(self, record_id: bytes, /) -> bool:
        """Forget a record, whatever its state; true if there was one. For operators."""

    @abstractmethod
    def scan(self) -> Iterator[Record]:
        """All live records, in no order, read in bounded batches. For operators."""

    def scan_headers(self) -> Iterator[Record]:
        """All live records like ``scan``, but without responses and stages, to search for few records among many.

        Override it in a backend that can read a row without its large values. Since 0.1.
        """
        for record in self.scan():
            yield replace(record, response=None, stages=())

    @abstractmethod
    def purge(self, limit: int = 1000) -> int:
        """Delete at most ``limit`` expired records and reservations. Returns how many. Safe to run in parallel."""

    def reserve(self, c: Reserve, /) -> ReserveResult:
        """Count the key towards its caller's quota, in one atomic call. ``OverQuota`` if ``c.limit`` others count.

        A reservation lasts at least ``c.lease + c.ttl`` seconds from the latest call, and at most one lease more. A key
        that has one is never refused. Only for backends with ``quotas``.
        """
        raise ConfigurationError(_NO_QUOTAS)

    def unreserve(self, c: Unreserve, /) -> None:
        """Stop counting the key. Does nothing if it did not count. Only for backends with ``quotas``."""
        raise ConfigurationError(_NO_QUOTAS)

    def health(self) -> Health:
        """Check whether the server replies, and what endangers its records. For operators, not for each request.

        Raises ``BackendUnavailable`` if it does not reply.
        """
        self.get(Get(bytes(32)))
        return Health()

    def free(self, c: Free, /) -> Freed:
        """Free a key for an operator, in one atomic call, if its record is still the one that was seen (P-20).

        ``decisions.free`` makes the decision. Waiting duplicates are woken. Only for backends with ``frees``.
        """
        raise ConfigurationError(_NO_FREEING)

    def now(self) -> float:
        """Seconds since 1970 on the clock that decides when leases end. For operators.

        By default that of this machine. Override it in a backend with another clock.
        """
        return time.time()

    def ids(self, prefix: bytes = b"") -> Iterator[bytes]:
        """The ids of live records that begin with ``prefix``, in no order, read in bounded batches. For operators.

        Unreadable records are among them, and ids that have just expired may be. By default every record is read;
        override it in a backend with an index.
        """
        for record in self.scan():
            if record.record_id.startswith(prefix):
                yield record.record_id

    def examine(self) -> Sequence[Finding]:
        """Examine the server and its records for an operator's ``doctor``; it may take several calls.

        By default it returns the warnings of ``health``. Raises ``BackendUnavailable`` if the server does not reply.
        """
        warnings = self.health().warnings
        return [Finding("health", Level.WARNING, warning) for warning in warnings]

    @abstractmethod
    def to_async(self) -> AsyncBackend:
        """The async backend over the same records; always the same object."""

    def wait(self, c: Wait, /) -> None:
        """Return when the attempt that holds the record may have ended, and after ``c.seconds`` at the latest.

        Never raises. It may return early, but not at once while the attempt runs, since the caller then claims again.
        By default it returns after ``c.pause``, so that the caller polls. Override it in a backend that is notified of
        a ``complete``, ``fail``, ``release`` or ``delete`` by any process.
        """
        time.sleep(min(c.seconds, c.pause))

    def migrate(self) -> Sequence[str]:
        """Create or upgrade the backend's tables. Returns the names of the applied migrations.

        For deployments: no request does it. By default nothing is needed and nothing is done.
        """
        return ()

    def close(self) -> None:  # noqa: B027 (a backend may have nothing to close)
        """Close the connections of this process. The backend opens them again if it is used again."""

    def __enter__(self) -> Self:
        """``with open_backend(url) as backend``: it is closed at the end of the block."""
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def __deepcopy__(self, memo: object) -> Self:
        """The backend itself, since a copied configuration means the same records (Litestar copies its handlers)."""
        return self


class AsyncBackend(ABC):
    """The async verbs, with the same guarantees. Safe on several event loops."""

    call_timeout: float = 0.0
    quotas: bool = False

    def __init_subclass__(cls, **keywords: Any) -> None:
        """See ``Backend``."""
        super().__init_subclass__(**keywords)
        processes.guard_async_verbs(cls, AsyncBackend)

    @abstractmethod
    async def claim(self, c: Claim, /) -> ClaimResult:
        """See ``Backend.claim``."""

    @abstractmethod
    async def renew(self, c: Renew, /) -> Sequence[Renewal]:
        """See ``Backend.renew``."""

    @abstractmethod
    async def save_stage(self, c: SaveStage, /) -> StageSaved:
        """See ``Backend.save_stage``."""

    @abstractmethod
    async def complete(self, c: Complete, /) -> Completed:
        """See ``Backend.complete``."""

    @abstractmethod
    async def fail(self, c: Fail, /) -> None:
        """See ``Backend.fail``."""

    @abstractmethod
    async def release(self, c: Release, /) -> None:
        """See ``Backend.release``."""

    async def withdraw(self, c: Withdraw, /) -> None:
        """See ``Backend.withdraw``."""
        result = await self.claim(c.claim)
        if isinstance(result, Leased):
            await self.release(Release(result.lease))

    @abstractmethod
    async def get(self, c: Get, /) -> Record | None:
        """See ``Backend.get``."""

    @abstractmethod
    async def delete(self, record_id: bytes, /) -> bool:
        """See ``Backend.delete``."""

    @abstractmethod
    def scan(self) -> AsyncIterator[Record]:
        """See ``Backend.scan``."""

    @abstractmethod
    async def purge(self, limit: int = 1000) -> int:
        """See ``Backend.purge``."""

    async def reserve(self, c: Reserve, /) -> ReserveResult:
        """See ``Backend.reserve``."""
        raise ConfigurationError(_NO_QUOTAS)

    async def unreserve(self, c: Unreserve, /) -> None:
        """See ``Backend.unreserve``."""
        raise ConfigurationError(_NO_QUOTAS)

    async def health(self) -> Health:
        """See ``Backend.health``."""
        await self.get(Get(bytes(32)))
        return Health()

    @abstractmethod
    def to_sync(self) -> Backend:
        """The sync backend over the same records; the heartbeat thread renews with it."""

    async def wait(self, c: Wait, /) -> None:
        """See ``Backend.wait``. Many tasks may wait, so it must hold no thread."""
        await loops.sleep(min(c.seconds, c.pause))

    async def close(self) -> None:  # noqa: B027 (a backend may have nothing to close)
        """See ``Backend.close``."""

    async def aclose(self) -> None:
        """``close`` by the name that ``contextlib.aclosing`` calls."""
        await self.close()

    async def __aenter__(self) -> Self:
        """``async with open_backend(url).to_async() as backend``: it is closed at the end of the block."""
        return self

    async def __aexit__(self, *unused: object) -> None:
        await self.close()

    def __deepcopy__(self, memo: object) -> Self:
        """See ``Backend.__deepcopy__``."""
        return self
