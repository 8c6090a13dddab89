"""Finds a peer's module without importing it if it is not installed.

Peers have types of their own or none, so their objects are ``Any`` here.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any


def installed(*modules: str) -> bool:
    """Whether all of these top-level modules are installed."""
    return all(find_spec(module) is not None for module in modules)


def load(module: str) -> Any:
    """Import the module."""
    return import_module(module)


def named(module: str, *names: str) -> list[Any]:
    """Some of a module's attributes."""
    found = import_module(module)
    return [getattr(found, name) for name in names]
