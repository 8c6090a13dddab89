"""What others may hold their own work against: a contract for backends, and statements about a live HTTP endpoint.

    from open_idempotency.conformance import BackendContract

    class TestMyBackend(BackendContract):
        @pytest.fixture
        def backend(self, clock):
            return MyBackend(clock=clock)

The fixture returns an empty backend of either colour, whose time is ``clock()``. This needs pytest and anyio, whose
plugin comes with it; override its fixture ``anyio_backend`` to choose asyncio or trio. ``check_against_model`` looks
for a history of commands on which the backend breaks the contract, and needs Hypothesis too. The HTTP runner,
``python -m open_idempotency.conformance URL``, needs neither, so nothing is imported before it is asked for.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from open_idempotency.conformance.contract import BackendContract
    from open_idempotency.conformance.modelled import check_against_model
    from open_idempotency.conformance.support import AsyncVerbs, ManualClock

__all__ = ["AsyncVerbs", "BackendContract", "ManualClock", "check_against_model"]

_HOMES = {
    "BackendContract": "contract",
    "AsyncVerbs": "support",
    "ManualClock": "support",
    "check_against_model": "modelled",
}

# Only modules that are not imported yet can be rewritten, so this cannot wait until a name is asked for.
if "pytest" in sys.modules:
    _MODULES = "claims expiry failures late_claims operators owners quotas stages support waiting"
    for _module in _MODULES.split():
        sys.modules["pytest"].register_assert_rewrite(f"{__name__}.{_module}")


# Hidden from type checkers, which would believe that every name exists.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """The contract's classes, imported when they are first used."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value: object = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
