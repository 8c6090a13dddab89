"""Fixtures of the tests of the sync adapters: a backend, a Flask application, and a list of traces."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask

from open_idempotency.backends.memory import MemoryBackend


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend()


@pytest.fixture
def runs() -> list[Any]:
    """The list in which the views of a test leave traces."""
    return []


@pytest.fixture
def app() -> Flask:
    made = Flask("shop")
    made.secret_key = "s"
    return made
