"""Shops that are each wrong in one way; ``fails`` names the statements that have to say so, and no others may.

Here: wrong replays, and wrong refusals.
"""

from __future__ import annotations

import json
import threading
from typing import Any

from tests.conformance.shop import PATIENCE, Answer, Kept, Request, Shop


class RunsAgain(Shop):
    """Carries a retry out again."""

    fails = frozenset({"retry-fields", "retry-marked", "retry-result"})

    def replay(self, answer: Answer, kept: Kept) -> Answer:
        return self.run(kept.request)


class ForgetsAfterOneReplay(Shop):
    """A replay uses the record up."""

    fails = frozenset({"retry-result"})

    def replay(self, answer: Answer, kept: Kept) -> Answer:
        kept.answer = self.run(kept.request)
        return super().replay(answer, kept)


class AnotherStatus(Shop):
    """Replays everything as 200."""

    fails = frozenset({"retry-status"})

    def replay(self, answer: Answer, kept: Kept) -> Answer:
        made = super().replay(answer, kept)
        return Answer(200, made.fields, made.body)


class AnotherBody(Shop):
    """Writes the body anew."""

    fails = frozenset({"retry-result"})

    def replay(self, answer: Answer, kept: Kept) -> Answer:
        made = super().replay(answer, kept)
        return Answer(made.status, made.fields, json.dumps(json.loads(made.body), indent=2).encode())


class MergesFields(Shop):
    """Keeps fields in a dictionary."""

    fails = frozenset({"retry-fields"})

    def replay(self, answer: Answer, kept: Kept) -> Answer:
        made = super().replay(answer, kept)
        return Answer(made.status, list(dict(made.fields).items()), made.body)


class LosesContentType(Shop):
    """Keeps status and body alone."""

    fails = frozenset({"retry-fields"})

    def replay(self, answer: Answer, kept: Kept) -> Answer:
        made = super().replay(answer, kept)
        fields = [("Content-Type", "text/html") if name == "Content-Type" else (name, v) for name, v in made.fields]
        return Answer(made.status, fields, made.body)


class LeaksCookies(Shop):
    """Gives one client's cookie to the next."""

    fails = frozenset({"retry-private"})

    def replay(self, answer: Answer, kept: Kept) -> Answer:
        return Answer(answer.status, [*answer.fields, ("Idempotent-Replayed", "true")], answer.body)


class Unmarked(Shop):
    """Does not say that it replays."""

    fails = frozenset({"retry-marked"})

    def replay(self, answer: Answer, kept: Kept) -> Answer:
        made = super().replay(answer, kept)
        return Answer(made.status, [pair for pair in made.fields if pair[0] != "Idempotent-Replayed"], made.body)


class IgnoresPayload(Shop):
    """Replays whatever the payload is."""

    fails = frozenset({"reuse-refused", "reuse-meanwhile"})

    def same_request(self, kept: Request, request: Request) -> bool:
        return True


class RunsReusedKey(Shop):
    """Carries a reused key's other request out."""

    fails = frozenset({"reuse-refused", "reuse-meanwhile"})

    def reused(self, kept: Kept, request: Request) -> Answer:
        return self.run(request)


class ReusedIs400(Shop):
    """Refuses a reused key with another status."""

    fails = frozenset({"reuse-status", "reuse-meanwhile"})

    def reused(self, kept: Kept, request: Request) -> Answer:
        return self.problem(400, "key reused")


class ReusedMeanwhileIs409(Shop):
    """Looks at the payload only when there is an answer to compare with."""

    fails = frozenset({"reuse-meanwhile"})

    def reused_meanwhile(self, kept: Kept, request: Request) -> Answer:
        return self.busy(kept, request)


class ReusedMeanwhileRuns(Shop):
    """Carries out whatever comes in before the first payload is on record."""

    fails = frozenset({"reuse-meanwhile"})

    def reused_meanwhile(self, kept: Kept, request: Request) -> Answer:
        return self.run(request)


class ReuseSpoils(Shop):
    """A refused request takes the record over."""

    fails = frozenset({"reuse-harmless"})

    def reused(self, kept: Kept, request: Request) -> Answer:
        kept.request = request
        return super().reused(kept, request)


class RunsTwiceAtOnce(Shop):
    """Looks, runs and keeps, without a claim."""

    fails = frozenset({"concurrent-once", "concurrent-conflict"})

    def busy(self, kept: Kept, request: Request) -> Answer:
        return self.run(request)


class HoldsDuplicates(Shop):
    """Lets a duplicate wait, and answers it with 201."""

    fails = frozenset({"concurrent-conflict"})
    slow_for = 1.0

    def busy(self, kept: Kept, request: Request) -> Answer:
        assert kept.done.wait(PATIENCE)
        assert kept.answer is not None
        return self.replay(kept.answer, kept)


class BusyIs200(Shop):
    """Tells a duplicate in flight that all is well."""

    fails = frozenset({"concurrent-once", "concurrent-conflict"})

    def busy(self, kept: Kept, request: Request) -> Answer:
        return Answer(200, [("Content-Type", "application/json")], b'{"status": "pending"}')


class BusyIs503(Shop):
    """Refuses a duplicate in flight with another status."""

    fails = frozenset({"concurrent-conflict"})

    def busy(self, kept: Kept, request: Request) -> Answer:
        return self.problem(503, "busy")


class BusyWithoutRetryAfter(Shop):
    """Does not say when to come back."""

    fails = frozenset({"conflict-retry-after"})

    def busy(self, kept: Kept, request: Request) -> Answer:
        return self.problem(409, "in progress")


class ConflictSpoils(Shop):
    """Keeps the 409 as the outcome."""

    fails = frozenset({"conflict-harmless"})

    def busy(self, kept: Kept, request: Request) -> Answer:
        self.spoilt = super().busy(kept, request)
        return self.spoilt

    def replay(self, answer: Answer, kept: Kept) -> Answer:
        return self.spoilt if kept.request.path == "/slow" else super().replay(answer, kept)


class BothConflict(Shop):
    """Each of two equal requests gives way to the other."""

    fails = frozenset({"concurrent-once"})

    def __init__(self) -> None:
        super().__init__()
        self.meeting = threading.Barrier(2)

    def with_key(self, key: str, request: Request) -> Answer:
        if request.path == "/slow" and request.turn == 0 and not self.slow_runs[0] and not self.met[0].is_set():
            self.meeting.wait(PATIENCE)
            self.met[0].set()
            return self.busy(Kept(request), request)
        return super().with_key(key, request)


class MissingAccepted(Shop):
    """Requires a key in its documentation alone."""

    fails = frozenset({"missing-refused"})

    def without_key(self, request: Request) -> Answer:
        return self.run(request)


class PlainErrors(Shop):
    """Errors without an explanation."""

    fails = frozenset({"reuse-explained", "conflict-explained", "missing-explained"})

    def problem(self, status: int, title: str, fields: Any = None) -> Answer:
        return Answer(status, [("Content-Type", "application/json"), *(fields or [])], b'{"error": "no"}')
