"""Test that requests of your application are idempotent: twice, concurrently, and after a crash at each stage.

With pytest, use the fixture ``idempotency``. With any other runner, write ``with Kit() as idempotency:``. Nothing here
needs pytest, a server or a particular framework, and no other part of this package imports it.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from open_idempotency.testing._kit import InFlight, Kit, current
from open_idempotency.testing._scenarios import NotIdempotent
from open_idempotency.testing._script import Clock, Killed, KitError, NoResponse

__all__ = [
    "Clock",
    "InFlight",
    "Killed",
    "Kit",
    "KitError",
    "NoResponse",
    "NotIdempotent",
    "aassert_idempotent",
    "assert_idempotent",
]


@contextmanager
def _kit() -> Generator[Kit, None, None]:
    """The kit that is in use, or a new one for this block."""
    in_use = current()
    if in_use is not None:
        yield in_use
        return
    with Kit() as kit:
        yield kit


def assert_idempotent(client: Any, request: Any, *, effects: Any = None, **asked: Any) -> None:
    """``Kit.assert_idempotent``, with the kit that is in use or with one of its own. Since 0.1."""
    __tracebackhide__ = True
    with _kit() as kit:
        kit.assert_idempotent(client, request, effects=effects, **asked)


async def aassert_idempotent(client: Any, request: Any, *, effects: Any = None, **asked: Any) -> None:
    """``Kit.aassert_idempotent``, with the kit that is in use or with one of its own. Since 0.1."""
    __tracebackhide__ = True
    with _kit() as kit:
        await kit.aassert_idempotent(client, request, effects=effects, **asked)
