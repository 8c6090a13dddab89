"""A record as an operator reads it: its state now, its stages, and its stored response.

Bodies and stage values are in a view only on request. Encrypted parts are decrypted only with the application's policy.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from open_idempotency._core import intents
from open_idempotency._core.attempt import StageId
from open_idempotency._core.keys import About
from open_idempotency._core.models import Lease, Response
from open_idempotency._core.stored_response import (
    FAILURE,
    RESPONSE,
    SEALED,
    StageKind,
    decode_response,
    decode_stage,
    unseal,
    unseal_stage,
)
from open_idempotency._stages.stages import plain_value
from open_idempotency.backend import Record, Status
from open_idempotency.decisions import State, state_of
from open_idempotency.operations.errors import RecordSealed
from open_idempotency.policy import IdempotencyPolicy

#: seconds that an attempt may run before it counts as stuck
STUCK_AFTER = 300.0
SEALED_KIND = "encrypted"
_KINDS = {
    StageKind.VALUE: "done",
    StageKind.TYPED: "done",
    StageKind.ERROR: "error",
    StageKind.NOT_KEPT: "done, value not stored",
    StageKind.BEGUN: "begun",
    StageKind.WITHDRAWN: "not done",
}


@dataclass(frozen=True, slots=True)
class StageView:
    """One stage. ``found``: done, error, "done, value not stored", begun, not done (it was withdrawn), or encrypted.

    A stage that was begun is in doubt unless its attempt runs. ``size``: bytes of its value. ``value``: plain JSON,
    only with ``bodies=True``.
    """

    name: str
    key: str
    found: str
    size: int
    value: Any = None


@dataclass(frozen=True, slots=True)
class ResponseView:
    """A stored response. ``status``: None if it is encrypted and the keys were not given. ``size``: bytes on record.

    ``headers`` and ``body``: only with ``bodies=True``; the body is None if it was too large to store.
    """

    status: int | None
    size: int
    encrypted: bool
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class RecordView:
    """A record at the moment ``now`` of the backend's clock. All durations are seconds. Since 0.1.

    ``record``: its id in hexadecimal digits. ``age``: since the latest attempt began. ``lease_left``: below 0 if the
    lease has ended. ``expires_in``: until the key is forgotten. ``attempt``: its number; 0 if no attempt counts.
    ``caller``: a digest that all records of a caller share. ``holder``: the worker, as ``host:pid``. Unknown facts
    about the request are empty. ``seen``: the record itself, which ``release`` and ``forget`` compare with the stored
    one.
    """

    record: str
    state: State
    attempt: int
    age: float
    lease_left: float
    expires_in: float
    stages: tuple[StageView, ...]
    response: ResponseView | None
    encrypted: bool
    seen: Record = field(repr=False)
    method: str = ""
    route: str = ""
    caller: str = ""
    holder: str = ""

    @property
    def in_doubt(self) -> tuple[StageView, ...]:
        """The stages that were begun and whose end is not on record, if the attempt does not run.

        Without the keys of an encrypted record, withdrawn stages are among them.
        """
        if self.state in (State.ALIVE, State.COMPLETED):
            return ()
        return tuple(stage for stage in self.stages if stage.found == _KINDS[StageKind.BEGUN])

    def is_stuck(self, after: float = STUCK_AFTER) -> bool:
        """Whether the record needs an operator.

        It is abandoned, failed for good, has a stage in doubt, or is in progress for more than ``after`` seconds.
        """
        if self.state is State.ALIVE:
            return self.age > after
        return self.state in (State.ABANDONED, State.FINAL) or bool(self.in_doubt)


def view_of(record: Record, now: float, *, policy: IdempotencyPolicy | None = None, bodies: bool = False) -> RecordView:
    """The view of a record. ``policy``: decrypts it. ``bodies``: with stored bodies and values.

    Raises ``RecordSealed`` for encrypted bodies and a policy without keys, and ``RecordUnreadable`` for frames that are
    of a newer version, corrupt, or encrypted with other keys.
    """
    lease = lease_of(record)
    sealed = is_sealed(record)
    opens = policy is not None and policy.encryption is not None
    if sealed and bodies and not opens:
        raise RecordSealed(
            f"record {record.record_id.hex()[:12]} is encrypted, and nothing of it can be shown without the keys; "
            "give the application's policy (--app module:attribute)"
        )
    about = About.of(record)
    stages = _stages(record, lease, policy if opens else None, bodies)
    return RecordView(
        record=record.record_id.hex(),
        state=state_of(record, now),
        attempt=record.attempt,
        age=max(0.0, now - record.claimed_at),
        lease_left=record.lease_end - now,
        expires_in=record.expires_at - now,
        stages=stages,
        response=_response(record, lease, policy if opens else None, bodies),
        encrypted=sealed,
        seen=record,
        method=about.method,
        route=about.route,
        caller=about.caller.hex(),
        holder=about.holder,
    )


def lease_of(record: Record) -> Lease:
    """The lease of the record's owner, to which encrypted frames are bound."""
    duration = max(0.0, record.lease_end - record.claimed_at)
    return Lease(record.record_id, record.owner, record.token, record.attempt, record.fingerprint, duration, record.ttl)


