"""A small shop in plain WSGI with an idempotency layer of its own, which the tests break by overriding methods.

It shares no code with the package, since a runner that is tested only on the package's middleware proves little. Each
method is one decision, so that a subclass is wrong in one way.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

Headers = list[tuple[str, str]]
STRING = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])+)"(?:; *[a-z*][a-z0-9_\-.*]*(?:=[a-z0-9]+)?)*')
BARE = re.compile(r"[!#-+\--:<-\[\]-~]+")
PATIENCE = 10.0
#: seconds that a request to ``/slow`` takes after another request came during it
SLOW = 0.12


@dataclass
class Response:
    """A response."""

    status: int
    headers: Headers
    body: bytes


@dataclass
class Request:
    """A request. ``caller``: its ``Authorization`` header."""

    path: str
    caller: str
    body: bytes
    #: how many keys came to ``/slow`` before this one
    turn: int = field(default=0, compare=False)


@dataclass
class Kept:
    """The record of a key; ``response`` is None while the request runs."""

    request: Request
    response: Response | None = None
    done: threading.Event = field(default_factory=threading.Event)


class Shop:
    """Charges at any path; ``/slow`` waits for a duplicate, ``/failing`` is a 503.

    Of the keys that come to ``/slow`` the first one gets a duplicate, the second one gets none and does not wait, and
    the third one gets another payload.
    """

    #: the statements that fail
    fails: frozenset[str] = frozenset()
    #: whether a key is required
    required = True
    #: seconds for which a slow request waits for a duplicate, at most
    slow_for = PATIENCE

    def __init__(self) -> None:
        self.numbers = count(1)
        self.runs = 0
        self.kept: dict[Any, Kept] = {}
        self.lock = threading.Lock()
        #: by the number of the key: set when a duplicate of a slow request got its response, or ran as well
        self.met = {0: threading.Event(), 2: threading.Event()}
        self.slow_runs: Counter[int] = Counter()
        self.slow_keys: list[str] = []

    # Decisions that a subclass may get wrong

    def key_of(self, header: str) -> str | None:
        """The key in a header; None if it is malformed."""
        found = STRING.fullmatch(header)
        bare = BARE.fullmatch(header)
        key = re.sub(r"\\(.)", r"\1", found[1]) if found else bare[0] if bare else None
        return key if key and len(key) <= 255 else None

    def record_id(self, key: str, request: Request) -> Any:
        """The id of the record of a key."""
        return request.caller, key

    def same_request(self, kept: Request, request: Request) -> bool:
        """Whether a request is the one that its key was first used with."""
        return kept == request

    def replay(self, response: Response, kept: Kept) -> Response:
        """The stored response, for a retry."""
        private = ("set-cookie", "date")
        headers = [pair for pair in response.headers if pair[0].lower() not in private]
        return Response(response.status, [*headers, ("Idempotent-Replayed", "true")], response.body)

    def without_key(self, request: Request) -> Response:
        """The response to a request without a key."""
        return self.problem(400, "key missing") if self.required else self.run(request)

    def malformed(self, header: str, request: Request) -> Response:
        """The response to a malformed key."""
        return self.problem(400, "key malformed")

    def reused(self, kept: Kept, request: Request) -> Response:
        """The response to a key that is reused with another request."""
        return self.problem(422, "key reused")

    def reused_meanwhile(self, kept: Kept, request: Request) -> Response:
        """The response to a key that is reused while its first request runs."""
        return self.reused(kept, request)

    def busy(self, kept: Kept, request: Request) -> Response:
        """The response to a retry while the first request runs."""
        return self.problem(409, "in progress", [("Retry-After", "1")])

    def keeps(self, response: Response) -> bool:
        """Whether a response is the outcome of its request."""
        return response.status < 500

    def problem(self, status: int, title: str, headers: Headers | None = None) -> Response:
        """An error response."""
        body = json.dumps({"type": "urn:shop:problem", "title": title}).encode()
        return Response(status, [("Content-Type", "application/problem+json"), *(headers or [])], body)

    # The other methods are correct in every shop

    def run(self, request: Request) -> Response:
        """The handler."""
        with self.lock:
            number = next(self.numbers)
            self.runs += 1
            self.slow_runs[request.turn] += request.path == "/slow"
            both_run = self.slow_runs[request.turn] > 1
        if request.path == "/slow" and request.turn in self.met:
            if both_run:
                self.met[request.turn].set()
            self.met[request.turn].wait(self.slow_for)
            time.sleep(SLOW)
        body = json.dumps({"charge": number}).encode()
        if request.path == "/failing":
            return Response(503, [("Content-Type", "application/json")], body)
        headers = [("Content-Type", "application/json"), ("Location", f"/charges/{number}")]
        return Response(201, [*headers, ("Link", "</a>"), ("Link", "</b>"), ("Set-Cookie", f"last={number}")], body)

    def respond(self, request: Request, header: str | None) -> Response:
        """The response to a request, by its key header."""
        if header is None:
            return self.without_key(request)
        key = self.key_of(header)
        return self.malformed(header, request) if key is None else self.with_key(key, request)

    def with_key(self, key: str, request: Request) -> Response:
        """The response to a request with this key."""
        record_id = self.record_id(key, request)
        with self.lock:
            kept = self.kept.get(record_id)
            if kept is None:
                own = self.kept[record_id] = Kept(request)
        if kept is None:
            return self.first(record_id, own)
        if not self.same_request(kept.request, request):
            response = self.reused(kept, request) if kept.response is not None else self.reused_meanwhile(kept, request)
        elif kept.response is not None:
            return self.replay(kept.response, kept)
        else:
            response = self.busy(kept, request)
        if request.path == "/slow" and request.turn in self.met:
            self.met[request.turn].set()
        return response

    def first(self, record_id: Any, kept: Kept) -> Response:
        """Run a request, and store its response."""
        response = self.run(kept.request)
        with self.lock:
            if self.keeps(response):
                kept.response = response
            else:
                del self.kept[record_id]
        kept.done.set()
        return response

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        header = environ.get("HTTP_IDEMPOTENCY_KEY")
        request = Request(environ["PATH_INFO"], environ.get("HTTP_AUTHORIZATION", ""), body)
        if request.path == "/slow" and header is not None:
            with self.lock:
                self.slow_keys += [header] * (header not in self.slow_keys)
                request.turn = self.slow_keys.index(header)
        response = self.respond(request, header)
        length = ("Content-Length", str(len(response.body)))
        start_response(f"{response.status} Whatever", [*response.headers, length])
        return [response.body]


class HoldsDuplicates(Shop):
    """Lets a duplicate wait, and then replays the 201, as ``wait=`` does."""

    slow_for = 1.0

    def busy(self, kept: Kept, request: Request) -> Response:
        assert kept.done.wait(PATIENCE)
        assert kept.response is not None
        return self.replay(kept.response, kept)


class MarksOtherwise(Shop):
    """Marks replays with a header of another name. ``mark``: the values on a replay and on a first response."""

    mark: tuple[str, str, str | None] = ("X-Idempotency-Replayed", "true", None)

    def replay(self, response: Response, kept: Kept) -> Response:
        name, replayed, _ = self.mark
        headers = [
            pair for pair in super().replay(response, kept).headers if pair[0] not in (name, "Idempotent-Replayed")
        ]
        return Response(response.status, [*headers, (name, replayed)], response.body)

    def run(self, request: Request) -> Response:
        response, (name, _, first) = super().run(request), self.mark
        return Response(
            response.status, [*response.headers, *([] if first is None else [(name, first)])], response.body
        )
