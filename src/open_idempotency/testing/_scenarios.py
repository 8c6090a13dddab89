"""The scenarios of ``assert_idempotent``, as steps that sync and async drivers carry out.

Every scenario has its own key and must end with one whole outcome: one effect, one response. All of them are compared
with the first plain request.
"""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from open_idempotency._core.models import Busy, Refused
from open_idempotency.testing import _advice as advice
from open_idempotency.testing import _effects
from open_idempotency.testing._clients import Reply, Sender, aread, body_differences, differences, read, shown
from open_idempotency.testing._effects import change, is_nothing, is_within, said
from open_idempotency.testing._script import WHEN, Crash, KitError, Nested, Script, Seen, StageUsed, is_ours

#: if a name is used more often than this, only its first and last use are tried
_USES = 3


class NotIdempotent(AssertionError):
    """A request is not idempotent: the message names the scenario, what was seen, and what to do. Since 0.1."""


@dataclass
class Plan:
    """The arguments of the test."""

    send: Sender
    effects: Any = None
    key: Callable[[], str] = lambda: str(uuid.uuid4())
    header: str | None = None
    status: int | None = None
    ignore: Sequence[str] = ()
    compare_headers: Sequence[str] = ()
    crashes: bool = True
    in_doubt: bool = True
    reset: Any = None


@dataclass
class Send:
    """Send the request with this key; ``beside``: again while it is in flight. The result: the replies."""

    key: str
    beside: bool = False


class Look:
    """Look at the effects; the result is a snapshot."""


class Reset:
    """Prepare the application for the next scenario."""


Ask = Send | Look | Reset
Steps = Generator[Ask, Any, None]


@dataclass
class Base:
    """The outcome of the first plain request."""

    reply: Reply
    change: Any
    seen: Seen


@dataclass
class Scenario:
    """One scenario, for messages."""

    name: str
    did: str
    lines: list[str] = field(default_factory=list)


