"""Holding a backend of either colour against the model, for authors of backends.

Needs Hypothesis, which is imported when it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from anyio.from_thread import BlockingPortal, start_blocking_portal

from open_idempotency.backend import AsyncBackend, Backend, Record
from open_idempotency.conformance.support import ManualClock
from open_idempotency.exceptions import MissingExtra

MakeBackend = Callable[[ManualClock], Backend | AsyncBackend]

EXAMPLES = 50
STEPS = 50
#: of the histories, those of reservations: there is less to find in them
_QUOTAS = 0.1


def check_against_model(
    make_backend: MakeBackend,
    *,
    examples: int = EXAMPLES,
    steps: int = STEPS,
    library: str = "asyncio",
    settings: Any = None,
) -> None:
    """Run random histories of commands on a backend, and hold every answer and every record against the model.

    A backend that has quotas gets a tenth as many of ``reserve`` and ``unreserve`` before that.

    ``make_backend(clock)``: a new, empty backend of either colour, whose time is ``clock()``; it is closed after its
    history. ``examples``: how many histories; ``steps``: the most commands in one. ``library``: ``"asyncio"`` or
    ``"trio"``, on which an asynchronous backend is awaited. ``settings``: Hypothesis's, in place of our own.
    Raises ``Disagreement``, an ``AssertionError``, on the shortest history that Hypothesis finds; ``MissingExtra``
    where Hypothesis is not installed. Since 0.1.
    """
    try:
        import hypothesis
        from hypothesis.stateful import run_state_machine_as_test

        from open_idempotency.conformance.machine import BackendMachine
        from open_idempotency.conformance.machine_quotas import QuotaMachine
    except ModuleNotFoundError as error:
        if error.name != "hypothesis":
            raise
        raise MissingExtra("the model test needs Hypothesis: pip install hypothesis") from error
    chosen = settings or hypothesis.settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        # A server may be slow, and a history long.
        suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
    )
    some = hypothesis.settings(chosen, max_examples=max(5, round(chosen.max_examples * _QUOTAS)))
    with start_blocking_portal(library) as portal:
        first = _Called(make_backend(ManualClock()), portal)
        first.close()

        class Records(BackendMachine):
            def __init__(self) -> None:
                clock = ManualClock()
                called = _Called(make_backend(clock), portal)
                super().__init__(called, clock, called.close)

        class Quotas(QuotaMachine):
            def __init__(self) -> None:
                clock = ManualClock()
                called = _Called(make_backend(clock), portal)
                super().__init__(called, clock, called.close)

        if first.quotas:
            run_state_machine_as_test(Quotas, settings=some)
        run_state_machine_as_test(Records, settings=chosen)


class _Called:
    """A backend of either colour, called by the name of a verb; one that is awaited runs on the portal's loop."""

    def __init__(self, backend: Backend | AsyncBackend, portal: BlockingPortal) -> None:
        self._backend = backend
        self._portal = portal

    def __call__(self, verb: str, *arguments: object) -> object:
        if verb == "scan":
            return self._scan()
        function = getattr(self._backend, verb)
        return self._portal.call(function, *arguments) if self._is_async else function(*arguments)

    @property
    def quotas(self) -> bool:
        """Whether the backend has them."""
        return self._backend.quotas

    @property
    def _is_async(self) -> bool:
        return isinstance(self._backend, AsyncBackend)

    def _scan(self) -> list[Record]:
        backend = self._backend
        if isinstance(backend, Backend):
            return list(backend.scan())

        async def collect() -> list[Record]:
            return [record async for record in backend.scan()]

        return self._portal.call(collect)

    def close(self) -> None:
        """Close it in both colours, since either may have opened something."""
        self("close")
        if isinstance(self._backend, AsyncBackend):
            self._backend.to_sync().close()
