"""The shared state of a kit: planned accidents, and what has happened.

A crash is an exception that ends the attempt at that point. From then on the attempt has no lease: it reaches the
backend no more, and none of its stages begins. Its record stays in progress until its lease ends, as the record of a
killed worker does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from open_idempotency._core.attempt import Attempt, StageId
from open_idempotency._core.models import Busy, ClaimResult, Finished, Lease, Leased, Mismatch, Refused
from open_idempotency._core.stored_response import FAILURE, RESPONSE, decode_response, unseal
from open_idempotency._runtime import clocks
from open_idempotency.exceptions import BackendUnavailable, OutcomeUnknown, RecordUnreadable

When = Literal["before", "unrecorded", "after"]
WHEN: tuple[When, ...] = ("before", "unrecorded", "after")
#: the verbs of a backend that can fail
VERBS = (
    "claim", "renew", "save_stage", "complete", "fail", "release", "withdraw", "get", "reserve", "unreserve",
)  # fmt: skip
_ENDS = frozenset({"complete", "fail", "release"})


class KitError(Exception):
    """The test itself is wrong. The message says why, and what to write instead. Since 0.1."""


class Killed(BaseException):
    """Ends an attempt as if its worker had been killed; no ``except Exception`` catches it. Since 0.1."""


class NoResponse(Exception):
    """Raised by a client's call, since the worker was killed before it could respond. Since 0.1."""


def is_ours(error: BaseException | None) -> bool:
    """Whether an error comes from a killed attempt: directly, as its cause, or in a group."""
    while error is not None:
        if isinstance(error, Killed | NoResponse):
            return True
        if getattr(error, "exceptions", None):
            break
        error = error.__cause__
    inner = getattr(error, "exceptions", None)
    return isinstance(inner, tuple) and bool(inner) and all(is_ours(each) for each in inner)


class Clock:
    """Seconds since 1970. It stands still until the test moves it. Since 0.1."""

    def __init__(self, start: float = 1_800_000_000.0) -> None:
        self._now = start
        self._moved = 0.0
        #: the clock of the machine
        self.real = clocks.elapsed

    def __call__(self) -> float:
        return self._now

    def move(self, seconds: float) -> None:
        """Let ``seconds`` pass. Raises ``KitError`` for a negative number."""
        if seconds < 0:
            raise KitError(f"the clock moves forward only, and {seconds} seconds would move it back")
        self._now += seconds
        self._moved += seconds

    def elapsed(self) -> float:
        """The clock by which a worker measures its lease: the real clock plus the time that the test has added."""
        return self.real() + self._moved


@dataclass
class Crash:
    """Where the next attempt dies. ``stage``: None for the end of the handler. ``nth``: which use of that name."""

    stage: str | None
    when: str
    key: str | None = None
    nth: int | None = None
    fired: bool = False


@dataclass
class StageUsed:
    """One use of a stage. ``nth``: its number among the uses of its name in the attempt, from 0."""

    name: str
    key: str
    nth: int


@dataclass
class Nested:
    """A request to send while another is in flight: by ``send``, or by ``asend`` for an async client."""

    send: Callable[[], Any] | None = None
    asend: Callable[[], Any] | None = None
    fired: bool = False


@dataclass
class Seen:
    """The results of one or several requests."""

    claims: list[tuple[bytes, ClaimResult]] = field(default_factory=list)
    stages: list[StageUsed] = field(default_factory=list)
    #: one line for each thing that happened, for a message
    lines: list[str] = field(default_factory=list)
    #: the responses that were about to be recorded: status, content type and body
    recorded: list[tuple[int, bytes | None]] = field(default_factory=list)
    #: a view went on although its attempt had died
    swallowed: bool = False
    #: an attempt ended since one of its stages is in doubt
    in_doubt: bool = False