class Scenarios:
    """All scenarios of one request. ``script``: that of the kit. ``end_leases``: moves the clock past dead leases."""

    def __init__(self, plan: Plan, script: Script, end_leases: Callable[[], None], unprotected: Callable[..., str]):
        self._plan = plan
        self._script = script
        self._end_leases = end_leases
        self._unprotected = unprotected

    def steps(self) -> Steps:
        """Carry out every scenario. Raises ``NotIdempotent`` and ``KitError``."""
        base = yield from self._first()
        yield from self._lost_reply(base)
        yield from self._at_once(base)
        if not self._plan.crashes:
            return
        if not base.seen.stages and self._plan.effects is None:
            raise KitError(advice.NO_MEASURE.format(what=self._plan.send.what))
        for used in _tried(base.seen.stages):
            for when in WHEN:
                if when != "unrecorded" or self._plan.in_doubt:
                    yield from self._crash(base, Crash(used.name, when, nth=used.nth), used)
        yield from self._crash(base, Crash(None, "unrecorded"), None)

    # One after the other

    def _first(self) -> Generator[Ask, Any, Base]:
        scenario = Scenario("one after the other", "sent the request, then again with the same key")
        key = self._plan.key()
        yield Reset()
        before = yield Look()
        seen = self._script.start()
        (reply,) = yield Send(key)
        self._check_first(reply, seen)
        between = yield Look()
        base = Base(reply, None if before is None else change(before, between), seen)
        if base.change is not None and is_nothing(base.change):
            raise KitError(advice.NO_EFFECT.format(what=self._plan.send.what, status=reply.status))
        again = self._script.start()
        scenario.lines = seen.lines
        (second,) = yield from self._send_again(scenario, key)
        after = yield Look()
        scenario.lines = [*seen.lines, *again.lines]
        claims = [*seen.claims, *again.claims]
        if between is not None and not is_nothing(change(between, after)):
            total = change(before, after)
            self._fail(scenario, self._effects_said(base, total), advice.repeated(claims, again))
        self._compare(scenario, reply, second, claims, again)
        return base

    def _check_first(self, reply: Reply, seen: Seen) -> None:
        plan = self._plan
        if not seen.claims:
            raise KitError(self._unprotected(reply, plan.send.what))
        wanted = reply.status == plan.status if plan.status is not None else (reply.status or 0) < 400
        if not wanted:
            expected = f"status {plan.status}" if plan.status is not None else "a success"
            raise KitError(
                f"{plan.send.what}: the first request got {reply.status} instead of {expected}: {shown(reply.body)}. "
                "Name a request that succeeds, or say status= if this outcome is the one to test"
            )

    def _compare(
        self, scenario: Scenario, first: Reply, second: Reply, claims: list[tuple[bytes, Any]], again: Seen
    ) -> None:
        found = differences(first, second, self._plan.compare_headers, self._plan.ignore)
        if found:
            self._fail(scenario, ["two responses for one key differ:", *found], advice.other_response(claims, again))

    # The response was lost on its way

    def _lost_reply(self, base: Base) -> Steps:
        scenario = Scenario(
            "the response was lost", "killed the worker when the response was on record, and sent the request again"
        )
        yield from self._killed(base, scenario, Crash(None, "after"))

    # At once

    def _at_once(self, base: Base) -> Steps:
        scenario = Scenario("at once", "sent the request again while the first one was in flight, and again after it")
        key = self._plan.key()
        yield Reset()
        before = yield Look()
        seen = self._script.start()
        first, duplicate = yield Send(key, beside=True)
        scenario.lines = seen.lines
        (after,) = yield from self._send_again(scenario, key)
        effects = yield Look()
        self._check_total(scenario, base, before, effects, advice.at_once(seen))
        self._check_status(scenario, base, first)
        result = seen.claims[1][1] if len(seen.claims) > 1 else None
        if not isinstance(result, Busy):
            got = f"the duplicate got {duplicate.status}: {shown(duplicate.body)}"
            self._fail(scenario, [got], advice.at_once(seen))
        self._compare(scenario, first, after, seen.claims[:1] + seen.claims[-1:], seen)

    # Crashes

    def _crash(self, base: Base, crash: Crash, used: StageUsed | None) -> Steps:
        where = advice.where(crash, used)
        scenario = Scenario(
            f"killed {where}", f"killed the worker {where}, let its lease end, and sent the request again, twice"
        )
        yield from self._killed(base, scenario, crash)

    def _killed(self, base: Base, scenario: Scenario, crash: Crash) -> Steps:
        script, key, what = self._script, self._plan.key(), self._plan.send.what
        yield Reset()
        before = yield Look()
        seen = script.start()
        scenario.lines = seen.lines
        script.crash = crash
        try:
            yield Send(key)
        finally:
            script.crash = None
        if not crash.fired:
            raise KitError(advice.NEVER_CAME.format(what=what, name=crash.stage, scenario=scenario.name))
        if seen.swallowed:
            raise KitError(advice.SWALLOWED.format(what=what, scenario=scenario.name))
        self._end_leases()
        began = len(seen.claims)
        (retry,) = yield from self._send_again(scenario, key)
        (again,) = yield from self._send_again(scenario, key)
        after = yield Look()
        cure = advice.killed(crash, base.seen.stages)
        result = seen.claims[began][1] if len(seen.claims) > began else None
        if self._is_unknown(result, retry, seen):
            self._check_total(scenario, base, before, after, cure, at_most=True)
            return
        self._check_total(scenario, base, before, after, cure)
        self._check_status(scenario, base, retry)
        self._compare(scenario, retry, again, seen.claims[began:], seen)
        self._check_remade(scenario, crash, seen)

    @staticmethod
    def _is_unknown(result: Any, retry: Reply, seen: Seen) -> bool:
        """Whether the library refused the retry because the outcome is unknown, which is safe."""
        return retry.status == 409 and (isinstance(result, Refused) or seen.in_doubt)

    def _check_remade(self, scenario: Scenario, crash: Crash, seen: Seen) -> None:
        """Compare the response of the killed attempt with that of the next one: both had the same stages."""
        if crash.stage is not None or len(seen.recorded) < 2 or crash.when != "unrecorded":
            return
        (status, body), (new_status, new_body) = seen.recorded[:2]
        found = [] if status == new_status else [f"the status: {status}, then {new_status}"]
        found += body_differences(body, new_body, self._plan.ignore)
        if found:
            self._fail(scenario, ["the next attempt made another response:", *found], advice.NOT_DETERMINED)

    def _send_again(self, scenario: Scenario, key: str) -> Generator[Ask, Any, list[Reply]]:
        """Send a request again. An exception of the application is a failure of the scenario."""
        try:
            replies: list[Reply] = yield Send(key)
            return replies
        except (KitError, NotIdempotent):
            raise
        except Exception as error:
            text = f"the request that was sent again raised {type(error).__name__}: {error}"
            raise self._failure(scenario, [text], advice.OTHER_STATUS) from error

    # Checks

    def _check_total(
        self, scenario: Scenario, base: Base, before: Any, after: Any, cure: str, *, at_most: bool = False
    ) -> None:
        if before is None:
            return
        total = change(before, after)
        if total == base.change or (at_most and is_within(total, base.change)):
            return
        if is_within(total, base.change):
            cure = advice.TOO_LITTLE
        self._fail(scenario, self._effects_said(base, total), cure)

    @staticmethod
    def _effects_said(base: Base, total: Any) -> list[str]:
        return [f"effects: {said(total)}; one request alone: {said(base.change)}"]

    def _check_status(self, scenario: Scenario, base: Base, reply: Reply) -> None:
        if reply.status != base.reply.status:
            seen = f"the response has status {reply.status}, a plain request got {base.reply.status}: "
            self._fail(scenario, [seen + shown(reply.body)], advice.OTHER_STATUS)

    def _fail(self, scenario: Scenario, seen: Sequence[str], cure: str) -> None:
        raise self._failure(scenario, seen, cure)

    def _failure(self, scenario: Scenario, seen: Sequence[str], cure: str) -> NotIdempotent:
        lines = [
            f"{self._plan.send.what} is not idempotent: {scenario.name}",
            f"  Done: {scenario.did}.",
            f"  Seen: {seen[0]}",
            *(f"        - {line}" for line in seen[1:]),
            f"  To do: {cure}",
            "  What happened:",
            *(f"        {line}" for line in scenario.lines),
        ]
        return NotIdempotent("\n".join(lines))


