"""The drivers, sync and async: they send requests and look at effects, as scenarios demand."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from open_idempotency.testing import _effects
from open_idempotency.testing._clients import Reply, aread, read
from open_idempotency.testing._scenarios import Ask, Look, NotIdempotent, Plan, Reset, Send, Steps
from open_idempotency.testing._script import KitError, Nested, Script, is_ours


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
