"""A little shop in plain WSGI that does idempotency right by itself; what it does wrong, the tests override.

It shares no code with the package: a runner that is tried on its own author's middleware alone proves little. Each
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

Fields = list[tuple[str, str]]
STRING = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])+)"(?:; *[a-z*][a-z0-9_\-.*]*(?:=[a-z0-9]+)?)*')
BARE = re.compile(r"[!#-+\--:<-\[\]-~]+")
PATIENCE = 10.0
#: seconds that a request to ``/slow`` takes, once it has been met
SLOW = 0.12


@dataclass
class Answer:
    """What is sent."""

    status: int
    fields: Fields
    body: bytes


@dataclass
class Request:
    """What came. ``caller``: its Authorization."""

    path: str
    caller: str
    body: bytes
    #: how many keys came to ``/slow`` before this one
    turn: int = field(default=0, compare=False)


@dataclass
class Kept:
    """What the shop remembers of a key; ``answer`` is None while the request runs."""

    request: Request
    answer: Answer | None = None
    done: threading.Event = field(default_factory=threading.Event)


class Shop:
    """Charges at any path; ``/slow`` waits for a duplicate, ``/failing`` is a 503.

    Of the keys that come to ``/slow`` the first one meets a duplicate, the second one comes alone and does not wait,
    and the third one meets another payload.
    """

    #: the statements that do not hold of it
    fails: frozenset[str] = frozenset()
    #: otherwise keys are optional
    required = True
    #: seconds for which a slow request waits for a duplicate, at most
    slow_for = PATIENCE

    def __init__(self) -> None:
        self.numbers = count(1)
        self.runs = 0
        self.kept: dict[Any, Kept] = {}
        self.lock = threading.Lock()
        #: set when a duplicate of a slow request was answered, or ran as well; by turn
        self.met = {0: threading.Event(), 2: threading.Event()}
        self.slow_runs: Counter[int] = Counter()
        self.slow_keys: list[str] = []

    # --- what a subclass may get wrong

    def key_of(self, field: str) -> str | None:
        """The key in a field; None: malformed."""
        found = STRING.fullmatch(field)
        bare = BARE.fullmatch(field)
        key = re.sub(r"\\(.)", r"\1", found[1]) if found else bare[0] if bare else None
        return key if key and len(key) <= 255 else None

    def record_id(self, key: str, request: Request) -> Any:
        """What a key is looked up by."""
        return request.caller, key

    def same_request(self, kept: Request, request: Request) -> bool:
        """Whether a key comes with its own request."""
        return kept == request

    def replay(self, answer: Answer, kept: Kept) -> Answer:
        """The kept answer, for a retry."""
        private = ("set-cookie", "date")
        fields = [pair for pair in answer.fields if pair[0].lower() not in private]
        return Answer(answer.status, [*fields, ("Idempotent-Replayed", "true")], answer.body)

    def without_key(self, request: Request) -> Answer:
        """A request that brings no key."""
        return self.problem(400, "key missing") if self.required else self.run(request)

    def malformed(self, field: str, request: Request) -> Answer:
        """A request whose key is none."""
        return self.problem(400, "key malformed")

    def reused(self, kept: Kept, request: Request) -> Answer:
        """A key with another request."""
        return self.problem(422, "key reused")

    def reused_meanwhile(self, kept: Kept, request: Request) -> Answer:
        """A key with another request, while its own one runs."""
        return self.reused(kept, request)

    def busy(self, kept: Kept, request: Request) -> Answer:
        """A retry while the first runs."""
        return self.problem(409, "in progress", [("Retry-After", "1")])

    def keeps(self, answer: Answer) -> bool:
        """Whether an answer is the outcome."""
        return answer.status < 500

    def problem(self, status: int, title: str, fields: Fields | None = None) -> Answer:
        """An error."""
        body = json.dumps({"type": "urn:shop:problem", "title": title}).encode()
        return Answer(status, [("Content-Type", "application/problem+json"), *(fields or [])], body)

    # --- the rest is right

    def run(self, request: Request) -> Answer:
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
            return Answer(503, [("Content-Type", "application/json")], body)
        fields = [("Content-Type", "application/json"), ("Location", f"/charges/{number}")]
        return Answer(201, [*fields, ("Link", "</a>"), ("Link", "</b>"), ("Set-Cookie", f"last={number}")], body)

    def answer(self, request: Request, field: str | None) -> Answer:
        """The answer to a request with this key field."""
        if field is None:
            return self.without_key(request)
        key = self.key_of(field)
        return self.malformed(field, request) if key is None else self.with_key(key, request)

    def with_key(self, key: str, request: Request) -> Answer:
        """The answer to a request with this key."""
        record_id = self.record_id(key, request)
        with self.lock:
            kept = self.kept.get(record_id)
            if kept is None:
                own = self.kept[record_id] = Kept(request)
        if kept is None:
            return self.first(record_id, own)
        if not self.same_request(kept.request, request):
            answer = self.reused(kept, request) if kept.answer is not None else self.reused_meanwhile(kept, request)
        elif kept.answer is not None:
            return self.replay(kept.answer, kept)
        else:
            answer = self.busy(kept, request)
        if request.path == "/slow" and request.turn in self.met:
            self.met[request.turn].set()
        return answer

    def first(self, record_id: Any, kept: Kept) -> Answer:
        """Run a request, and keep what came of it."""
        answer = self.run(kept.request)
        with self.lock:
            if self.keeps(answer):
                kept.answer = answer
            else:
                del self.kept[record_id]
        kept.done.set()
        return answer

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        field = environ.get("HTTP_IDEMPOTENCY_KEY")
        request = Request(environ["PATH_INFO"], environ.get("HTTP_AUTHORIZATION", ""), body)
        if request.path == "/slow" and field is not None:
            with self.lock:
                self.slow_keys += [field] * (field not in self.slow_keys)
                request.turn = self.slow_keys.index(field)
        answer = self.answer(request, field)
        length = ("Content-Length", str(len(answer.body)))
        start_response(f"{answer.status} Whatever", [*answer.fields, length])
        return [answer.body]
