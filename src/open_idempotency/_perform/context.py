"""Which request is running here: one context variable, set by adapters, read by ``idem``."""

from __future__ import annotations

from contextvars import ContextVar
from typing import NamedTuple

from open_idempotency._core.attempt import Attempt
from open_idempotency._perform.performers import AsyncPerformer, Performer


class Running(NamedTuple):
    """A running attempt and what carries out its stages, in both colours."""

    attempt: Attempt
    sync: Performer
    aio: AsyncPerformer


running: ContextVar[Running | None] = ContextVar("open_idempotency_running", default=None)
