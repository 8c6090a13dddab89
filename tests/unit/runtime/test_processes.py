"""Values that belong to one process."""

from __future__ import annotations

import os

import pytest

from open_idempotency._runtime.processes import PerProcess


def test_a_value_is_made_once() -> None:
    """B-11: it is made lazily, on first use."""
    made: list[object] = []

    def make() -> object:
        made.append(object())
        return made[-1]

    values = PerProcess(make)
    assert made == []
    assert values.get() is values.get() is made[0]


def test_a_popped_value_is_made_anew() -> None:
    """B-11: a closed value can be replaced."""
    values = PerProcess(object)
    first = values.get()
    assert values.pop() is first
    assert values.pop() is None
    assert values.get() is not first


def test_another_process_has_another_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """B-11: after a fork the inherited value is neither returned nor popped, and not dropped either."""
    values = PerProcess(object)
    parents = values.get()
    parent = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    assert values.get() is not parents
    assert values.pop() is not parents
    monkeypatch.setattr(os, "getpid", lambda: parent)
    assert values.get() is parents


def test_a_value_may_be_empty() -> None:
    """An empty dictionary is a value, not the lack of one."""
    values: PerProcess[dict[str, int]] = PerProcess(dict)
    values.get()["a"] = 1
    assert values.get() == {"a": 1}