def is_sealed(record: Record) -> bool:
    """Whether anything of the record is encrypted."""
    return any(frame.startswith(SEALED) for frame in _frames(record))


def _frames(record: Record) -> Iterable[bytes]:
    yield from (stage.frame for stage in record.stages)
    if record.response:
        yield record.response


def _response(record: Record, lease: Lease, policy: IdempotencyPolicy | None, bodies: bool) -> ResponseView | None:
    stored = record.response
    if stored is None:
        return None
    sealed = stored.startswith(SEALED)
    if sealed and policy is None:
        return ResponseView(None, len(stored), True)
    kind = RESPONSE if record.status is Status.COMPLETED else FAILURE
    response = decode_response(stored if policy is None else unseal(stored, kind, lease, opening(policy)))
    shown = ResponseView(response.status, len(stored), sealed)
    return _with_body(shown, response) if bodies else shown


def opening(policy: IdempotencyPolicy) -> IdempotencyPolicy:
    """The policy for reading: it accepts plain frames too, since records of both kinds are listed."""
    return policy if policy.plain_records != "refuse" else replace(policy, plain_records="accept")


def _with_body(shown: ResponseView, response: Response) -> ResponseView:
    headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in response.headers)
    return replace(shown, headers=headers, body=response.body)


def _stages(record: Record, lease: Lease, policy: IdempotencyPolicy | None, bodies: bool) -> tuple[StageView, ...]:
    """The stages in the order in which they began, each with its value or the state of its last intent."""
    opened: dict[StageId, bytes] = {}
    for stage in record.stages:
        plain = stage if policy is None else unseal_stage(stage, lease, opening(policy))
        opened[stage.name, stage.key] = plain.frame
    order = dict.fromkeys(map(intents.stage_of, opened))
    return tuple(_stage(stage, opened, bodies) for stage in order)


def _stage(stage: StageId, opened: Mapping[StageId, bytes], bodies: bool) -> StageView:
    frame = opened.get(stage)
    if frame is None:
        return _begun(stage, opened)
    if frame.startswith(SEALED):
        return StageView(*stage, SEALED_KIND, len(frame))
    kind, payload = decode_stage(frame)
    return StageView(*stage, _KINDS[kind], len(payload), plain_value(frame) if bodies else None)


def _begun(stage: StageId, opened: Mapping[StageId, bytes]) -> StageView:
    own = {each: frame for each, frame in opened.items() if intents.stage_of(each) == stage}
    if any(frame.startswith(SEALED) for frame in own.values()):
        # Whether its intent was withdrawn is encrypted too, so the worse case is shown.
        return StageView(*stage, _KINDS[StageKind.BEGUN], 0)
    _, kind = intents.last_intent(own, stage)
    assert kind is not None
    return StageView(*stage, _KINDS[kind], 0)


def as_json(view: RecordView) -> dict[str, Any]:
    """A view as plain JSON values. A body that is not UTF-8 text is base64, as ``body_of`` returns it."""
    response = view.response
    return {
        "record": view.record,
        "state": view.state.value,
        "attempt": view.attempt,
        "age": round(view.age, 3),
        "lease_left": round(view.lease_left, 3),
        "expires_in": None if math.isinf(view.expires_in) else round(view.expires_in, 3),
        "method": view.method,
        "route": view.route,
        "caller": view.caller,
        "holder": view.holder,
        "stuck": view.is_stuck(),
        "encrypted": view.encrypted,
        "stages": [_stage_json(stage) for stage in view.stages],
        "in_doubt": [{"name": stage.name, "key": stage.key} for stage in view.in_doubt],
        "response": None if response is None else _response_json(response),
    }


def _stage_json(stage: StageView) -> dict[str, Any]:
    shown = {"name": stage.name, "key": stage.key, "found": stage.found, "size": stage.size}
    return shown if stage.value is None else {**shown, "value": stage.value}


def _response_json(response: ResponseView) -> dict[str, Any]:
    shown: dict[str, Any] = {"status": response.status, "size": response.size, "encrypted": response.encrypted}
    if response.headers or response.body is not None:
        shown |= {"headers": [list(header) for header in response.headers], **body_of(response.body)}
    return shown


def body_of(body: bytes | None) -> dict[str, Any]:
    """A body for JSON: ``body`` as text, or ``body_base64`` if it is not text; None if it was not stored."""
    if body is None:
        return {"body": None}
    try:
        return {"body": body.decode("utf-8")}
    except UnicodeDecodeError:
        return {"body_base64": base64.b64encode(body).decode("ascii")}


# What a record means for a client that retries, and what an operator can do, in sentences.


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
        "A retry gets 409 in-progress; another request with the key gets 422.",
    )


def _abandoned(view: RecordView, policy: IdempotencyPolicy | None) -> tuple[str, ...]:
    return (
        f"The worker of attempt {view.attempt} stopped: its lease ended {duration(view.lease_left)} ago, "
        "without a result.",
        _next(view, None if policy is None else policy.on_abandoned == "resume", "on_abandoned", policy),
    )


def _failed(view: RecordView, policy: IdempotencyPolicy | None) -> tuple[str, ...]:
    if not view.attempt:
        return ("No attempt holds this record: the key is free.", _next(view, True, "", None))
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
