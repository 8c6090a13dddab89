"""Observations of an endpoint, and the verdicts that they lead to.

Each scene sends its requests once, when a check first needs it, with new random keys. A scene that is not possible
raises ``Undecided``. Whether the handler ran is judged from the responses: two runs of an endpoint differ if it returns
the id of what it has created, in the body or in ``Location``; a replay does not differ.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

from open_idempotency.conformance.http.target import Client, CouldNotRun, Exchange, Headers, Target

#: the scenes, each with the maximum number of requests that it sends
LIMITS: dict[str, int] = {
    "new keys": 3,
    "retries": 2,
    "other spellings of the key": 4,
    "the key with another payload": 3,
    "two at one moment": 4,
    "two payloads at one moment": 2,
    "no key": 2,
    "malformed keys": 12,
    "long keys": 2,
    "--failing-url": 3,
    "--other-caller": 1,
}
#: further scenes of the protocols of agentic commerce
_OF_PROTOCOLS: dict[str, int] = {
    "equal payloads": 2,
    "payloads of other values": 2,
    "other white space": 1,
    "--other-url": 1,
}


def limits_of(target: Target) -> dict[str, int]:
    """The scenes for this target, each with the maximum number of requests that it sends."""
    return LIMITS if target.profile == "draft" else {**LIMITS, **_OF_PROTOCOLS}


#: the header that marks replays in this package, and similar headers of other servers
MARKER = "idempotent-replayed"
_MARKERS = re.compile(
    r"idempot\w*[-_].*(replay|repeat|duplicate|cache|hit)|(^|-)replay(ed)?$|(replay|repeat|duplicate).*idempot"
)
_NOT_MARKED = frozenset({"", "0", "?0", "false", "no", "none", "miss", "new"})

_T = TypeVar("_T")


class Result(Enum):
    """Whether a statement holds for an endpoint."""

    HOLDS = "holds"
    FAILS = "fails"
    NOT_APPLICABLE = "not applicable"
    UNKNOWN = "could not tell"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A result, and the observation that led to it."""

    result: Result
    seen: str


def holds(seen: str) -> Verdict:
    """The verdict that the statement holds."""
    return Verdict(Result.HOLDS, seen)


def fails(seen: str) -> Verdict:
    """The verdict that the statement does not hold."""
    return Verdict(Result.FAILS, seen)


def holds_if(condition: bool, seen: str) -> Verdict:
    """The verdict that the statement holds if ``condition`` does, and otherwise fails."""
    return holds(seen) if condition else fails(seen)


class Undecided(Exception):
    """Raised by a scene that is not possible; carries the verdict of every statement that depends on it."""

    def __init__(self, result: Result, seen: str) -> None:
        super().__init__(seen)
        self.verdict = Verdict(result, seen)


def not_applicable(seen: str) -> Undecided:
    """The exception to raise if a statement is about something that this endpoint does not have."""
    return Undecided(Result.NOT_APPLICABLE, seen)


def unknown(seen: str) -> Undecided:
    """The exception to raise if the responses do not show whether a statement holds."""
    return Undecided(Result.UNKNOWN, seen)


class Scene(Generic[_T]):
    """A property that runs once, even if it raises ``Undecided``: a second run would send more requests."""

    def __init__(self, run: Callable[[Any], _T]) -> None:
        self._run = run
        self.__doc__ = run.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._attribute = f"_{name}"

    def __get__(self, seen: Observations, owner: type) -> _T:
        results: dict[str, Any] = seen.__dict__
        if self._attribute not in results:
            try:
                results[self._attribute] = self._run(seen), None
            except Undecided as undecided:
                results[self._attribute] = None, undecided.verdict
        value, verdict = results[self._attribute]
        if verdict is not None:
            raise Undecided(verdict.result, verdict.seen)
        return value  # type: ignore[no-any-return]  # what self._run returned, stored as Any


