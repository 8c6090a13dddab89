"""The contract that every backend keeps, as pytest classes that run against yours.

    from open_idempotency.conformance import BackendContract

    class TestMyBackend(BackendContract):
        @pytest.fixture
        def backend(self, clock):
            return MyBackend(clock=clock)

The fixture returns an empty backend of either colour, whose time is ``clock()``. Needs pytest and anyio, whose plugin
comes with it; override its fixture ``anyio_backend`` to choose asyncio or trio. Import this from tests only.
"""

from __future__ import annotations

import pytest

for _module in ("claims", "expiry", "operators", "owners", "stages", "support"):
    pytest.register_assert_rewrite(f"{__name__}.{_module}")

from open_idempotency.conformance.contract import BackendContract  # noqa: E402
from open_idempotency.conformance.support import AsyncVerbs, ManualClock  # noqa: E402

__all__ = ["AsyncVerbs", "BackendContract", "ManualClock"]
