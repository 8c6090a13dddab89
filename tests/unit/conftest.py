"""Fixtures of the blocking adapters' tests: a backend, a Flask application, and a list to leave traces in."""

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
    """What the views of a test leave behind."""
    return []


@pytest.fixture
def app() -> Flask:
    made = Flask("shop")
    made.secret_key = "s"
    return made
