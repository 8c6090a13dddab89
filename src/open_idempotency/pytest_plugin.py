"""The pytest plugin: the fixture ``idempotency``. Loaded by its entry point; the kit itself only where it is used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from open_idempotency.testing import Kit


@pytest.fixture
def idempotency() -> Iterator[Kit]:
    """A fresh backend in memory for every application that the test calls, and the accidents that it can cause.

    See ``open_idempotency.testing.Kit``. Since 0.1.
    """
    from open_idempotency.testing import Kit

    with Kit() as kit:
        yield kit
