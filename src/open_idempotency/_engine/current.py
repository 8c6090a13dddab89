"""Which request is running here: one context variable, set by adapters, read by ``idem``."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Protocol

from open_idempotency._core.attempt import Attempt
from open_idempotency._engine.performers import AsyncPerformer, Performer
from open_idempotency.exceptions import NotStarted


class Performers(Protocol):
    """What carries out stages, sync and async: the adapter's engine."""

    @property
    def sync(self) -> Performer:
        """For sync code."""
        ...

    @property
    def aio(self) -> AsyncPerformer:
        """For coroutines."""
        ...


# A plain tuple: one is made for each covered request, also for those without a key.
Running = tuple[Attempt, Performers]

running: ContextVar[Running | None] = ContextVar("open_idempotency_running", default=None)


def here() -> Running:
    """The request that is running in this context. Raises ``NotStarted`` outside of one."""
    found = running.get()
    if found is None:
        raise NotStarted(
            "no idempotent request is running here: is the middleware installed, and does it cover this route and its "
            "method (POST and PATCH, unless methods= says more)? A FastAPI dependency runs before the claim; use "
            "idem in the endpoint. A thread of your own runs in contextvars.copy_context().run(...)"
        )
    return found