class Script:
    """The planned accidents, and what has happened since ``start``."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.crash: Crash | None = None
        self.nested: Nested | None = None
        self.down: frozenset[str] = frozenset()
        self.seen = Seen()
        #: whether a nested request is being sent, which never waits
        self.nesting = 0
        #: whether an attempt has died since ``start``
        self.killed = False
        #: the header that the policy of the latest attempt reads the key from
        self.header: str | None = None
        self._dead: list[Attempt] = []
        #: with the time of each claim
        self._leases: dict[bytes, tuple[Lease, float]] = {}
        self._attempts: dict[bytes, Attempt] = {}
        #: the leases of killed attempts, and those among them that have not ended yet
        self._all_lost: list[Lease] = []
        self._lost: list[Lease] = []

    def start(self) -> Seen:
        """Begin a new account of events, and return it."""
        self.seen, self.killed = Seen(), False
        return self.seen

    def say(self, line: str) -> None:
        """Add a line to the account."""
        self.seen.lines.append(line)

    # Attempts

    def watch(self, attempt: Attempt) -> None:
        """An attempt begins, and its worker lives."""
        assert attempt.lease is not None
        self._attempts[attempt.lease.owner] = attempt
        self.header = attempt.policy.header

    def forget(self, owner: bytes) -> None:
        """An attempt has ended."""
        self._leases.pop(owner, None)
        self._attempts.pop(owner, None)

    def is_dead(self, attempt: Attempt) -> bool:
        """Whether its worker was killed."""
        return any(each is attempt for each in self._dead)

    def kill(self, attempt: Attempt, where: str) -> Killed:
        """Let the attempt's worker die. Returns the error to raise."""
        lease = attempt.lease
        assert lease is not None
        self.forget(lease.owner)
        self._dead.append(attempt)
        self._lost.append(lease)
        self._all_lost.append(lease)
        self.killed = True
        # No attempt of a living worker ever loses its lease like this, so Attempt has no method for it.
        vars(attempt)["lease"] = None
        self.say(f"attempt {lease.attempt}: killed {where}")
        return Killed(f"the worker was killed {where}")

    def check_alive(self, attempt: Attempt, responded: bool) -> None:
        """Raise ``NoResponse`` if the attempt has died. ``responded``: its view has returned a response."""
        if self.is_dead(attempt):
            self.seen.swallowed = self.seen.swallowed or responded
            raise NoResponse("the worker of this attempt was killed before it could respond")

    @property
    def lost(self) -> list[Lease]:
        """The leases of killed attempts that have not ended yet."""
        return self._lost

    def living(self) -> Iterator[tuple[Lease, Attempt | None]]:
        """The leases that workers renew, with their attempts if these have begun."""
        now = self.clock()
        for owner, (lease, began) in list(self._leases.items()):
            attempt = self._attempts.get(owner)
            if attempt is None or now - began <= attempt.policy.max_run:
                yield lease, attempt

    # Stages

    def reach(self, attempt: Attempt, stage: StageId, when: When) -> None:
        """An attempt has reached this point of a stage. Raises ``Killed`` if it must die here, or has died before."""
        if self.is_dead(attempt):
            raise Killed("the worker of this attempt was killed before")
        if attempt.lease is None:
            return
        name, key = stage
        uses = self._uses_of(attempt)
        if when == "before":
            nth = uses[stage] = uses.get(name, 0)
            uses[name] = nth + 1
            self.seen.stages.append(StageUsed(name, key, nth))
        elif when == "after":
            self.say(f"attempt {attempt.lease.attempt}: stage {_named(name, key)} is on record")
        crash = self.crash
        if crash is None or crash.fired or crash.stage != name or crash.when != when:
            return
        if crash.key is not None and crash.key != key:
            return
        if crash.nth is not None and crash.nth != uses.get(stage):
            return
        crash.fired = True
        raise self.kill(attempt, _where(name, key, when))

    @staticmethod
    def _uses_of(attempt: Attempt) -> dict[StageId | str, int]:
        """The number of each stage among the uses of its name, and the number of uses of each name."""
        uses: dict[StageId | str, int] = vars(attempt).setdefault("_uses_seen_by_kit", {})
        return uses

    # Verbs

    def ask(self, verb: str, owner: bytes | None = None) -> None:
        """A verb is called. Raises ``BackendUnavailable`` if the test has taken it down.

        Raises ``Killed`` for an owner that has died, since an interrupted write is retried.
        """
        if owner is not None and any(lease.owner == owner for lease in self._all_lost):
            raise Killed("the worker of this attempt was killed before")
        if verb in self.down:
            raise BackendUnavailable(f"the test has taken the backend down ({verb})")

    def claimed(self, record_id: bytes, result: ClaimResult) -> Nested | None:
        """A claim has this result. Returns the request to send before the caller continues."""
        self.seen.claims.append((record_id, result))
        self.say(_of_claim(result))
        if not isinstance(result, Leased):
            return None
        self._leases[result.lease.owner] = result.lease, self.clock()
        nested = self.nested
        if nested is None or nested.fired:
            return None
        nested.fired = True
        return nested

    def ending(self, verb: str, lease: Lease, frame: bytes | None) -> None:
        """A response is about to be recorded, or the attempt is about to fail or be released."""
        attempt = self._attempts.get(lease.owner)
        if attempt is None:
            return
        if isinstance(attempt.interrupted, OutcomeUnknown):
            self.seen.in_doubt = True
        if frame is not None:
            self._note(frame, lease, attempt, verb)
        if self._dies(verb, "unrecorded"):
            raise self.kill(attempt, "when its handler had run, before its response was recorded")

    def ended(self, verb: str, lease: Lease) -> None:
        """A verb that ends an attempt has succeeded."""
        attempt = self._attempts.get(lease.owner)
        words = {"complete": "response is recorded", "fail": "failed", "release": "released, nothing is stored"}
        self.say(f"attempt {lease.attempt}: {words[verb]}")
        if attempt is not None and self._dies(verb, "after"):
            raise self.kill(attempt, "after its response was recorded, before the client got it")
        self.forget(lease.owner)

    def _dies(self, verb: str, when: When) -> bool:
        crash = self.crash
        if crash is None or crash.fired or crash.stage is not None or crash.when != when or verb not in _ENDS:
            return False
        crash.fired = True
        return True

    def _note(self, frame: bytes, lease: Lease, attempt: Attempt, verb: str) -> None:
        kind = RESPONSE if verb == "complete" else FAILURE
        try:
            response = decode_response(unseal(frame, kind, lease, attempt.policy))
        except RecordUnreadable:  # sealed by the policy's own sealer, so there is nothing to compare
            return
        self.seen.recorded.append((response.status, response.body))


def _named(name: str, key: str) -> str:
    return f"{name!r} (key {key!r})" if key else repr(name)


def _where(name: str, key: str, when: When) -> str:
    stage = _named(name, key)
    if when == "before":
        return f"before stage {stage} began"
    if when == "unrecorded":
        return f"after the effect of stage {stage}, before the stage was recorded"
    return f"when stage {stage} was on record"


def _of_claim(result: ClaimResult) -> str:
    match result:
        case Leased(lease, stages):
            known = f", with {len(stages)} recorded stage(s)" if stages else ""
            return f"attempt {lease.attempt}: claimed{known}"
        case Finished():
            return "a request: its response is on record, and is replayed"
        case Busy():
            return "a request: refused, another attempt is in progress"
        case Mismatch():
            return "a request: refused, the key is in use for a request with another fingerprint"
        case Refused(reason):
            return f"a request: refused, no further attempt is admitted ({reason.value})"
