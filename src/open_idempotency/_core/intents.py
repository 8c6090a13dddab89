"""Stages in doubt (S-04): what is recorded before an external effect, and what is decided if its end is unknown.

An intent is saved as a separate stage, so backends need no verb for intents, and a saved value never changes (B-06).
The intents of one stage are numbered, and the last one counts: begun, or withdrawn because the effect is known not to
have happened. A stage is in doubt if its last intent is begun and it has no value.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, Literal, TypeVar

from open_idempotency import events
from open_idempotency._core.attempt import Attempt, StageId
from open_idempotency._core.commands import Call, SaveStage, Steps, ask
from open_idempotency._core.models import Stage
from open_idempotency._core.notify import warn
from open_idempotency._core.recording import save_stage
from open_idempotency._core.stored_response import StageKind, decode_stage, encode_stage, seal_stage
from open_idempotency.exceptions import LeaseLost, OutcomeUnknown

T = TypeVar("T")

OnDoubt = Literal["raise", "rerun"]

# Names and keys that a view gives are printable, so none of them is ever taken for an intent.
_MARK = "\x1f"


@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """What ``reconcile`` returns if the effect has happened. ``value`` becomes the stage's value."""

    value: T


class Finding(Enum):
    """What ``reconcile`` returns if there is no value."""

    NOT_DONE = "not_done"
    UNKNOWN = "unknown"


#: the effect has not happened, and will not: the stage runs
NOT_DONE = Finding.NOT_DONE
#: the other side does not know yet: 409 ``outcome-unknown``, and a later retry asks again
UNKNOWN = Finding.UNKNOWN

Reconciled = Found[Any] | Finding
Inquiry = Callable[[], Reconciled | Awaitable[Reconciled]]


def is_intent(stage: StageId) -> bool:
    """Whether a stage on record is only the intent of another."""
    return _MARK in stage[1]


def stage_of(intent: StageId) -> StageId:
    """The (name, key) of the stage that an intent belongs to; that of a stage itself."""
    return intent[0], intent[1].partition(_MARK)[0]


def begin(attempt: Attempt, stage: StageId, on_doubt: OnDoubt, inquire: Inquiry | None) -> Steps[Found[Any] | None]:
    """Record the intent of an external effect. Returns None if the effect may be made now, or the value it already had.

    If an earlier use of the stage is in doubt, ``inquire`` asks the other side; without it ``on_doubt`` decides. Raises
    ``OutcomeUnknown`` and the errors of ``recording.save_stage``: then nothing may run.
    """
    if attempt.lease is None:
        return None
    number, kind = last_intent(attempt.stages, stage)
    if kind is not StageKind.BEGUN:
        yield from _announce(attempt, stage, number + 1)
        return None
    # The intent stays as it is: if this attempt dies as well, the stage is in doubt again.
    if inquire is not None:
        return (yield from _inquired(attempt, stage, inquire))
    yield from _report(attempt, stage, on_doubt)
    if on_doubt == "rerun":
        return None
    raise _unknown(attempt, OutcomeUnknown(_DETAIL.format(stage[0]) + "and on_doubt='raise' does not run it again"))


def without_value(
    attempt: Attempt, stage: StageId, kind: str, inquire: Inquiry | None, default: Found[Any] | None
) -> Steps[Found[Any]]:
    """The value of a stage that is done, and on record without its value (S-02a).

    ``inquire`` asks the other side. If that does not know, or ``inquire`` is None, the value is ``default``.
    ``kind``: the name of its type. Raises ``OutcomeUnknown``: whatever the other side says, the stage does not run.
    """
    if inquire is not None:
        finding = yield from _asked(attempt, stage, inquire)
        if isinstance(finding, Found):
            return finding
    yield from _report(attempt, stage, "raise" if default is None else "default")
    if default is None:
        raise no_value(attempt, stage, kind, retryable=inquire is not None)
    return default


