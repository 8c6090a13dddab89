"""One running attempt, settled in either colour."""

from __future__ import annotations

from open_idempotency._core.drivers import Steps
from open_idempotency._core.requests import Response
from open_idempotency._core.settlement import Fate, abort, begin, finish
from open_idempotency._wsgi import protection


class Protection(protection.Protection):
    """The blocking adapters' protection, with awaited verbs besides."""

    __slots__ = ()

    async def abegin(self) -> Response | None:
        """``begin``, awaited."""
        while self.unsure:
            instead = await self._engine.aio.run(begin(self.attempt))
            if instead is not None:
                self._end()
                return instead
        return None

    async def afinish(self, *, guarded: bool = False) -> Fate | Response:
        """``finish``, awaited. ``guarded``: although this task is being cancelled."""
        return await self._asettle(finish(self.attempt, self.capture.response()), guarded)

    async def aabort(self, error: BaseException) -> Fate | Response:
        """``abort``, awaited; guarded unless the error is an ordinary exception (L-04)."""
        return await self._asettle(abort(self.attempt, error), not isinstance(error, Exception))

    async def _asettle(self, steps: Steps[Fate | Response], guarded: bool) -> Fate | Response:
        self.settled = True
        try:
            return await self._engine.aio.run(steps, guarded=guarded)
        finally:
            self._engine.heartbeat.forget(self.attempt)