def _tried(stages: list[StageUsed]) -> Iterator[StageUsed]:
    """The uses of stages at which the worker is killed."""
    for used in stages:
        last = max(each.nth for each in stages if each.name == used.name)
        if last < _USES or used.nth in (0, last):
            yield used


# The drivers, sync and async: they send requests and look at effects, as scenarios demand.


class _Driver:
    """``headers``: the headers that may carry the key, until a claim shows which one does.

    ``why_unprotected``: returns why a request with this reply made no claim.
    """

    def __init__(
        self, script: Script, plan: Plan, headers: set[str], why_unprotected: Callable[[Reply, str], str]
    ) -> None:
        self._script = script
        self._plan = plan
        self._header_names = headers
        script.header = None
        self._why_unprotected = why_unprotected

    def _headers(self, key: str) -> dict[str, str]:
        if not isinstance(key, str) or not key:
            raise KitError(f"key: the function returned {key!r}; return a new text for each call, such as a UUID")
        names = self._header_names if self._script.header is None else {self._script.header}
        return dict.fromkeys(sorted(names), key)

    def _failed(self, error: BaseException) -> Reply:
        """The reply for a call that raised. Raises the error again, unless it comes from a killed worker."""
        if is_ours(error) or (self._script.killed and isinstance(error, Exception) and _comes_of_ours(error)):
            return Reply(None, raw=error)
        raise error

    def _both(self, first: Reply, found: list[Any]) -> list[Reply]:
        if not self._script.seen.claims:
            raise KitError(self._why_unprotected(first, self._plan.send.what))
        if not found:
            raise KitError(
                f"{self._plan.send.what}: no attempt began, so no duplicate could be sent meanwhile; was the key used "
                "before?"
            )
        (duplicate,) = found
        if isinstance(duplicate, BaseException):
            raise NotIdempotent(
                f"{self._plan.send.what}: the duplicate that was sent meanwhile raised {type(duplicate).__name__}: "
                f"{duplicate}"
            ) from duplicate
        return [first, duplicate]


