"""Checks of what has to be refused: a reused key, a duplicate in flight, a missing key."""

from __future__ import annotations

import json
import re
from typing import Any

from open_idempotency.conformance.http.observations import MARKER, Observations
from open_idempotency.conformance.http.replays import replay, same, statuses
from open_idempotency.conformance.http.verdicts import (
    Verdict,
    fails,
    holds,
    holds_if,
    not_applicable,
    unknown,
)
from open_idempotency.conformance.http.wire import Exchange

#: seconds by which a duplicate has to outlast a replay, before it is said to have been held back
HELD = 0.5
#: seconds that a request has to take, so that another one sent at the same moment has surely met it
MET = 0.1
_DESCRIBED = re.compile(r"""rel\s*=\s*"?[^",;]*\b(describedby|help)\b""", re.IGNORECASE)


def explained(answer: Exchange) -> Verdict:
    """Whether an error is a problem document, or links to documentation."""
    if _DESCRIBED.search(", ".join(answer.all("link"))):
        return holds(f"{answer} with a Link to documentation")
    kind = answer.first("content-type").partition(";")[0].strip().lower()
    if kind != "application/problem+json":
        return fails(f"{answer} as {kind or 'nothing'}, without a Link to documentation")
    try:
        problem: Any = json.loads(answer.body)
    except ValueError:
        return fails(f"{answer} as {kind} that is not JSON")
    named = isinstance(problem, dict) and bool(problem.get("type") or problem.get("title"))
    return holds_if(named, f"{answer} as {kind}" + ("" if named else " without type and title"))


def reuse_refused(seen: Observations) -> Verdict:
    """A key with another payload is no success."""
    answer = seen.reuse.refused
    if not answer.success:
        return holds_if(400 <= answer.status < 500, str(answer))
    what = "the first answer" if answer.first(MARKER) or same(seen.first, answer) else "another answer, as from a run"
    return fails(f"{answer}: {what}")


def reuse_status(seen: Observations) -> Verdict:
    """The refusal is a 422."""
    return holds_if(_refusal(seen).status == 422, str(_refusal(seen)))


def reuse_explained(seen: Observations) -> Verdict:
    """The refusal says what is wrong."""
    return explained(_refusal(seen))


def reuse_meanwhile(seen: Observations) -> Verdict:
    """Of two payloads with one key at one moment one is carried out, and the other is a 422."""
    answered = statuses(seen.rivals)
    winners = [each for each in seen.rivals if each.success]
    if len(winners) != 1:
        which = "both were answered as if they were" if winners else "neither was"
        return fails(f"{answered}: {which} carried out")
    (winner,) = winners
    (loser,) = [each for each in seen.rivals if each is not winner]
    if loser.status == 422 and winner.seconds < max(MET, loser.seconds):
        raise unknown(f"{answered}: the first had finished after {winner.seconds * 1000:.0f} ms; give --slow-url")
    return holds_if(loser.status == 422, f"{loser} while the other ran")


def _refusal(seen: Observations) -> Exchange:
    if not 400 <= seen.reuse.refused.status < 500:
        raise not_applicable(f"it was not refused but answered {seen.reuse.refused}")
    return seen.reuse.refused


def reuse_harmless(seen: Observations) -> Verdict:
    """What came with another payload has not changed the record."""
    return _unchanged(replay(seen), seen.reuse.afterwards)


def _unchanged(first: Exchange, afterwards: Exchange) -> Verdict:
    if same(first, afterwards):
        return holds(f"{afterwards}, the first answer")
    return fails(
        f"{first} at first, {afterwards} afterwards" + ", another result" * (first.status == afterwards.status)
    )


def concurrent_once(seen: Observations) -> Verdict:
    """Of two equal requests at one moment one is carried out."""
    scene = seen.pair
    answered = statuses(scene.both)
    if not scene.winners:
        return fails(f"{answered}: neither was carried out")
    if len(scene.winners) == 1:
        return holds(answered)
    if not same(*scene.winners):
        return fails(f"{answered}, with different results: both ran")
    if not scene.distinct and not any(each.first(MARKER) for each in scene.both):
        raise unknown(f"{answered}; every run of this endpoint gives the same answer")
    return holds(f"{answered}, with one result")


def concurrent_conflict(seen: Observations) -> Verdict:
    """The one that comes while the other runs is told so."""
    scene = seen.pair
    answered = statuses(scene.both)
    if not scene.winners:
        raise unknown(f"{answered}: neither was carried out")
    if len(scene.winners) == 1:
        return holds_if(409 in [each.status for each in scene.both], answered)
    if not same(*scene.winners):
        return fails(f"{answered}, with different results: both ran")
    quicker = min(each.seconds for each in scene.both)
    if quicker - scene.afterwards.seconds >= HELD:
        return fails(f"{answered}: the duplicate was held for {quicker:.1f} s and then answered like the first")
    raise unknown(f"{answered}: the first had finished after {quicker * 1000:.0f} ms; give --slow-url")


def conflict_explained(seen: Observations) -> Verdict:
    """The conflict says what it is."""
    return explained(_conflict(seen))


def conflict_retry_after(seen: Observations) -> Verdict:
    """The conflict says when to come back."""
    value = _conflict(seen).first("retry-after")
    return holds_if(bool(value), f"Retry-After: {value or 'none'}")


def _conflict(seen: Observations) -> Exchange:
    for each in seen.pair.both:
        if each.status == 409:
            return each
    raise not_applicable(f"no 409 was seen, but {statuses(seen.pair.both)}")


def conflict_harmless(seen: Observations) -> Verdict:
    """A retry after both gets the answer of the one that ran."""
    scene = seen.pair
    if len(scene.winners) != 1:
        raise not_applicable(f"no one of the two was refused: {statuses(scene.both)}")
    if not same(seen.first, replay(seen)):
        raise not_applicable("a plain retry is not answered like the first request either")
    return _unchanged(scene.winners[0], scene.afterwards)


def missing_refused(seen: Observations) -> Verdict:
    """Where a key is required, a request without one is a 400."""
    answer = _required(seen)
    return holds_if(answer.status == 400, str(answer))


def missing_explained(seen: Observations) -> Verdict:
    """The refusal says what is missing."""
    answer = _required(seen)
    if not 400 <= answer.status < 500:
        raise not_applicable(f"it was not refused but answered {answer}")
    return explained(answer)


def _required(seen: Observations) -> Exchange:
    if not seen.target.required:
        raise not_applicable("give --required where a key is documented to be required")
    return seen.without_key[0]


def missing_not_shared(seen: Observations) -> Verdict:
    """Requests without a key have nothing in common."""
    if seen.target.required:
        raise not_applicable("a key is required")
    one, two = seen.without_key
    answered = statuses(seen.without_key)
    if not one.success:
        raise not_applicable(f"without a key it is answered {one}; give --required if that is documented")
    if two.first(MARKER) or (seen.distinct and same(one, two)):
        return fails(f"{answered}, with one result: the second was taken for a retry")
    if not seen.distinct:
        raise unknown(f"{answered}; every run of this endpoint gives the same answer")
    return holds_if(two.success, answered)
