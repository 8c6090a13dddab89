"""``check_against_model``: compares a sync or async backend with the reference model on random histories.

Hypothesis is imported when the check runs, so that this module can be imported without it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from anyio.from_thread import BlockingPortal, start_blocking_portal

from open_idempotency.backend import AsyncBackend, Backend, Record
from open_idempotency.conformance.support import ManualClock
from open_idempotency.exceptions import MissingExtra

MakeBackend = Callable[[ManualClock], Backend | AsyncBackend]

EXAMPLES = 50
STEPS = 50
#: histories of quotas, as a share of the histories of records: quotas have far fewer states
_QUOTAS = 0.1


def check_against_model(
    make_backend: MakeBackend,
    *,
    examples: int = EXAMPLES,
    steps: int = STEPS,
    library: str = "asyncio",
    settings: Any = None,
) -> None:
    """Run random histories of commands on a backend, and compare every outcome and record with the reference model.

    A backend with quotas also runs a tenth as many histories of ``reserve`` and ``unreserve``, before the others.

    ``make_backend(clock)``: returns a new, empty backend, sync or async, whose time is ``clock()``. It is called for
    each history, and the backend is closed afterwards. ``examples``: the number of histories. ``steps``: the maximum
    number of commands in one history. ``library``: ``"asyncio"`` or ``"trio"``, which runs an async backend.
    ``settings``: Hypothesis settings to use instead of ``examples`` and ``steps``.

    Raises ``Disagreement``, an ``AssertionError``, with the shortest history that Hypothesis finds, and
    ``MissingExtra`` if Hypothesis is not installed. Since 0.1.
    """
    try:
        import hypothesis
        from hypothesis.stateful import run_state_machine_as_test

        from open_idempotency.conformance.state_machine import QuotaMachine, RecordMachine
    except ModuleNotFoundError as error:
        if error.name != "hypothesis":
            raise
        raise MissingExtra("check_against_model needs Hypothesis: pip install hypothesis") from error
    for_records = settings or _settings(examples, steps)
    for_quotas = hypothesis.settings(for_records, max_examples=max(5, round(for_records.max_examples * _QUOTAS)))
    with start_blocking_portal(library) as portal:
        begun = partial(_begin, make_backend, portal)

        # Hypothesis makes the machines itself, without arguments.
        class Records(RecordMachine):
            def __init__(self) -> None:
                super().__init__(*begun())

        class Quotas(QuotaMachine):
            def __init__(self) -> None:
                super().__init__(*begun())

        first, _, close = begun()
        close()
        if first.quotas:
            run_state_machine_as_test(Quotas, settings=for_quotas)
        run_state_machine_as_test(Records, settings=for_records)


def _begin(make_backend: MakeBackend, portal: BlockingPortal) -> tuple[Any, ManualClock, Callable[[], None]]:
    """The arguments of a machine: a new backend, its clock, and a function that closes it."""
    clock = ManualClock()
    by_verb = _BackendByVerb(make_backend(clock), portal)
    return by_verb, clock, by_verb.close


def _settings(examples: int, steps: int) -> Any:
    import hypothesis

    return hypothesis.settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        # Servers are slow compared with what Hypothesis expects of an example, and histories are long.
        suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
    )


class _BackendByVerb:
    """A sync or async backend whose verbs are called by name. An async backend runs on the portal's event loop."""

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
        """Whether the backend has quotas."""
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
        """Close the backend in its sync and its async form, since either may have opened connections."""
        self("close")
        if isinstance(self._backend, AsyncBackend):
            self._backend.to_sync().close()
