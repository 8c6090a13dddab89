"""The pytest plugin with the fixture ``idempotency``. The kit is imported only when the fixture is used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from open_idempotency.testing import Kit


@pytest.fixture
def idempotency() -> Iterator[Kit]:
    """A ``Kit``: a fresh backend in memory for every application that the test calls, and accidents to cause.

    Its methods are those of ``open_idempotency.testing.Kit``. Since 0.1.
    """
    from open_idempotency.testing import Kit

    with Kit() as kit:
        yield kit
