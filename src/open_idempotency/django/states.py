"""What state a record's row is in at a moment of the database's clock, as conditions that the database evaluates."""

from __future__ import annotations

from collections.abc import Mapping

from django.db.models import Case, CharField, Q, Value, When

from open_idempotency.backend import Status
from open_idempotency.backends._shared.sql_rows import RECORD_VERSION
from open_idempotency.decisions import State

UNREADABLE = "unreadable"

#: by what the admin pages call them; the decision table's states, and rows that nobody acts upon
NAMES: Mapping[str, str] = {
    "running": State.ALIVE.value,
    "abandoned": State.ABANDONED.value,
    "completed": State.COMPLETED.value,
    "failed": State.FAILED.value,
    "final": State.FINAL.value,
    "expired": "expired",
    "unreadable": UNREADABLE,
}


def conditions(now: float) -> dict[str, Q]:
    """Each state's condition, in the order in which they are to be tried."""
    running, failed = Q(status=Status.IN_PROGRESS), Q(status=Status.FAILED)
    return {
        "unreadable": ~Q(record_version=RECORD_VERSION),
        "expired": Q(expires_at__lte=now),
        "completed": Q(status=Status.COMPLETED),
        "running": running & Q(lease_end__gt=now),
        "abandoned": running,
        "final": failed & Q(final=True),
        "failed": failed,
    }


def state_at(now: float) -> Case:
    """The state's name, as an annotation."""
    cases = [When(condition, then=Value(NAMES[name])) for name, condition in conditions(now).items()]
    return Case(*cases, default=Value(UNREADABLE), output_field=CharField())
