"""The backend that the docs show keeps the contract that the docs send people to."""

from __future__ import annotations

from typing import Any

import pytest

from open_idempotency.backend import AsyncBackend, Backend
from open_idempotency.conformance import BackendContract, ManualClock, check_against_model
from tests.docs.pages import ROOT, blocks

PAGE = ROOT / "docs" / "writing-a-backend.md"


def _backend_class() -> Any:
    """The class of the page with all that it adds to it."""
    names: dict[str, Any] = {}
    for block in blocks(PAGE):
        if block.language == "python" and block.heading in ("The class", "Quotas"):
            exec(compile(block.text, str(PAGE), "exec"), names)
    return names["CountingBackend"]


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


def test_the_backend_of_the_docs_keeps_to_the_model() -> None:
    """B-12: the other test that the page sends its reader to."""
    made = _backend_class()
    check_against_model(lambda clock: made(clock=clock), examples=20, steps=30)