def _as_floats(value: Any) -> Any:
    """A JSON value whose integers are written with a fraction of nothing."""
    if isinstance(value, dict):
        return {name: _as_floats(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_as_floats(member) for member in value]
    return float(value) if type(value) is int and abs(value) < 2**53 else value


def new_key() -> str:
    """A random UUID with at least one letter, so that upper case changes it."""
    key = str(uuid.uuid4())
    return key if key.upper() != key else new_key()


def result_of(exchange: Exchange) -> tuple[bytes, list[str], list[str]]:
    """The parts of a response by which one run differs from another."""
    return exchange.body, exchange.all("location"), exchange.all("etag")


def is_marker(name: str) -> bool:
    """Whether a header marks replays, by its name in lower case."""
    return _MARKERS.search(name) is not None


def mark_of(exchange: Exchange) -> str | None:
    """The header that marks a response as a replay, as ``name: value``; None for a response without one."""
    for name, value in exchange.headers:
        if is_marker(name) and value.strip().lower() not in _NOT_MARKED:
            return f"{name}: {value}"
    return None


@dataclass(frozen=True, slots=True)
class Reuse:
    """The first key with another payload, and then with its own payload again."""

    refused: Exchange
    afterwards: Exchange


@dataclass(frozen=True, slots=True)
class Pair:
    """Two equal concurrent requests, a retry after them, and whether two runs of this endpoint differ."""

    both: list[Exchange]
    afterwards: Exchange
    distinct: bool

    @property
    def winners(self) -> list[Exchange]:
        """The exchanges whose status says that they were carried out."""
        return [each for each in self.both if each.success]


@dataclass(frozen=True, slots=True)
class Failing:
    """Two equal requests to the failing endpoint, and one with another key."""

    first: Exchange
    again: Exchange
    other: Exchange


class Observations:
    """The scenes of one target, sent by one client.

    The constructor sends the first request, and raises ``CouldNotRun`` if it gets no response or is not accepted.
    ``as_string``: the exchange with a key that is sent as a String. ``first``: the first exchange that was accepted.
    ``key``: the key of ``first``. ``quoted``: whether the endpoint accepts a String; if not, keys are sent bare.
    """

    def __init__(self, target: Target, client: Client) -> None:
        self.target = target
        self._client = client
        self.key = new_key()
        self.quoted = target.profile == "draft"
        self.as_string, self.first = self._first()

    def spelled(self, key: str) -> bytes:
        """The header value of a key: a String, or bare if the endpoint refuses Strings."""
        return f'"{key}"'.encode("ascii") if self.quoted else key.encode("ascii")

    def _send(
        self,
        group: str,
        *keys: bytes,
        url: str | None = None,
        body: bytes | None = None,
        header: str | None = None,
        replacing: Headers = (),
    ) -> Exchange:
        call = self.target.call(keys, url=url, body=body, header=header, replacing=replacing)
        return self._client.send(group, call)

    def send_malformed(self, *values: bytes) -> Exchange:
        """A request with one key header for each value, sent as given."""
        return self._send("malformed keys", *values)

    def send_long(self, value: bytes) -> Exchange:
        """A request with a key of unusual length."""
        return self._send("long keys", value)

    def _first(self) -> tuple[Exchange, Exchange]:
        as_string = self._send("new keys", self.spelled(self.key))
        if not as_string.status:
            raise CouldNotRun(f"{self.target.url}: {as_string}")
        if as_string.success or not self.quoted:
            if not as_string.success:
                raise CouldNotRun(
                    f"{self.target.url} responds {as_string} to the plain {self.target.method} with a new key;"
                    " give a request that it accepts (--header, --data, --method)"
                )
            return as_string, as_string
        self.quoted, self.key = False, new_key()
        bare = self._send("new keys", self.spelled(self.key))
        if not bare.success:
            raise CouldNotRun(
                f"{self.target.url} responds {as_string} to the plain {self.target.method} with a new key;"
                " give a request that it accepts (--header, --data, --method)"
            )
        return as_string, bare

    def _expect_responses(self, exchanges: list[Exchange], url: str | None, option: str) -> None:
        """Raise ``CouldNotRun`` if nothing listens at a given address; ``Undecided`` for another missing response."""
        for each in sorted(exchanges, key=lambda each: each.connected):
            if url is not None and not each.connected:
                raise CouldNotRun(f"{option} {url}: {each}")
            if not each.status:
                raise unknown(str(each))

    @Scene
    def second(self) -> Exchange:
        """The same request with another key."""
        return self._send("new keys", self.spelled(new_key()))

    @Scene
    def distinct(self) -> bool:
        """Whether the responses of two runs differ, so that a replay can be distinguished from a run."""
        return self.second.success and result_of(self.first) != result_of(self.second)

    @Scene
    def retries(self) -> list[Exchange]:
        """The first request again, twice."""
        responses = [self._send("retries", self.spelled(self.key)) for _ in range(2)]
        for response in responses:
            if not response.status:
                raise unknown(str(response))
        return responses

    def respelled(self, key: bytes, header: str | None = None) -> Exchange:
        """The first request with its key, or the name of its key header, in another spelling."""
        response = self._send("other spellings of the key", key, header=header)
        if not response.status:
            raise unknown(str(response))
        return response

    @Scene
    def reuse(self) -> Reuse:
        """The first key with another payload, and with its own again."""
        group, other = "the key with another payload", self.other_payload
        return Reuse(
            self._send(group, self.spelled(self.key), body=other),
            self._send(group, self.spelled(self.key)),
        )

    @Scene
    def other_payload(self) -> bytes:
        """Another payload, which the endpoint accepts with a new key."""
        other = self.target.other_payload()
        if other is None:
            raise not_applicable("no other payload; give --other-data")
        control = self._send("the key with another payload", self.spelled(new_key()), body=other)
        if not control.success:
            raise unknown(f"the other payload gets {control} with a new key too; give --other-data")
        return other

    @Scene
    def pair(self) -> Pair:
        """Two equal concurrent requests with a new key, at the slow URL if there is one."""
        group, url, key = "two at one moment", self.target.slow_url, self.spelled(new_key())
        both = self._client.send_together(group, [self.target.call((key,), url=url)] * 2)
        self._expect_responses(both, url, "--slow-url")
        afterwards = self._send(group, key, url=url)
        if url is None:
            return Pair(both, afterwards, self.distinct)
        other = self._send(group, self.spelled(new_key()), url=url)
        return Pair(both, afterwards, result_of(other) != result_of(afterwards))

    @Scene
    def rivals(self) -> list[Exchange]:
        """Two concurrent requests with one new key and different payloads, at the slow URL if there is one."""
        other, url, key = self.other_payload, self.target.slow_url, self.spelled(new_key())
        calls = [self.target.call((key,), url=url), self.target.call((key,), url=url, body=other)]
        both = self._client.send_together("two payloads at one moment", calls)
        for each in both:
            if not each.status:
                raise unknown(str(each))
        return both

    @Scene
    def without_key(self) -> list[Exchange]:
        """The request without a key: once if a key is required, otherwise twice."""
        responses = [self._send("no key") for _ in range(1 if self.target.required else 2)]
        for response in responses:
            if not response.status:
                raise unknown(str(response))
        return responses

    @Scene
    def refused_without_key(self) -> Exchange:
        """The request without a key, for a protocol that requires one."""
        response = self._send("no key")
        if not response.status:
            raise unknown(str(response))
        return response

    def _members(self) -> dict[str, Any]:
        """The payload, which has to be a JSON object of two members at least."""
        try:
            members: Any = json.loads(self.target.data)
        except ValueError:
            members = None
        if not isinstance(members, dict) or len(members) < 2:
            raise not_applicable("the payload is not a JSON object with two members; give --data")
        return members

    def _again(self, group: str, payloads: dict[str, bytes]) -> dict[str, Exchange]:
        """The first key with other spellings of its payload."""
        responses = {what: self._send(group, self.spelled(self.key), body=body) for what, body in payloads.items()}
        for response in responses.values():
            if not response.status:
                raise unknown(str(response))
        return responses

    @Scene
    def equal_payloads(self) -> dict[str, Exchange]:
        """The first key with payloads of the same value: in another order, and with another spelling of numbers."""
        members = self._members()
        turned = dict(reversed(members.items()))
        return self._again(
            "equal payloads",
            {
                "another order of members": json.dumps(turned).encode(),
                "1.0 for 1": json.dumps(_as_floats(members)).encode(),
            },
        )

    @Scene
    def other_values(self) -> dict[str, Exchange]:
        """The first key with payloads of another value: a member that is null, and an array in another order."""
        members = self._members()
        payloads = {"a null member": json.dumps({**members, "conformance_null": None}).encode()}
        turned = {
            name: value[::-1] if isinstance(value, list) and value != value[::-1] else value
            for name, value in members.items()
        }
        if turned != members:
            payloads["an array in another order"] = json.dumps(turned).encode()
        return self._again("payloads of other values", payloads)

    @Scene
    def respaced(self) -> Exchange:
        """The first key with the same JSON and more white space."""
        body = b" " + json.dumps(self._members(), indent=3).encode()
        return self._again("other white space", {"other white space": body})["other white space"]

    @Scene
    def elsewhere(self) -> Exchange:
        """The first request with its key, at another endpoint."""
        if self.target.other_url is None:
            raise not_applicable("give --other-url, an endpoint that takes the same payload")
        response = self._send("--other-url", self.spelled(self.key), url=self.target.other_url)
        self._expect_responses([response], self.target.other_url, "--other-url")
        return response

    @Scene
    def failing(self) -> Failing:
        """The request to the failing endpoint: twice with one key, and once with another."""
        if self.target.failing_url is None:
            raise not_applicable("give --failing-url, an endpoint that responds 5xx")
        keys = [self.spelled(new_key())] * 2 + [self.spelled(new_key())]
        first, again, other = [self._send("--failing-url", key, url=self.target.failing_url) for key in keys]
        self._expect_responses([first], self.target.failing_url, "--failing-url")
        if first.status < 500 or not again.status:
            raise unknown(f"{first}, then {again}; the first response has to be 5xx")
        return Failing(first, again, other)

    @Scene
    def by_another(self) -> Exchange:
        """The first request with its key, sent by another caller."""
        if not self.target.other_caller:
            raise not_applicable("give --other-caller, such as another caller's Authorization")
        return self._send("--other-caller", self.spelled(self.key), replacing=self.target.other_caller)
