"""The backend that the docs show keeps the contract that the docs send people to."""

from __future__ import annotations

from typing import Any

import pytest

from open_idempotency.backend import AsyncBackend, Backend
from open_idempotency.conformance import BackendContract, ManualClock
from tests.docs.pages import ROOT, blocks

PAGE = ROOT / "docs" / "writing-a-backend.md"


def _backend_class() -> Any:
    (source,) = [block for block in blocks(PAGE) if block.language == "python" and block.heading == "The class"]
    names: dict[str, Any] = {}
    exec(compile(source.text, str(PAGE), "exec"), names)
    return names["DictionaryBackend"]


class TestTheBackendOfTheDocs(BackendContract):
    """B-12: the shipped suite on the example, in both colours."""

    @pytest.fixture(params=["sync", "asyncio", "trio"])
    def colour(self, request: pytest.FixtureRequest) -> str:
        colour: str = request.param
        return colour

    @pytest.fixture
    def anyio_backend(self, colour: str) -> str:
        return "asyncio" if colour == "sync" else colour

    @pytest.fixture
    def backend(self, clock: ManualClock, colour: str) -> Backend | AsyncBackend:
        made: Backend = _backend_class()(clock=clock)
        return made if colour == "sync" else made.to_async()