def _comes_of_ours(error: BaseException) -> bool:
    return is_ours(error.__cause__) or is_ours(error.__context__)


class SyncDriver(_Driver):
    """For sync clients."""

    def run(self, steps: Steps) -> None:
        """Carry out scenarios."""
        __tracebackhide__ = True
        try:
            asked = next(steps)
            while True:
                try:
                    found = self._do(asked)
                except BaseException as error:
                    asked = steps.throw(error)
                else:
                    asked = steps.send(found)
        except StopIteration:
            return

    def _do(self, asked: Ask) -> Any:
        plan = self._plan
        if isinstance(asked, Look):
            return None if plan.effects is None else _effects.snapshot(_effects.looked(plan.effects))
        if isinstance(asked, Reset):
            return plan.reset() if plan.reset is not None else None
        assert isinstance(asked, Send)
        return self.send_both(asked.key) if asked.beside else [self._send(asked.key)]

    def _send(self, key: str) -> Reply:
        self._script.killed = False
        try:
            reply = read(self._sent(key))
        except BaseException as error:
            return self._failed(error)
        return Reply(None, raw=reply.raw) if self._script.killed else reply

    def _sent(self, key: str) -> Any:
        response = self._plan.send(self._headers(key))
        if inspect.isawaitable(response):
            if inspect.iscoroutine(response):
                response.close()
            raise KitError(
                f"{self._plan.send.what}: the client is async; write await idempotency.aassert_idempotent(...)"
            )
        return response

    def send_both(self, key: str) -> list[Reply]:
        """Send the request, and again while it is in flight."""
        found: list[Any] = []

        def send() -> None:
            try:
                found.append(read(self._sent(key)))
            except BaseException as error:
                found.append(error)

        self._script.nested = Nested(send=send)
        try:
            first = self._send(key)
        finally:
            self._script.nested = None
        return self._both(first, found)


class AsyncDriver(_Driver):
    """For async clients."""

    async def run(self, steps: Steps) -> None:
        """Carry out scenarios."""
        __tracebackhide__ = True
        try:
            asked = next(steps)
            while True:
                try:
                    found = await self._do(asked)
                except BaseException as error:
                    asked = steps.throw(error)
                else:
                    asked = steps.send(found)
        except StopIteration:
            return

    async def _do(self, asked: Ask) -> Any:
        plan = self._plan
        if isinstance(asked, Look):
            if plan.effects is None:
                return None
            seen = _effects.looked(plan.effects)
            return _effects.snapshot(await seen if inspect.isawaitable(seen) else seen)
        if isinstance(asked, Reset):
            done = plan.reset() if plan.reset is not None else None
            return await done if inspect.isawaitable(done) else done
        assert isinstance(asked, Send)
        return await self.send_both(asked.key) if asked.beside else [await self._send(asked.key)]

    async def _send(self, key: str) -> Reply:
        self._script.killed = False
        try:
            reply = await self._sent(key)
        except BaseException as error:
            return self._failed(error)
        return Reply(None, raw=reply.raw) if self._script.killed else reply

    async def _sent(self, key: str) -> Reply:
        response = self._plan.send(self._headers(key))
        if not inspect.isawaitable(response):
            raise KitError(f"{self._plan.send.what}: the client is sync; write idempotency.assert_idempotent(...)")
        return await aread(await response)

    async def send_both(self, key: str) -> list[Reply]:
        """Send the request, and again while it is in flight."""
        found: list[Any] = []

        async def asend() -> None:
            try:
                found.append(await self._sent(key))
            except BaseException as error:
                found.append(error)

        self._script.nested = Nested(asend=asend)
        try:
            first = await self._send(key)
        finally:
            self._script.nested = None
        return self._both(first, found)
