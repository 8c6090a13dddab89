"""Statements that an endpoint is tested against: their form, and those of two protocols of agentic commerce.

``ACP`` is section 6 of the checkout RFC of the Agentic Commerce Protocol, unreleased after 2026-02-04 (SEP #120).
``UCP`` is what the Universal Commerce Protocol says of ``Idempotency-Key`` in its checkout over REST, and of replay
protection in its message signatures. Keys are sent bare, as both protocols write them. Requirements that only time can
show, such as 24 hours of retention, or only a broken backend, are not tested.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from open_idempotency.conformance.http import checks
from open_idempotency.conformance.http.observations import (
    MARKER,
    Observations,
    Verdict,
    fails,
    holds,
    holds_if,
    mark_of,
    unknown,
)
from open_idempotency.conformance.http.target import Exchange


class Level(Enum):
    """The weight of a statement. An INFO that fails does not fail the run."""

    MUST = "MUST"
    SHOULD = "SHOULD"
    RULE = "RULE"
    INFO = "INFO"


@dataclass(frozen=True, slots=True)
class Statement:
    """One row of the table. ``section``: of the draft or the protocol, or a line or heading of this package's behaviour
    page.

    ``check`` returns a verdict, or raises ``Undecided``.
    """

    id: str
    level: Level
    section: str
    sentence: str
    check: Callable[[Observations], Verdict]


@dataclass(frozen=True, slots=True)
class Profile:
    """What is tested: its name in the report, and its statements in order."""

    title: str
    statements: tuple[Statement, ...]


def _members(response: Exchange) -> dict[str, Any]:
    try:
        found: Any = json.loads(response.body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _says(response: Exchange, status: int, **members: str) -> Verdict:
    """Whether a response has the status, and JSON with these members."""
    said = {name: _members(response).get(name) for name in members}
    right = response.status == status and said == members
    return holds_if(right, f"{response} with {json.dumps(said)}")


# The Agentic Commerce Protocol


def acp_missing(seen: Observations) -> Verdict:
    """A POST without a key is 400 ``idempotency_key_required``."""
    return _says(seen.refused_without_key, 400, type="invalid_request", code="idempotency_key_required")


def acp_reused(seen: Observations) -> Verdict:
    """A key with another body is 422 ``idempotency_conflict``."""
    return _says(seen.reuse.refused, 422, type="invalid_request", code="idempotency_conflict")


def acp_in_flight(seen: Observations) -> Verdict:
    """A duplicate in flight is 409 ``idempotency_in_flight``."""
    return _says(_in_flight(seen), 409, type="invalid_request", code="idempotency_in_flight")


def _in_flight(seen: Observations) -> Exchange:
    """The response to a duplicate that came while the first request ran."""
    for each in seen.pair.both:
        if 400 <= each.status < 500:
            return each
    statuses = ", ".join(map(str, seen.pair.both))
    raise unknown(f"{statuses}: no duplicate was refused while the first request ran; give --slow-url")


def acp_retry_after(seen: Observations) -> Verdict:
    """That 409 has ``Retry-After``."""
    value = _in_flight(seen).first("retry-after")
    return holds_if(value.isdigit(), f"Retry-After: {value or 'none'}")


def acp_marked(seen: Observations) -> Verdict:
    """Replays have ``Idempotent-Replayed: true``, and first responses have not."""
    marks = [each.first(MARKER) or "none" for each in (seen.first, *seen.retries)]
    return holds_if(marks == ["none", "true", "true"], ", ".join(marks))


def acp_echo(seen: Observations) -> Verdict:
    """Responses to a POST send its key back."""
    sent = seen.spelled(seen.key).decode("ascii")
    shown = {
        "first": seen.first.first(seen.target.header_name.lower()),
        "replay": seen.retries[0].first(seen.target.header_name.lower()),
        "422": seen.reuse.refused.first(seen.target.header_name.lower()),
    }
    lacking = [which for which, value in shown.items() if value != sent]
    return holds_if(not lacking, f"not on {', '.join(lacking)}" if lacking else "on first responses, replays and 422")


def acp_same_value(seen: Observations) -> Verdict:
    """Another order of members, and ``1.0`` for ``1``, are the same body."""
    return _all_replays(seen, seen.equal_payloads)


def _all_replays(seen: Observations, responses: Mapping[str, Exchange]) -> Verdict:
    said = "; ".join(f"{what}: {got}" for what, got in responses.items())
    for got in responses.values():
        if got.status != seen.first.status or got.body != seen.first.body:
            return fails(said)
        if not seen.distinct and mark_of(got) is None:
            raise unknown(f"{said}; every run of this endpoint gives the same response")
    return holds(said)


def acp_null_counts(seen: Observations) -> Verdict:
    """A member that is null is another body than one without it, and so is another order of an array."""
    responses = seen.other_values
    wrong = [what for what, got in responses.items() if got.status != 422]
    said = "; ".join(f"{what}: {got}" for what, got in responses.items())
    return holds_if(not wrong, said)


def endpoints_apart(seen: Observations) -> Verdict:
    """A key that was used on one endpoint is a new one on another endpoint."""
    response = seen.elsewhere
    if mark_of(response) or response.status in (409, 422):
        return fails(f"{response}: the key of another endpoint counts here")
    return holds_if(response.success, str(response))


def length(seen: Observations) -> Verdict:
    """A key may have 255 characters."""
    accepted = seen.send_long(seen.spelled("k" * 223 + seen.key.replace("-", "")))
    return holds_if(accepted.success, str(accepted))


_MUST, _SHOULD = Level.MUST, Level.SHOULD

ACP = Profile(
    "the checkout RFC of the Agentic Commerce Protocol, section 6",
    (
        Statement("new-keys", _MUST, "ACP 6.1", "Each request with a new key is carried out.", checks.new_keys),
        Statement(
            "key-required",
            _MUST,
            "ACP 6.1, 6.4",
            "A POST without a key gets a 400 with the code idempotency_key_required.",
            acp_missing,
        ),
        Statement("key-length", _MUST, "ACP 6.1", "A key may have 255 characters.", length),
        Statement(
            "callers-apart",
            _MUST,
            "ACP 6.1",
            "A key that one caller has used has no effect on another caller.",
            checks.callers_apart,
        ),
        Statement(
            "endpoints-apart",
            _MUST,
            "ACP 6.1",
            "A key that was used on one endpoint is a new key on another endpoint.",
            endpoints_apart,
        ),
        Statement(
            "same-value",
            _MUST,
            "ACP 6.2",
            "Another order of members, and 1.0 for 1, are the same request.",
            acp_same_value,
        ),
        Statement(
            "other-value",
            _MUST,
            "ACP 6.2",
            "A null member, and another order of an array, are another request.",
            acp_null_counts,
        ),
        Statement("retry-status", _MUST, "ACP 6.3", "A retry gets the first status.", checks.retry_status),
        Statement(
            "retry-result",
            _MUST,
            "ACP 6.3",
            "A retry gets the first body; nothing is carried out again.",
            checks.retry_body,
        ),
        Statement("retry-marked", _SHOULD, "ACP 6.3", "A replay has Idempotent-Replayed: true.", acp_marked),
        Statement(
            "reuse-refused",
            _MUST,
            "ACP 6.4",
            "A key with another body gets a 422 with the code idempotency_conflict.",
            acp_reused,
        ),
        Statement(
            "concurrent-once",
            _MUST,
            "ACP 6.3",
            "Of two equal concurrent requests, one is carried out.",
            checks.concurrent_once,
        ),
        Statement(
            "in-flight",
            _MUST,
            "ACP 6.4",
            "A duplicate of a running request gets a 409 with the code idempotency_in_flight.",
            acp_in_flight,
        ),
        Statement("in-flight-after", _SHOULD, "ACP 6.4", "That 409 has Retry-After, in seconds.", acp_retry_after),
        Statement(
            "failure-not-kept",
            _MUST,
            "ACP 6.5",
            "A 5xx is not stored: a retry is carried out again.",
            checks.failure_not_replayed,
        ),
        Statement("echo", _MUST, "ACP 3.1", "Responses to a POST send its key back.", acp_echo),
    ),
)


# The Universal Commerce Protocol


def ucp_reused(seen: Observations) -> Verdict:
    """A key with another body is 409."""
    return holds_if(seen.reuse.refused.status == 409, str(seen.reuse.refused))


def ucp_explained(seen: Observations) -> Verdict:
    """That 409 has JSON with ``code`` and ``content``."""
    members = _members(seen.reuse.refused)
    shown = [name for name in ("code", "content") if isinstance(members.get(name), str)]
    return holds_if(len(shown) == 2, f"{seen.reuse.refused} with {' and '.join(shown) or 'neither'}")


def ucp_raw_bytes(seen: Observations) -> Verdict:
    """The raw bytes of the body are compared: the same JSON with more white space is another payload."""
    response = seen.respaced
    return holds_if(response.status == 409, str(response))


UCP = Profile(
    "the checkout of the Universal Commerce Protocol over REST, with its replay protection",
    (
        Statement("new-keys", _MUST, "UCP headers", "Each request with a new key is carried out.", checks.new_keys),
        Statement("retry-status", _MUST, "UCP headers", "A duplicate gets the first status.", checks.retry_status),
        Statement(
            "retry-result",
            _MUST,
            "UCP headers, replay",
            "A duplicate gets the first body; nothing is carried out again.",
            checks.retry_body,
        ),
        Statement("reuse-refused", _MUST, "UCP headers, replay", "A key with another body gets a 409.", ucp_reused),
        Statement(
            "reuse-explained",
            _SHOULD,
            "UCP errors",
            "That 409 has a JSON body with code and content.",
            ucp_explained,
        ),
        Statement(
            "raw-bytes",
            _MUST,
            "UCP replay",
            "The raw bytes of the bodies are compared: white space counts.",
            ucp_raw_bytes,
        ),
        Statement(
            "concurrent-once",
            _MUST,
            "UCP replay",
            "Of two equal concurrent requests, one is carried out.",
            checks.concurrent_once,
        ),
        Statement(
            "callers-apart",
            _MUST,
            "UCP replay",
            "A key that one caller has used has no effect on another caller.",
            checks.callers_apart,
        ),
        Statement(
            "endpoints-apart",
            _MUST,
            "UCP replay",
            "A key that was used for one operation is a new key for another operation.",
            endpoints_apart,
        ),
    ),
)

#: by the name on the command line, beside the draft
PROTOCOLS: Mapping[str, Profile] = {"acp": ACP, "ucp": UCP}
