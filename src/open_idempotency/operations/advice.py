"""What a record means for a client that retries, and what an operator can do, in sentences."""

from __future__ import annotations

from open_idempotency.decisions import State
from open_idempotency.operations.views import RecordView, StageView
from open_idempotency.policy import IdempotencyPolicy


def duration(seconds: float) -> str:
    """A duration as text: its two largest units, such as ``3m 20s``; below ten seconds with tenths."""
    if seconds == float("inf"):
        return "for ever"
    seconds = abs(seconds)
    if seconds < 10:
        return f"{seconds:.1f}s"
    parts: list[str] = []
    left = int(seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if left >= size or parts:
            parts.append(f"{left // size}{unit}")
            left %= size
        if len(parts) == 2:
            break
    return " ".join(part for part in parts if not part.startswith("0"))


def explain(view: RecordView, policy: IdempotencyPolicy | None = None) -> tuple[str, ...]:
    """The state of a record and what a retry gets, in sentences.

    ``policy``: that of the application; without it the sentences name the policy fields that decide. Since 0.1.
    """
    doubt = [
        f"Stage {label(stage)} is in doubt: it was begun, and its end is not on record." for stage in view.in_doubt
    ]
    if doubt:
        doubt.append(
            "A retry gets 409 outcome-unknown from it, unless the stage has reconcile= or on_doubt='rerun'."
            + (" The record is encrypted, so a stage may have been withdrawn." if view.encrypted else "")
        )
    return (*_STATES[view.state](view, policy), *doubt)


def label(stage: StageView) -> str:
    """A stage by its name, and its key if it has one."""
    return f"{stage.name!r}" + (f" (key {stage.key!r})" if stage.key else "")


def _alive(view: RecordView, policy: IdempotencyPolicy | None) -> tuple[str, ...]:
    return (
        f"Attempt {view.attempt} has run for {duration(view.age)}; its lease lasts {duration(view.lease_left)} more.",
        "A retry gets 409 in-progress, and 422 if it is another request.",
    )


def _abandoned(view: RecordView, policy: IdempotencyPolicy | None) -> tuple[str, ...]:
    return (
        f"The worker of attempt {view.attempt} stopped: its lease ended {duration(view.lease_left)} ago, "
        "without a result.",
        _next(view, None if policy is None else policy.on_abandoned == "resume", "on_abandoned", policy),
    )


def _failed(view: RecordView, policy: IdempotencyPolicy | None) -> tuple[str, ...]:
    if not view.attempt:
        return ("No attempt counts: the key is free.", _next(view, True, "", None))
    return (
        f"Attempt {view.attempt} failed {duration(view.lease_left)} ago.",
        _next(view, None if policy is None else policy.on_failed == "resume", "on_failed", policy),
    )


def _next(view: RecordView, resumes: bool | None, field: str, policy: IdempotencyPolicy | None) -> str:
    """What the next request with the key gets. ``resumes``: whether the policy admits it; None if that is unknown."""
    stages = sum(stage.found.startswith(("done", "error")) for stage in view.stages)
    kept = {0: "", 1: ", with 1 stage done"}.get(stages, f", with {stages} stages done")
    if policy is not None and policy.max_attempts is not None and view.attempt >= policy.max_attempts:
        return (
            f"A retry gets 409 outcome-unknown: max_attempts={policy.max_attempts} is used up. Release frees the key."
        )
    if resumes is False:
        return f"A retry is refused: the policy has {field}={getattr(policy, field)!r}. Release frees the key."
    unless = f", unless the policy's {field} or max_attempts refuses it" if resumes is None else ""
    return f"The next retry runs as attempt {view.attempt + 1}{kept}{unless}."


def _final(view: RecordView, policy: IdempotencyPolicy | None) -> tuple[str, ...]:
    gets = "409 outcome-unknown" if view.response is None else "the stored response of the failure"
    return (
        f"Attempt {view.attempt} failed for good {duration(view.lease_left)} ago.",
        f"A retry gets {gets}. Release frees the key and keeps the stages.",
    )


def _completed(view: RecordView, policy: IdempotencyPolicy | None) -> tuple[str, ...]:
    status = view.response.status if view.response is not None else None
    which = "the stored response" if status is None else f"the stored response, status {status},"
    return (
        f"Attempt {view.attempt} completed {duration(view.lease_left)} ago.",
        f"A retry gets {which} for {duration(view.expires_in)} more; another request with the key gets 422.",
    )


def _absent(view: RecordView, policy: IdempotencyPolicy | None) -> tuple[str, ...]:
    return ("The record has just expired: the next request with the key runs.",)


_STATES = {
    State.ABSENT: _absent,
    State.ALIVE: _alive,
    State.ABANDONED: _abandoned,
    State.FAILED: _failed,
    State.FINAL: _final,
    State.COMPLETED: _completed,
}
