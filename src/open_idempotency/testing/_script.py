"""What is to go wrong, and what has happened: the state that the parts of one kit share.

A crash is an exception that ends the attempt where it stands. From then on the attempt has no lease: nothing that it
does reaches the backend, and none of its stages begins. Its record stays in progress until its lease ends, as the
record of a killed worker does.
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
#: the verbs of a backend that can be out of order
VERBS = (
    "claim", "renew", "save_stage", "complete", "fail", "release", "withdraw", "get", "reserve", "unreserve",
)  # fmt: skip
_ENDS = frozenset({"complete", "fail", "release"})


class KitError(Exception):
    """The test itself is wrong: the message says what about it, and what to write instead. Since 0.1."""


class Killed(BaseException):
    """Ends an attempt as if its worker had been killed; no ``except Exception`` catches it. Since 0.1."""


class NoResponse(Exception):
    """What a client's call raises because the worker was killed before it could respond. Since 0.1."""


def is_ours(error: BaseException | None) -> bool:
    """Whether an error is the end of a killed attempt: itself, an error of that cause, or a group of them."""
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
        """Let ``seconds`` pass. Raises ``KitError`` for less than none."""
        if seconds < 0:
            raise KitError(f"the clock moves forward only, and {seconds} seconds would move it back")
        self._now += seconds
        self._moved += seconds

    def elapsed(self) -> float:
        """The clock by which a worker knows how long its lease lasts: the real one, and what the test has added."""
        return self.real() + self._moved


@dataclass
class Crash:
    """Where the next attempt dies. ``stage``: None for the end of the handler. ``nth``: of the uses of that name."""

    stage: str | None
    when: str
    key: str | None = None
    nth: int | None = None
    fired: bool = False


@dataclass
class StageUsed:
    """One use of a stage. ``nth``: which use of its name it is within its attempt, from 0."""

    name: str
    key: str
    nth: int


@dataclass
class Nested:
    """A request to send while another one is in flight: by ``send``, or by ``asend`` where the client is async."""

    send: Callable[[], Any] | None = None
    asend: Callable[[], Any] | None = None
    fired: bool = False


@dataclass
class Seen:
    """What one request, or several, have led to."""

    claims: list[tuple[bytes, ClaimResult]] = field(default_factory=list)
    stages: list[StageUsed] = field(default_factory=list)
    #: one line for each thing that happened, for a message
    lines: list[str] = field(default_factory=list)
    #: the responses that were about to be recorded: status, content type and body
    recorded: list[tuple[int, bytes | None]] = field(default_factory=list)
    #: a view went on although its attempt had died
    swallowed: bool = False
    #: an attempt ended since nobody knew what had become of one of its stages
    in_doubt: bool = False


class Script:
    """What is to go wrong, and what has happened since ``start``."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.crash: Crash | None = None
        self.nested: Nested | None = None
        self.down: frozenset[str] = frozenset()
        self.seen = Seen()
        #: whether a nested request is being sent: it waits for nobody
        self.nesting = 0
        #: whether an attempt has died since ``start``
        self.killed = False
        #: the header that the policy of the latest attempt reads the key from
        self.header: str | None = None
        self._dead: list[Attempt] = []
        #: with the time of each claim
        self._leases: dict[bytes, tuple[Lease, float]] = {}
        self._attempts: dict[bytes, Attempt] = {}
        #: the leases of killed attempts, and those of them that have not been ended yet
        self._all_lost: list[Lease] = []
        self._lost: list[Lease] = []

    def start(self) -> Seen:
        """Begin a new account of what happens; the account."""
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
        """The attempt's worker dies. Returns what is to be raised."""
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
        """Raise ``NoResponse`` if it has died. ``responded``: its view has returned a response all the same."""
        if self.is_dead(attempt):
            self.seen.swallowed = self.seen.swallowed or responded
            raise NoResponse("the worker of this attempt was killed before it could respond")

    @property
    def lost(self) -> list[Lease]:
        """The leases of killed attempts that nothing has ended yet."""
        return self._lost

    def living(self) -> Iterator[tuple[Lease, Attempt | None]]:
        """The leases that workers renew; without their attempts where these have not begun yet."""
        now = self.clock()
        for owner, (lease, began) in list(self._leases.items()):
            attempt = self._attempts.get(owner)
            if attempt is None or now - began <= attempt.policy.max_run:
                yield lease, attempt

    # Stages

    def reach(self, attempt: Attempt, stage: StageId, when: When) -> None:
        """An attempt has come to this point of a stage. Raises ``Killed`` where it is to die here, or has died."""
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
        """For each stage of the attempt its number among the uses of its name; for each name how many there are."""
        uses: dict[StageId | str, int] = vars(attempt).setdefault("_uses_seen_by_kit", {})
        return uses

    # Verbs

    def ask(self, verb: str, owner: bytes | None = None) -> None:
        """A verb is called. Raises ``BackendUnavailable`` where it is out of order.

        Raises ``Killed`` for an owner that has died: a write that is interrupted is sent once more, in vain here.
        """
        if owner is not None and any(lease.owner == owner for lease in self._all_lost):
            raise Killed("the worker of this attempt was killed before")
        if verb in self.down:
            raise BackendUnavailable(f"the test has taken the backend down ({verb})")

    def claimed(self, record_id: bytes, result: ClaimResult) -> Nested | None:
        """A claim has this result. Returns the request to send before its caller goes on."""
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
        """A response is about to be recorded, or the attempt to fail or to be released."""
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
        except RecordUnreadable:  # by a policy's own sealer; then there is nothing to compare
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
