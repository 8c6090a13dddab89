"""The backend that the docs show passes the contract suite and the model test that they refer to."""

from __future__ import annotations

from typing import Any

import pytest

from open_idempotency.backend import AsyncBackend, Backend
from open_idempotency.conformance import BackendContract, ManualClock, check_against_model
from tests.docs.pages import ROOT, blocks

PAGE = ROOT / "docs" / "writing-a-backend.md"


def _backend_class() -> Any:
    """The class of the page, with everything that the page adds to it."""
    names: dict[str, Any] = {}
    for block in blocks(PAGE):
        if block.language == "python" and block.heading in ("The class", "Quotas"):
            exec(compile(block.text, str(PAGE), "exec"), names)
    return names["CountingBackend"]


class TestTheBackendOfTheDocs(BackendContract):
    """B-12: the contract suite on the example, sync and async."""

    @pytest.fixture(params=["sync", "asyncio", "trio"])
    def mode(self, request: pytest.FixtureRequest) -> str:
        mode: str = request.param
        return mode

    @pytest.fixture
    def anyio_backend(self, mode: str) -> str:
        return "asyncio" if mode == "sync" else mode

    @pytest.fixture
    def backend(self, clock: ManualClock, mode: str) -> Backend | AsyncBackend:
        made: Backend = _backend_class()(clock=clock)
        return made if mode == "sync" else made.to_async()


def test_the_backend_of_the_docs_keeps_to_the_model() -> None:
    """B-12: the model test on the example."""
    made = _backend_class()
    check_against_model(lambda clock: made(clock=clock), examples=20, steps=30)
