"""Releases of Flask that do not call the methods that the extension wraps: the application gets one warning."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask

from open_idempotency._flask import extension
from open_idempotency.flask import Idempotency


@pytest.fixture(autouse=True)
def _not_warned_yet() -> Iterator[None]:
    extension._warned_of.clear()
    yield
    extension._warned_of.clear()


def _protect() -> None:
    Idempotency(Flask(__name__), backend="memory://")


def test_this_release_calls_what_is_wrapped(caplog: pytest.LogCaptureFixture) -> None:
    """B-25: the installed release calls the wrapped methods."""
    with caplog.at_level(logging.WARNING, "open_idempotency"):
        _protect()
    assert caplog.messages == []


@pytest.mark.parametrize("method", extension.CALLED)
def test_a_release_that_calls_others_is_reported_once(
    method: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-25: the warning names the methods and says what to do."""

    def renamed(self: Any) -> Any:
        return self.dispatch_by_another_name()

    monkeypatch.setattr(Flask, method, renamed)
    with caplog.at_level(logging.WARNING, "open_idempotency"):
        _protect()
        _protect()
    (message,) = caplog.messages
    assert all(f"{name}()" in message for name in extension.CALLED[method])
    assert "requests may run unprotected: test that a retry is replayed" in message


def test_what_another_library_has_wrapped_is_looked_through(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B-25: tracing libraries wrap the same methods."""
    original = Flask.full_dispatch_request

    @functools.wraps(original)
    def traced(*arguments: Any) -> Any:
        return original(*arguments)

    monkeypatch.setattr(Flask, "full_dispatch_request", traced)
    with caplog.at_level(logging.WARNING, "open_idempotency"):
        _protect()
    assert caplog.messages == []
