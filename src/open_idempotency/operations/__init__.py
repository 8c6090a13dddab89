"""Operations on records: find, explain, free, resolve, count, examine.

The shell command and Django's admin pages use them.

All of them take a sync backend (``open_backend(url)``) and block. An operation that changes a record takes the record
as it was read, and compares it with the stored one in the same atomic call.

    from open_idempotency import open_backend, operations

    with open_backend("redis://localhost") as backend:
        record = operations.find_record(backend, "3f9a6c01b2d4")
        view = operations.view_of(record, backend.now())
        if view.is_stuck():
            operations.release(backend, record)

Since 0.1.
"""

from open_idempotency.operations.changing import NOT_DONE, Erasure, erase, forget, release, resolve
from open_idempotency.operations.doctor import examine
from open_idempotency.operations.errors import (
    CallerNeeded,
    ExitCode,
    NotInDoubt,
    OperationRefused,
    RecordAlive,
    RecordChanged,
    RecordSealed,
    RecordUnknown,
    SeveralRecords,
    exit_code_of,
    is_denial,
)
from open_idempotency.operations.finding import (
    FILTERS,
    Listing,
    Located,
    Stats,
    Who,
    callers,
    engine_of,
    find_key,
    find_record,
    is_record_id,
    list_records,
    locate,
    policy_of,
    records_of,
    stats,
)
from open_idempotency.operations.views import RecordView, ResponseView, StageView, as_json, duration, explain, view_of

__all__ = [
    "FILTERS",
    "NOT_DONE",
    "CallerNeeded",
    "Erasure",
    "ExitCode",
    "Listing",
    "Located",
    "NotInDoubt",
    "OperationRefused",
    "RecordAlive",
    "RecordChanged",
    "RecordSealed",
    "RecordUnknown",
    "RecordView",
    "ResponseView",
    "SeveralRecords",
    "StageView",
    "Stats",
    "Who",
    "as_json",
    "callers",
    "duration",
    "engine_of",
    "erase",
    "examine",
    "exit_code_of",
    "explain",
    "find_key",
    "find_record",
    "forget",
    "is_denial",
    "is_record_id",
    "list_records",
    "locate",
    "policy_of",
    "records_of",
    "release",
    "resolve",
    "stats",
    "view_of",
]
