"""The checks behind the table of statements: retries, refusals, and the key header itself.

Each check gets the observations of one endpoint and returns a verdict. It raises ``Undecided`` if the statement does
not apply to the endpoint, or if the responses do not show whether it holds.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterable
from typing import Any

from open_idempotency.conformance.http.observations import (
    MARKER,
    Observations,
    Verdict,
    fails,
    holds,
    holds_if,
    is_marker,
    mark_of,
    new_key,
    not_applicable,
    result_of,
    unknown,
)
from open_idempotency.conformance.http.target import Exchange

# Retries

# A replay has to repeat each of these that the first response had.
_CONTENT = frozenset({"content-type", "content-encoding", "content-language", "location", "etag", "last-modified"})
# These belong to one message or one connection, or mark a replay.
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
_NO_DIFFERENCE = "every run of this endpoint gives the same response, so a run looks like a replay"


def _statuses(exchanges: Iterable[Exchange]) -> str:
    return ", ".join(str(each) for each in exchanges)


def _same(first: Exchange, later: Exchange) -> bool:
    """Whether two responses have the same status and the same result."""
    return first.status == later.status and result_of(first) == result_of(later)


def _is_second_run(seen: Observations, retry: Exchange) -> bool:
    """Whether a retry that differs from the first response can only have been carried out again.

    Two runs differ, and so do the two retries, while a stored response that was changed on its way would not.
    """
    one, two = seen.retries
    return retry.success and mark_of(retry) is None and seen.distinct and result_of(one) != result_of(two)


def _plain_retry(seen: Observations) -> Exchange:
    """The response to a plain retry, to compare other responses with; not applicable if two retries differ."""
    one, two = seen.retries
    if not _same(one, two):
        raise not_applicable("two plain retries get different responses")
    return one


def _is_replay(seen: Observations, response: Exchange) -> bool:
    """Whether a response equals that of a plain retry. Raises ``Undecided`` if a run would look the same."""
    if not _same(_plain_retry(seen), response):
        return False
    if not seen.distinct and not mark_of(response):
        raise unknown(f"{response}; {_NO_DIFFERENCE}")
    return True


def new_keys(seen: Observations) -> Verdict:
    """Two requests with two new keys are both carried out."""
    first, second = seen.first, seen.second
    statuses = _statuses([first, second])
    if not second.success or mark_of(second):
        return fails(f"{statuses}: the second of two new keys was not treated as a new one")
    if not seen.distinct:
        raise unknown(f"{statuses}; {_NO_DIFFERENCE}")
    return holds(f"{statuses}, with different results")


def retry_status(seen: Observations) -> Verdict:
    """Both retries get the status of the first response."""
    return holds_if(
        all(retry.status == seen.first.status for retry in seen.retries),
        f"{seen.first}, then {_statuses(seen.retries)}",
    )


def retry_body(seen: Observations) -> Verdict:
    """Both retries get the body, ``Location`` and ``ETag`` of the first response."""
    for retry in seen.retries:
        if result_of(retry) != result_of(seen.first):
            second = ", as from a second run" if _is_second_run(seen, retry) else ""
            return fails(f"{retry}: another body, Location or ETag ({_sizes(seen.first, retry)}){second}")
    if not seen.distinct and not all(mark_of(retry) for retry in seen.retries):
        raise unknown(_NO_DIFFERENCE)
    return holds(f"{len(seen.first.body)} bytes each time")


def _sizes(*exchanges: Exchange) -> str:
    return " and ".join(f"{len(each.body)} bytes" for each in exchanges)


def retry_headers(seen: Observations) -> Verdict:
    """A retry gets the headers of the first response, duplicates included.

    A header that differs between two replays, such as a rate limit, is not part of the stored response.
    """
    one, two = seen.retries
    names = {name for each in (seen.first, one) for name, _ in each.headers if not is_marker(name)} - _OF_ONE_MESSAGE
    wrong = sorted(
        name
        for name in names
        if not name.startswith("access-control-")
        and one.all(name) != seen.first.all(name)
        and (name in _CONTENT or one.all(name) == two.all(name))
    )
    return holds_if(not wrong, f"other values of {', '.join(wrong)}" if wrong else "the same headers")


def retry_private_headers(seen: Observations) -> Verdict:
    """A retry does not get headers that were meant for one client at one moment."""
    present = [name for name in _OF_ONE_CLIENT if seen.first.all(name)]
    if not present:
        raise not_applicable(f"the first response has none of {', '.join(_OF_ONE_CLIENT)}")
    if not _same(seen.first, seen.retries[0]):
        raise not_applicable("a retry is not replayed: it gets another response than the first one")
    if not seen.distinct and mark_of(seen.retries[0]) is None:
        raise unknown(_NO_DIFFERENCE)
    leaked = [name for name in present if set(seen.first.all(name)) & set(seen.retries[0].all(name))]
    return holds_if(not leaked, f"replayed: {', '.join(leaked)}" if leaked else f"left out: {', '.join(present)}")


def retry_marked(seen: Observations) -> Verdict:
    """A replay is marked, and a first response is not. The mark may have another name than ours."""
    marks = [mark_of(each) for each in (seen.first, *seen.retries)]
    shown = ", ".join(mark or "none" for mark in marks)
    if marks[0] is not None or None in marks[1:]:
        return fails(shown)
    ours = all(mark == f"{MARKER}: true" for mark in marks[1:])
    return holds(shown if ours else f"{shown}; another spelling of Idempotent-Replayed: true")


def failure_not_replayed(seen: Observations) -> Verdict:
    """A retry after a 5xx is carried out again."""
    scene = seen.failing
    statuses = _statuses([scene.first, scene.again])
    if mark_of(scene.again):
        return fails(f"{statuses}, the second one marked as a replay")
    if not _same(scene.first, scene.again):
        return holds(f"{statuses}, with different results")
    if _same(scene.first, scene.other):
        raise unknown(f"{statuses}; every failure of this endpoint looks the same")
    return fails(f"{statuses} with the same body, which another key does not get")


def callers_apart(seen: Observations) -> Verdict:
    """A key that one caller has used has no effect on another caller."""
    response = seen.by_another
    if response.status in (401, 403) or not response.status:
        raise unknown(f"the other caller gets {response}")
    if response.status in (409, 422):
        return fails(f"{response}: it reveals that another caller has used the key")
    if mark_of(response) or (seen.distinct and _same(seen.first, response)):
        return fails(f"{response}, with the first caller's response")
    if not seen.distinct:
        raise unknown(f"{response}; {_NO_DIFFERENCE}")
    return holds(f"{response}, with a result of its own")


# Refusals: a reused key, a duplicate in flight, a missing key

#: seconds by which a duplicate has to take longer than a replay before it counts as held back
HELD = 0.5
#: seconds that a request has to take before a concurrent one has certainly met it
MET = 0.1
_DESCRIBED = re.compile(r"""rel\s*=\s*"?[^",;]*\b(describedby|help)\b""", re.IGNORECASE)


def _explained(response: Exchange) -> Verdict:
    """Whether an error is a problem document (RFC 9457), or links to documentation."""
    if _DESCRIBED.search(", ".join(response.all("link"))):
        return holds(f"{response} with a Link to documentation")
    kind = response.first("content-type").partition(";")[0].strip().lower()
    if kind != "application/problem+json":
        return fails(f"{response} as {kind or 'nothing'}, without a Link to documentation")
    try:
        problem: Any = json.loads(response.body)
    except ValueError:
        return fails(f"{response} as {kind} that is not JSON")
    named = isinstance(problem, dict) and bool(problem.get("type") or problem.get("title"))
    return holds_if(named, f"{response} as {kind}" + ("" if named else " without type and title"))


def _is_refusal(response: Exchange) -> bool:
    return 400 <= response.status < 500


def reuse_refused(seen: Observations) -> Verdict:
    """A key that is reused with another payload gets a 4xx."""
    response = seen.reuse.refused
    if not response.success:
        return holds_if(_is_refusal(response), str(response))
    replayed = mark_of(response) or _same(seen.first, response)
    return fails(f"{response}: {'the first response' if replayed else 'another response, as from a run'}")


def reuse_status(seen: Observations) -> Verdict:
    """The refusal of a reused key is a 422."""
    refusal = _reuse_refusal(seen)
    return holds_if(refusal.status == 422, str(refusal))


def reuse_explained(seen: Observations) -> Verdict:
    """The refusal of a reused key says what is wrong."""
    return _explained(_reuse_refusal(seen))


def reuse_meanwhile(seen: Observations) -> Verdict:
    """Of two concurrent payloads with one key one is carried out, and the other gets a 422."""
    statuses = _statuses(seen.rivals)
    winners = [each for each in seen.rivals if each.success]
    if len(winners) != 1:
        return fails(f"{statuses}: {'both requests were' if winners else 'neither request was'} carried out")
    (winner,) = winners
    (loser,) = [each for each in seen.rivals if each is not winner]
    if loser.status == 422 and winner.seconds < max(MET, loser.seconds):
        raise unknown(f"{statuses}: the first had finished after {winner.seconds * 1000:.0f} ms; give --slow-url")
    return holds_if(loser.status == 422, f"{loser} while the other ran")


def _reuse_refusal(seen: Observations) -> Exchange:
    response = seen.reuse.refused
    if not _is_refusal(response):
        raise not_applicable(f"the reused key was not refused; it got {response}")
    return response


def reuse_harmless(seen: Observations) -> Verdict:
    """A request with another payload does not change the record."""
    return _unchanged(_plain_retry(seen), seen.reuse.afterwards)


def _unchanged(first: Exchange, afterwards: Exchange) -> Verdict:
    if _same(first, afterwards):
        return holds(f"{afterwards}, the first response")
    return fails(
        f"{first} at first, {afterwards} afterwards" + ", another result" * (first.status == afterwards.status)
    )


def concurrent_once(seen: Observations) -> Verdict:
    """Of two equal concurrent requests one is carried out."""
    scene = seen.pair
    statuses = _statuses(scene.both)
    if not scene.winners:
        return fails(f"{statuses}: neither was carried out")
    if len(scene.winners) == 1:
        return holds(statuses)
    if not _same(*scene.winners):
        return fails(f"{statuses}, with different results: both ran")
    if not scene.distinct and not any(mark_of(each) for each in scene.both):
        raise unknown(f"{statuses}; every run of this endpoint gives the same response")
    return holds(f"{statuses}, with one result")


def concurrent_conflict(seen: Observations) -> Verdict:
    """A duplicate that arrives while the first request runs gets a 409, or is held and gets the first response."""
    scene = seen.pair
    statuses = _statuses(scene.both)
    if not scene.winners:
        raise unknown(f"{statuses}: neither was carried out")
    if len(scene.winners) == 1:
        return holds_if(409 in [each.status for each in scene.both], statuses)
    if not _same(*scene.winners):
        return fails(f"{statuses}, with different results: both ran")
    quicker = min(each.seconds for each in scene.both)
    if quicker - scene.afterwards.seconds >= HELD:
        return holds(f"{statuses}: the duplicate was held for {quicker:.1f} s and then got the first response")
    raise unknown(f"{statuses}: the first had finished after {quicker * 1000:.0f} ms; give --slow-url")


def conflict_explained(seen: Observations) -> Verdict:
    """The 409 says what is wrong."""
    return _explained(_conflict(seen))


def conflict_retry_after(seen: Observations) -> Verdict:
    """The 409 says when to retry."""
    value = _conflict(seen).first("retry-after")
    return holds_if(bool(value), f"Retry-After: {value or 'none'}")


def _conflict(seen: Observations) -> Exchange:
    for each in seen.pair.both:
        if each.status == 409:
            return each
    raise not_applicable(f"there was no 409, but {_statuses(seen.pair.both)}")


def conflict_harmless(seen: Observations) -> Verdict:
    """A retry after a 409 gets the response of the request that ran."""
    scene = seen.pair
    if len(scene.winners) != 1:
        raise not_applicable(f"neither of the two was refused: {_statuses(scene.both)}")
    if not _same(seen.first, _plain_retry(seen)):
        raise not_applicable("a plain retry does not get the first response either")
    return _unchanged(scene.winners[0], scene.afterwards)


def missing_refused(seen: Observations) -> Verdict:
    """Where a key is required, a request without one gets a 400."""
    response = _without_required_key(seen)
    return holds_if(response.status == 400, str(response))


def missing_explained(seen: Observations) -> Verdict:
    """The refusal of a missing key says what is missing."""
    response = _without_required_key(seen)
    if not _is_refusal(response):
        raise not_applicable(f"the request without a key was not refused; it got {response}")
    return _explained(response)


def _without_required_key(seen: Observations) -> Exchange:
    if not seen.target.required:
        raise not_applicable("give --required if a key is documented to be required")
    return seen.without_key[0]


def missing_not_shared(seen: Observations) -> Verdict:
    """Where no key is required, requests without one are not taken for retries of each other."""
    if seen.target.required:
        raise not_applicable("a key is required")
    one, two = seen.without_key
    statuses = _statuses(seen.without_key)
    if not one.success:
        raise not_applicable(f"without a key it gets {one}; give --required if that is documented")
    if mark_of(two) or (seen.distinct and _same(one, two)):
        return fails(f"{statuses}, with one result: the second was taken for a retry")
    if not seen.distinct:
        raise unknown(f"{statuses}; every run of this endpoint gives the same response")
    return holds_if(two.success, statuses)


# The key header: which values are keys, and when two spellings are one key

Lines = tuple[bytes, ...]

# Each value contains a new key, so that a server which accepts the value runs the request.
_NO_STRING: dict[str, str] = {
    "an unterminated String": '"{0}',
    "text after a String": '"{0}"x',
    "an unknown escape": '"{0}\\q"',
    "a List": '"{0}", "{1}"',
    "an Inner List": '("{0}")',
    "an upper-case parameter": '"{0}";V=1',
}
_STRANGE: dict[str, Callable[[bytes], Lines]] = {
    "bytes above 0x7F": lambda key: (b'"' + key + b'\xc3\xa9"',),
    "a control character": lambda key: (b'"' + key + b'\x01"',),
}
_TWICE: dict[str, Callable[[bytes], Lines]] = {
    "two equal lines": lambda key: (b'"' + key + b'"', b'"' + key + b'"'),
    "two different lines": lambda key: (b'"' + key + b'"', b'"' + new_key().encode() + b'"'),
}
_EMPTY: dict[str, Callable[[bytes], Lines]] = {
    "an empty header": lambda key: (b"",),
    "an empty String": lambda key: (b'""',),
}


def string_taken(seen: Observations) -> Verdict:
    """A key that is sent as a String is accepted."""
    return holds_if(
        seen.as_string.success, f"{seen.as_string}" + ("" if seen.quoted else ", but accepted without quotes")
    )


def _all_refused(seen: Observations, values: dict[str, Lines]) -> Verdict:
    responses = {what: seen.send_malformed(*lines) for what, lines in values.items()}
    wrong = [f"{what}: {got}" for what, got in responses.items() if not _is_refusal(got) and got.status]
    if wrong:
        return fails("; ".join(wrong))
    silent = [f"{what}: {got}" for what, got in responses.items() if not got.status]
    if silent:
        raise unknown("; ".join(silent))
    return holds("; ".join(f"{what}: {got}" for what, got in responses.items()))


def no_string(seen: Observations) -> Verdict:
    """A value that is not a String is refused."""
    values: dict[str, Lines] = {
        what: (value.format(new_key(), new_key()).encode("ascii"),) for what, value in _NO_STRING.items()
    }
    return _all_refused(seen, values)


def strange_bytes(seen: Observations) -> Verdict:
    """A key with bytes that no String may contain is refused."""
    return _all_refused(seen, {what: make(new_key().encode()) for what, make in _STRANGE.items()})


def two_lines(seen: Observations) -> Verdict:
    """Two key headers in one request are refused, even if they are equal."""
    return _all_refused(seen, {what: make(new_key().encode()) for what, make in _TWICE.items()})


def empty(seen: Observations) -> Verdict:
    """An empty key is refused, and not treated as an absent key."""
    return _all_refused(seen, {what: make(b"") for what, make in _EMPTY.items()})


def case_of_key(seen: Observations) -> Verdict:
    """Keys that differ by case are two keys."""
    response = seen.respelled(seen.spelled(seen.key.upper()))
    if not response.success:
        raise unknown(f"the key in upper case gets {response}")
    if _is_replay(seen, response):
        return fails(f"{response}, as a retry")
    return holds(f"{response}, a result of its own")


def case_of_name(seen: Observations) -> Verdict:
    """The name of the header may be in upper case."""
    return _same_key(seen, seen.respelled(seen.spelled(seen.key), seen.target.header_name.upper()))


def bare_key(seen: Observations) -> Verdict:
    """The key without quotes is the same key."""
    if not seen.quoted:
        raise not_applicable("this endpoint does not accept quotes")
    return _same_key(seen, seen.respelled(seen.key.encode("ascii")))


def parameters(seen: Observations) -> Verdict:
    """Parameters are not part of the key."""
    if not seen.quoted:
        raise not_applicable("this endpoint does not accept quotes")
    return _same_key(seen, seen.respelled(seen.spelled(seen.key) + b";v=1"))


def _same_key(seen: Observations, response: Exchange) -> Verdict:
    if _is_replay(seen, response):
        return holds(f"{response}, as a retry")
    return fails(f"{response}" + (", a result of its own: another key" if response.success else ""))


def length(seen: Observations) -> Verdict:
    """A key may have 255 octets, but not 256."""
    accepted, refused = (seen.send_long(seen.spelled(secrets.token_hex(128)[:octets])) for octets in (255, 256))
    return holds_if(accepted.success and _is_refusal(refused), f"255: {accepted}; 256: {refused}")
