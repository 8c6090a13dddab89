"""Checks of retries: the same answer, unchanged by what came in between, and nobody else's."""

from __future__ import annotations

from collections.abc import Iterable

from open_idempotency.conformance.http.observations import MARKER, Observations, result_of
from open_idempotency.conformance.http.verdicts import (
    Verdict,
    fails,
    holds,
    holds_if,
    not_applicable,
    unknown,
)
from open_idempotency.conformance.http.wire import Exchange

# What a replay has to bring back wherever the first answer had it.
_CONTENT = frozenset({"content-type", "content-encoding", "content-language", "location", "etag", "last-modified"})
# What belongs to one message or one connection, or says that it is a replay.
# fmt: off
_OF_ONE_MESSAGE = frozenset(
    {
        "age", "alt-svc", "authentication-info", "connection", "content-length", "date", "idempotency-status",
        "idempotent-replayed", "keep-alive", "proxy-authenticate", "proxy-authentication-info", "server",
        "server-timing", "set-cookie", "te", "traceparent", "tracestate", "trailer", "transfer-encoding",
        "upgrade", "www-authenticate", "x-request-id",
    }
)
# fmt: on
_OF_ONE_CLIENT = ("set-cookie", "www-authenticate", "authentication-info", "x-request-id", "traceparent")
_NO_DIFFERENCE = "every run of this endpoint gives the same answer, so a run cannot be told from a replay"


def statuses(exchanges: Iterable[Exchange]) -> str:
    """What was answered, in order."""
    return ", ".join(str(each) for each in exchanges)


def same(first: Exchange, later: Exchange) -> bool:
    """Whether two answers have the same status and the same result."""
    return first.status == later.status and result_of(first) == result_of(later)


def new_keys(seen: Observations) -> Verdict:
    """Two requests with two keys are two requests."""
    first, second = seen.first, seen.second
    answered = statuses([first, second])
    if not second.success or second.first(MARKER):
        return fails(f"{answered}: the second of two new keys was not treated as a new one")
    if not seen.distinct:
        raise unknown(f"{answered}; {_NO_DIFFERENCE}")
    return holds(f"{answered}, with different results")


def retry_status(seen: Observations) -> Verdict:
    """The status is the first one's."""
    return holds_if(
        all(retry.status == seen.first.status for retry in seen.retries),
        f"{seen.first}, then {statuses(seen.retries)}",
    )


def retry_body(seen: Observations) -> Verdict:
    """The body and the place of what was made are the first one's."""
    for retry in seen.retries:
        if result_of(retry) != result_of(seen.first):
            return fails(f"another body or Location ({_sizes(seen.first, retry)}), as from a second run")
    if not seen.distinct and not all(retry.first(MARKER) for retry in seen.retries):
        raise unknown(_NO_DIFFERENCE)
    return holds(f"{len(seen.first.body)} bytes each time")


def _sizes(*exchanges: Exchange) -> str:
    return " and ".join(f"{len(each.body)} bytes" for each in exchanges)


def retry_fields(seen: Observations) -> Verdict:
    """The fields are the first one's, duplicates included; those that differ between two replays do not count."""
    one, two = seen.retries
    names = {name for each in (seen.first, one) for name, _ in each.fields} - _OF_ONE_MESSAGE
    wrong = sorted(
        name
        for name in names
        if not name.startswith("access-control-")
        and one.all(name) != seen.first.all(name)
        and (name in _CONTENT or one.all(name) == two.all(name))
    )
    return holds_if(not wrong, f"other values of {', '.join(wrong)}" if wrong else "the same fields")


def retry_private_fields(seen: Observations) -> Verdict:
    """What was meant for one client at one moment does not come again."""
    present = [name for name in _OF_ONE_CLIENT if seen.first.all(name)]
    if not present:
        raise not_applicable(f"the first answer has none of {', '.join(_OF_ONE_CLIENT)}")
    leaked = [name for name in present if set(seen.first.all(name)) & set(seen.retries[0].all(name))]
    return holds_if(not leaked, f"replayed: {', '.join(leaked)}" if leaked else f"left out: {', '.join(present)}")


def retry_marked(seen: Observations) -> Verdict:
    """A replay says so, and a first answer does not."""
    marks = [each.first(MARKER) or "none" for each in (seen.first, *seen.retries)]
    return holds_if(marks == ["none", "true", "true"], f"Idempotent-Replayed: {', '.join(marks)}")


def failure_not_replayed(seen: Observations) -> Verdict:
    """A server error is not kept as the outcome."""
    scene = seen.failing
    answered = statuses([scene.first, scene.again])
    if scene.again.first(MARKER):
        return fails(f"{answered}, the second one marked as a replay")
    if not same(scene.first, scene.again):
        return holds(f"{answered}, with different results")
    if same(scene.first, scene.other):
        raise unknown(f"{answered}; every failure of this endpoint looks the same")
    return fails(f"{answered} with the same body, which another key does not get")


def callers_apart(seen: Observations) -> Verdict:
    """A key of one caller means nothing to another."""
    answer = seen.by_another
    if answer.status in (401, 403) or not answer.status:
        raise unknown(f"the other caller is answered {answer}")
    if answer.status in (409, 422):
        return fails(f"{answer}: it tells that somebody else has used the key")
    if answer.first(MARKER) or (seen.distinct and same(seen.first, answer)):
        return fails(f"{answer}, with the first caller's answer")
    if not seen.distinct:
        raise unknown(f"{answer}; {_NO_DIFFERENCE}")
    return holds(f"{answer}, with a result of its own")


def replay(seen: Observations) -> Exchange:
    """What a plain retry gets, for comparison with others; not applicable where two retries differ."""
    one, two = seen.retries
    if not same(one, two):
        raise not_applicable("two plain retries are not answered alike")
    return one


def is_replay(seen: Observations, answer: Exchange) -> bool:
    """Whether an answer is what a plain retry gets; raises ``Undecided`` where that cannot be told."""
    if not same(replay(seen), answer):
        return False
    if not seen.distinct and not answer.first(MARKER):
        raise unknown(f"{answer}; {_NO_DIFFERENCE}")
    return True
