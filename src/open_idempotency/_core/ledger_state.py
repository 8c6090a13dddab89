"""What one attempt has put into a ledger, and whether the application has committed it (S-05 to S-06c).

A ledger is a table in the application's own database. Stages and the response are written in the application's own
transactions, so whether they count is known when those have ended. The client library is asked first. Where it does not
know, ``proof`` asks the database, which is for ``settlement`` to do.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import Enum
from typing import NamedTuple

from open_idempotency._core.requests import Response

StageId = tuple[str, str]


class End(Enum):
    """What became of a transaction of the application's, as far as its client library reports it."""

    #: neither committed nor rolled back, or closed without either
    OPEN = "open"
    COMMITTED = "committed"
    #: the rows and what the ledger has with them are gone, or at least no COMMIT was seen
    ROLLED_BACK = "rolled back"
    #: the COMMIT raised, so it may have arrived or not
    DOUBTFUL = "doubtful"
    #: the library reports nothing
    UNREPORTED = "unreported"


Proof = Callable[[], bool | Awaitable[bool]]


class Watch(NamedTuple):
    """What reports the end of one transaction of the application's.

    ``proof``: asks the database, on a connection of its own, whether the response was committed. It is sync or async,
    as the caller needs it; None where the database cannot be asked.
    """

    end: Callable[[], End]
    proof: Proof | None = None


class LedgerResponse(NamedTuple):
    """A response in the ledger."""

    #: as it is kept, without the headers that belong to one connection or one moment
    response: Response
    #: the bytes that are stored of it
    frame: bytes
    #: whether its body is in them
    whole: bool
    #: the transaction that it was written in, as ``Transaction.entered`` identifies it
    transaction: object
    watch: Watch


class LedgerState:
    """The stages and the response that one attempt has put into ledgers."""

    __slots__ = ("_stages", "stored")

    def __init__(self) -> None:
        #: the response, once it was put into a ledger
        self.stored: LedgerResponse | None = None
        self._stages: dict[StageId, Watch] = {}

    def put_stage(self, stage: StageId, watch: Watch) -> None:
        """Note that a stage was written in a transaction. One attribute is replaced, so any thread may."""
        self._stages = {**self._stages, stage: watch}

    def put_response(self, stored: LedgerResponse) -> None:
        """Note that the response was written in a transaction."""
        self.stored = stored

    def prove_commit(self) -> None:
        """Note that the response was found from outside of its transaction, so its COMMIT has succeeded."""
        if self.stored is not None:
            self.stored = self.stored._replace(watch=Watch(lambda: End.COMMITTED))

    def end(self) -> End | None:
        """What became of the response's transaction; None where there is no response."""
        return None if self.stored is None else self.stored.watch.end()

    def lacks_commit(self, response: Response) -> bool:
        """Whether a transaction that the view's response speaks of was left open, or its own was not committed."""
        own = self.end()
        if own is End.OPEN or any(watch.end() is End.OPEN for watch in self._stages.values()):
            return True
        return own in (End.ROLLED_BACK, End.DOUBTFUL) and self._is_stored(response)

    def counts(self, response: Response) -> bool:
        """Whether the view returned the response that it has committed, as far as that is known."""
        return self._is_stored(response) and self.end() in (End.COMMITTED, End.UNREPORTED)

    def committed_response(self) -> Response | None:
        """The response in the ledger, if its COMMIT is known to have succeeded."""
        return self.stored.response if self.stored is not None and self.end() is End.COMMITTED else None

    def missing_proof(self) -> Proof | None:
        """What asks the database for the response, where the client library does not know and it can be asked."""
        if self.stored is None or self.end() not in (End.UNREPORTED, End.DOUBTFUL):
            return None
        return self.stored.watch.proof

    def _is_stored(self, response: Response) -> bool:
        """Whether this is the response in the ledger, whatever headers were added to it since.

        After a rollback a view may well return another one. A body that was encoded since cannot be compared.
        """
        if self.stored is None or response.status != self.stored.response.status:
            return False
        stored = self.stored.response
        if stored.body == response.body or None in (stored.body, response.body):
            return True
        return _is_encoded(response) != _is_encoded(stored)


def _is_encoded(response: Response) -> bool:
    return any(name.lower() == b"content-encoding" for name, _ in response.headers)
