"""Conformance tests: a contract for backends, and a runner that checks any live HTTP endpoint.

    from open_idempotency.conformance import BackendContract

    class TestMyBackend(BackendContract):
        @pytest.fixture
        def backend(self, clock):
            return MyBackend(clock=clock)

The fixture returns an empty backend, sync or async, whose time is ``clock()``. The contract needs pytest and anyio;
anyio's pytest plugin has the fixture ``anyio_backend``, which chooses asyncio or trio. ``check_against_model`` compares
the backend with a reference model on random sequences of commands, and needs Hypothesis as well. The HTTP runner,
``python -m open_idempotency.conformance URL``, needs the base install only, so this module imports the rest lazily.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from open_idempotency.conformance.contract import BackendContract
    from open_idempotency.conformance.model_check import check_against_model
    from open_idempotency.conformance.support import AsyncVerbs, ManualClock

__all__ = ["AsyncVerbs", "BackendContract", "ManualClock", "check_against_model"]

_HOMES = {
    "BackendContract": "contract",
    "AsyncVerbs": "support",
    "ManualClock": "support",
    "check_against_model": "model_check",
}

# pytest rewrites the asserts of a module only if it is registered before its import.
if "pytest" in sys.modules:
    _MODULES = "claims failures late_claims owners quotas records sizes support"
    for _module in _MODULES.split():
        sys.modules["pytest"].register_assert_rewrite(f"{__name__}.{_module}")


# Hidden from type checkers: with __getattr__ they would accept every name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value: object = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
