"""What is looked at: each scene is played once, when a statement first asks for it, with random keys of its own.

A scene that cannot be played raises ``Undecided``. Whether the handler ran is judged from outside: two runs of an
endpoint that names what it made (an id in the body, a ``Location``) differ, and a replay does not.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from open_idempotency.conformance.http.target import Fields, Target
from open_idempotency.conformance.http.verdicts import CouldNotRun, Undecided, not_applicable, unknown
from open_idempotency.conformance.http.wire import Client, Exchange

#: what a scene is, and how many requests it sends at most
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
MARKER = "idempotent-replayed"

_T = TypeVar("_T")


class Scene(Generic[_T]):
    """A property that is played once, also when it could not be decided: a second play would send more requests."""

    def __init__(self, play: Callable[[Any], _T]) -> None:
        self._play = play
        self.__doc__ = play.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._place = f"_{name}"

    def __get__(self, seen: Observations, owner: type) -> _T:
        played: dict[str, Any] = seen.__dict__
        if self._place not in played:
            try:
                played[self._place] = self._play(seen), None
            except Undecided as undecided:
                played[self._place] = None, undecided.verdict
        value, verdict = played[self._place]
        if verdict is not None:
            raise Undecided(verdict.result, verdict.seen)
        return value  # type: ignore[no-any-return]  # what self._play returned, kept as Any


def new_key() -> str:
    """A random UUID that upper case would change."""
    key = str(uuid.uuid4())
    return key if key.upper() != key else new_key()


def result_of(exchange: Exchange) -> tuple[bytes, list[str], list[str]]:
    """What tells one run from another."""
    return exchange.body, exchange.all("location"), exchange.all("etag")


@dataclass(frozen=True, slots=True)
class Reuse:
    """The first key with another payload, and then with its own again."""

    refused: Exchange
    afterwards: Exchange


@dataclass(frozen=True, slots=True)
class Pair:
    """Two equal requests sent at one moment, one more after them, and whether runs of this endpoint differ."""

    both: list[Exchange]
    afterwards: Exchange
    distinct: bool

    @property
    def winners(self) -> list[Exchange]:
        """Those that were answered as if they were carried out."""
        return [each for each in self.both if each.success]


@dataclass(frozen=True, slots=True)
class Failing:
    """Two equal requests to the endpoint that fails, and one with another key."""

    first: Exchange
    again: Exchange
    other: Exchange


class Observations:
    """The scenes, played against one target by one client.

    Sends the first request of all at once, and raises ``CouldNotRun`` if it is not answered or not accepted.
    ``as_string``: the answer to a new key as a String; ``first``: the first one that was accepted; ``key``: its key;
    ``quoted``: whether the endpoint takes a String, otherwise all keys are sent bare.
    """

    def __init__(self, target: Target, client: Client) -> None:
        self.target = target
        self._client = client
        self.key = new_key()
        self.quoted = True
        self.as_string, self.first = self._first()

    def spelled(self, key: str) -> bytes:
        """The key as this endpoint takes it: a String, or bare where it refuses Strings."""
        return f'"{key}"'.encode("ascii") if self.quoted else key.encode("ascii")

    def _send(
        self,
        group: str,
        *keys: bytes,
        url: str | None = None,
        body: bytes | None = None,
        field: str | None = None,
        others: Fields = (),
    ) -> Exchange:
        return self._client.send(group, self.target.call(keys, url=url, body=body, field=field, others=others))

    def send_malformed(self, *values: bytes) -> Exchange:
        """A request with these field lines."""
        return self._send("malformed keys", *values)

    def send_long(self, value: bytes) -> Exchange:
        """A request with a key of unusual length."""
        return self._send("long keys", value)

    def _first(self) -> tuple[Exchange, Exchange]:
        as_string = self._send("new keys", self.spelled(self.key))
        if not as_string.status:
            raise CouldNotRun(f"{self.target.url}: {as_string}")
        if as_string.success:
            return as_string, as_string
        self.quoted, self.key = False, new_key()
        bare = self._send("new keys", self.spelled(self.key))
        if not bare.success:
            raise CouldNotRun(
                f"{self.target.url} answers {as_string} to the plain {self.target.method} with a new key;"
                " give it a request that it accepts (--header, --data, --method)"
            )
        return as_string, bare

    @Scene
    def second(self) -> Exchange:
        """The same request with another key."""
        return self._send("new keys", self.spelled(new_key()))

    @Scene
    def distinct(self) -> bool:
        """Whether the answers of two runs differ, so that a replay can be told from a run."""
        return self.second.success and result_of(self.first) != result_of(self.second)

    @Scene
    def retries(self) -> list[Exchange]:
        """The first request again, twice."""
        answers = [self._send("retries", self.spelled(self.key)) for _ in range(2)]
        for answer in answers:
            if not answer.status:
                raise unknown(str(answer))
        return answers

    def respelled(self, key: bytes, field: str | None = None) -> Exchange:
        """The first request with its key, or its field name, written otherwise."""
        answer = self._send("other spellings of the key", key, field=field)
        if not answer.status:
            raise unknown(str(answer))
        return answer

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
        """Another payload, which the endpoint takes with a new key."""
        other = self.target.other_payload()
        if other is None:
            raise not_applicable("no other payload; give --other-data")
        control = self._send("the key with another payload", self.spelled(new_key()), body=other)
        if not control.success:
            raise unknown(f"the other payload is answered {control} with a new key too; give --other-data")
        return other

    @Scene
    def pair(self) -> Pair:
        """Two equal requests with a new key at one moment, at the slow URL where there is one."""
        group, url, key = "two at one moment", self.target.slow_url, self.spelled(new_key())
        both = self._client.send_together(group, [self.target.call((key,), url=url)] * 2)
        for each in both:
            if not each.status:
                raise unknown(str(each))
        afterwards = self._send(group, key, url=url)
        if url is None:
            return Pair(both, afterwards, self.distinct)
        other = self._send(group, self.spelled(new_key()), url=url)
        return Pair(both, afterwards, result_of(other) != result_of(afterwards))

    @Scene
    def rivals(self) -> list[Exchange]:
        """Two payloads with one new key at one moment, at the slow URL where there is one."""
        other, url, key = self.other_payload, self.target.slow_url, self.spelled(new_key())
        calls = [self.target.call((key,), url=url), self.target.call((key,), url=url, body=other)]
        both = self._client.send_together("two payloads at one moment", calls)
        for each in both:
            if not each.status:
                raise unknown(str(each))
        return both

    @Scene
    def without_key(self) -> list[Exchange]:
        """The request without a key: once where one is required, else twice."""
        answers = [self._send("no key") for _ in range(1 if self.target.required else 2)]
        for answer in answers:
            if not answer.status:
                raise unknown(str(answer))
        return answers

    @Scene
    def failing(self) -> Failing:
        """The same request twice, and once with another key, where the answer is 5xx."""
        if self.target.failing_url is None:
            raise not_applicable("give --failing-url, an address that answers 5xx")
        keys = [self.spelled(new_key())] * 2 + [self.spelled(new_key())]
        first, again, other = [self._send("--failing-url", key, url=self.target.failing_url) for key in keys]
        if first.status < 500 or not again.status:
            raise unknown(f"answered {first}, then {again}; a 5xx is needed first")
        return Failing(first, again, other)

    @Scene
    def by_another(self) -> Exchange:
        """The first request and key, sent by another caller."""
        if not self.target.other_caller:
            raise not_applicable("give --other-caller, another caller's Authorization")
        return self._send("--other-caller", self.spelled(self.key), others=self.target.other_caller)
