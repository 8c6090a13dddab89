"""Whether the response that an attempt has put into a ledger was committed, and what follows from it (S-05 to S-06c).

The client library is asked first, then the database, which is for ``settlement`` to do.
"""

from __future__ import annotations

from open_idempotency._core.attempt import Attempt, End, Proof
from open_idempotency._core.requests import Answer


def lacks_commit(attempt: Attempt, answer: Answer) -> bool:
    """Whether a transaction that the response speaks of was left open, or the response's own was not committed."""
    ends = {stage: watch.end() for stage, watch in attempt.watches.items()}
    if End.OPEN in ends.values():
        return True
    return ends.get(None) in (End.ROLLED_BACK, End.DOUBTFUL) and _is_handed_over(attempt, answer)


def _is_handed_over(attempt: Attempt, answer: Answer) -> bool:
    """Whether this is the response that went into the ledger, whatever headers it has got since.

    After a rollback a view may well return another one. A body that was encoded since cannot be compared.
    """
    if attempt.answered is None or answer.status != attempt.answered[0].status:
        return False
    body = attempt.answered[0].body
    return body == answer.body or None in (body, answer.body) or _is_encoded(answer) != _is_encoded(attempt.answered[0])


def committed_response(attempt: Attempt) -> Answer | None:
    """The response that this attempt has put into a ledger, if its COMMIT is known to have succeeded."""
    if attempt.answered is None or attempt.watches[None].end() is not End.COMMITTED:
        return None
    return attempt.answered[0]


def missing_proof(attempt: Attempt) -> Proof | None:
    """What asks the database for the response, where the client library does not know and it can be asked."""
    if attempt.answered is None or attempt.watches[None].end() not in (End.UNTOLD, End.DOUBTFUL):
        return None
    return attempt.watches[None].proof


def _is_encoded(answer: Answer) -> bool:
    return any(name.lower() == b"content-encoding" for name, _ in answer.headers)


def counts(attempt: Attempt, answer: Answer) -> bool:
    """Whether a view returned the response that it has committed: as far as is known, else as the view says."""
    return _is_handed_over(attempt, answer) and attempt.watches[None].end() in (End.COMMITTED, End.UNTOLD)