def no_value(attempt: Attempt, stage: StageId, kind: str, retryable: bool = False) -> OutcomeUnknown:
    """The error for a stage that is done, and on record without its value."""
    why = "reconcile= did not find it" if retryable else "default= or reconcile= would give this attempt a value"
    said = f"stage {stage[0]!r} is done, and its value ({kind}) could not be stored; {why}"
    return _unknown(attempt, OutcomeUnknown(said, retryable))


def withdraw(attempt: Attempt, stage: StageId) -> Steps[None]:
    """Record that the effect whose intent is on record has not happened after all."""
    if attempt.lease is None:
        return
    number, kind = last_intent(attempt.stages, stage)
    if kind is StageKind.BEGUN:
        yield from _record(attempt, stage, number + 1, StageKind.WITHDRAWN)


_DETAIL = "stage {!r} was begun and its end is not on record, "


def _inquired(attempt: Attempt, stage: StageId, inquire: Inquiry) -> Steps[Found[Any] | None]:
    finding = yield from _asked(attempt, stage, inquire)
    if isinstance(finding, Found):
        return finding
    if finding is NOT_DONE:
        return None
    raise _unknown(
        attempt, OutcomeUnknown(_DETAIL.format(stage[0]) + "and the other side does not know", retryable=True)
    )


def _asked(attempt: Attempt, stage: StageId, inquire: Inquiry) -> Steps[Reconciled]:
    finding = yield from ask(Call(inquire))
    if not isinstance(finding, Found | Finding):
        raise TypeError(
            f"reconcile= of stage {stage[0]!r} returned {type(finding).__name__}, not Found(value), NOT_DONE or UNKNOWN"
        )
    yield from _report(attempt, stage, "found" if isinstance(finding, Found) else finding.value)
    return finding


def _unknown(attempt: Attempt, error: OutcomeUnknown) -> OutcomeUnknown:
    """Note the error in the attempt, since a framework may turn it into a plain 500. Returns it, to be raised."""
    attempt.interrupt(error)
    return error


def _report(attempt: Attempt, stage: StageId, finding: str) -> Steps[None]:
    assert attempt.lease is not None
    yield from warn(attempt.policy, events.InDoubt(events.short(attempt.lease.record_id), stage[0], finding), attempt)


def last_intent(stages: Mapping[StageId, bytes], stage: StageId) -> tuple[int, StageKind | None]:
    """The number of the last intent on record, from 1, and its kind; 0 and None where there is none."""
    # The highest number, not the count: an intent whose recording was interrupted may be missing.
    name, beginning = stage[0], stage[1] + _MARK
    numbers = [
        int(key[len(beginning) :])
        for own, key in stages
        if own == name and key.startswith(beginning) and key[len(beginning) :].isdecimal()
    ]
    if not numbers:
        return 0, None
    last = max(numbers)
    return last, decode_stage(stages[intent_of(stage, last)])[0]


def _record(attempt: Attempt, stage: StageId, number: int, kind: StageKind) -> Steps[None]:
    assert attempt.lease is not None
    payload = b"%d" % attempt.lease.attempt
    yield from save_stage(attempt, Stage(*intent_of(stage, number), encode_stage(kind, payload)))


def _announce(attempt: Attempt, stage: StageId, number: int) -> Steps[None]:
    """Record the intent. If that is interrupted, withdraw it: it may have arrived, and the effect has not begun."""
    try:
        yield from _record(attempt, stage, number, StageKind.BEGUN)
    except (LeaseLost, GeneratorExit):
        raise
    except BaseException:
        lease = attempt.lease
        assert lease is not None
        withdrawn = Stage(*intent_of(stage, number + 1), encode_stage(StageKind.WITHDRAWN, b"%d" % lease.attempt))
        attempt.saved(withdrawn)  # whether it arrives or not, its number is taken
        try:
            yield from ask(SaveStage(lease, seal_stage(withdrawn, lease, attempt.policy)))
        except Exception as error:
            yield from warn(
                attempt.policy, events.BackendFailed.of(events.short(lease.record_id), "withdraw", error), attempt
            )
        raise


def intent_of(stage: StageId, number: int) -> StageId:
    """The (name, key) under which the intent of this number is on record."""
    name, key = stage
    return name, f"{key}{_MARK}{number}"
