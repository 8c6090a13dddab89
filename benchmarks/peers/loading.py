"""How a peer's module is found without being imported where it is not installed.

Peers carry types of their own or none, so what they give is ``Any`` here.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any


def installed(*modules: str) -> bool:
    """Whether every one of these modules (of top level) is there."""
    return all(find_spec(module) is not None for module in modules)


def load(module: str) -> Any:
    """The module."""
    return import_module(module)


def named(module: str, *names: str) -> list[Any]:
    """Some of a module's attributes."""
    found = import_module(module)
    return [getattr(found, name) for name in names]
