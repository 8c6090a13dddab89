"""Shops with one fault each. ``fails``: the statements that have to fail, and no others may.

The faults here: wrong replays, and wrong refusals.
"""

from __future__ import annotations

import json
import threading
from typing import Any

from tests.conformance.shop import PATIENCE, Kept, Request, Response, Shop


class RunsAgain(Shop):
    """Runs a retry again."""

    fails = frozenset({"retry-headers", "retry-marked", "retry-result"})

    def replay(self, response: Response, kept: Kept) -> Response:
        return self.run(kept.request)


class ForgetsAfterOneReplay(Shop):
    """Deletes the record with its first replay."""

    fails = frozenset({"retry-result"})

    def replay(self, response: Response, kept: Kept) -> Response:
        kept.response = self.run(kept.request)
        return super().replay(response, kept)


class AnotherStatus(Shop):
    """Replays everything as 200."""

    fails = frozenset({"retry-status"})

    def replay(self, response: Response, kept: Kept) -> Response:
        made = super().replay(response, kept)
        return Response(200, made.headers, made.body)


class AnotherBody(Shop):
    """Rewrites the body of a replay."""

    fails = frozenset({"retry-result"})

    def replay(self, response: Response, kept: Kept) -> Response:
        made = super().replay(response, kept)
        return Response(made.status, made.headers, json.dumps(json.loads(made.body), indent=2).encode())


class MergesHeaders(Shop):
    """Stores headers in a dictionary."""

    fails = frozenset({"retry-headers"})

    def replay(self, response: Response, kept: Kept) -> Response:
        made = super().replay(response, kept)
        return Response(made.status, list(dict(made.headers).items()), made.body)


class LosesContentType(Shop):
    """Stores status and body only."""

    fails = frozenset({"retry-headers"})

    def replay(self, response: Response, kept: Kept) -> Response:
        made = super().replay(response, kept)
        headers = [("Content-Type", "text/html") if name == "Content-Type" else (name, v) for name, v in made.headers]
        return Response(made.status, headers, made.body)


class LeaksCookies(Shop):
    """Sends one client's cookie to the next client."""

    fails = frozenset({"retry-private"})

    def replay(self, response: Response, kept: Kept) -> Response:
        return Response(response.status, [*response.headers, ("Idempotent-Replayed", "true")], response.body)


class Unmarked(Shop):
    """Does not mark replays."""

    fails = frozenset({"retry-marked"})

    def replay(self, response: Response, kept: Kept) -> Response:
        made = super().replay(response, kept)
        return Response(made.status, [pair for pair in made.headers if pair[0] != "Idempotent-Replayed"], made.body)


class IgnoresPayload(Shop):
    """Replays the response for any payload."""

    fails = frozenset({"reuse-refused", "reuse-meanwhile"})

    def same_request(self, kept: Request, request: Request) -> bool:
        return True


class RunsReusedKey(Shop):
    """Runs the other request of a reused key."""

    fails = frozenset({"reuse-refused", "reuse-meanwhile"})

    def reused(self, kept: Kept, request: Request) -> Response:
        return self.run(request)


class ReusedIs400(Shop):
    """Refuses a reused key with another status."""

    fails = frozenset({"reuse-status", "reuse-meanwhile"})

    def reused(self, kept: Kept, request: Request) -> Response:
        return self.problem(400, "key reused")


class ReusedMeanwhileIs409(Shop):
    """Compares the payload only once a response is stored."""

    fails = frozenset({"reuse-meanwhile"})

    def reused_meanwhile(self, kept: Kept, request: Request) -> Response:
        return self.busy(kept, request)


class ReusedMeanwhileRuns(Shop):
    """Runs every payload that arrives before the first response is stored."""

    fails = frozenset({"reuse-meanwhile"})

    def reused_meanwhile(self, kept: Kept, request: Request) -> Response:
        return self.run(request)


class ReuseSpoils(Shop):
    """Overwrites the record by a refused request."""

    fails = frozenset({"reuse-harmless"})

    def reused(self, kept: Kept, request: Request) -> Response:
        kept.request = request
        return super().reused(kept, request)


class RunsTwiceAtOnce(Shop):
    """Reads, runs and stores, without a claim."""

    fails = frozenset({"concurrent-once", "concurrent-conflict"})

    def busy(self, kept: Kept, request: Request) -> Response:
        return self.run(request)


class BusyIs200(Shop):
    """Responds 200 to a duplicate in flight."""

    fails = frozenset({"concurrent-once", "concurrent-conflict"})

    def busy(self, kept: Kept, request: Request) -> Response:
        return Response(200, [("Content-Type", "application/json")], b'{"status": "pending"}')


class BusyIs503(Shop):
    """Refuses a duplicate in flight with another status."""

    fails = frozenset({"concurrent-conflict"})

    def busy(self, kept: Kept, request: Request) -> Response:
        return self.problem(503, "busy")


class BusyWithoutRetryAfter(Shop):
    """Does not say when to retry."""

    fails = frozenset({"conflict-retry-after"})

    def busy(self, kept: Kept, request: Request) -> Response:
        return self.problem(409, "in progress")


class ConflictSpoils(Shop):
    """Stores the 409 as the outcome."""

    fails = frozenset({"conflict-harmless"})

    def busy(self, kept: Kept, request: Request) -> Response:
        self.spoilt = super().busy(kept, request)
        return self.spoilt

    def replay(self, response: Response, kept: Kept) -> Response:
        return self.spoilt if kept.request.path == "/slow" else super().replay(response, kept)


class BothConflict(Shop):
    """Refuses both of two equal requests at the same time."""

    fails = frozenset({"concurrent-once"})

    def __init__(self) -> None:
        super().__init__()
        self.meeting = threading.Barrier(2)

    def with_key(self, key: str, request: Request) -> Response:
        if request.path == "/slow" and request.turn == 0 and not self.slow_runs[0] and not self.met[0].is_set():
            self.meeting.wait(PATIENCE)
            self.met[0].set()
            return self.busy(Kept(request), request)
        return super().with_key(key, request)


class MissingAccepted(Shop):
    """Requires a key only in its documentation."""

    fails = frozenset({"missing-refused"})

    def without_key(self, request: Request) -> Response:
        return self.run(request)


class PlainErrors(Shop):
    """Sends errors without an explanation."""

    fails = frozenset({"reuse-explained", "conflict-explained", "missing-explained"})

    def problem(self, status: int, title: str, headers: Any = None) -> Response:
        return Response(status, [("Content-Type", "application/json"), *(headers or [])], b'{"error": "no"}')
