"""Whether this release of Flask calls the methods that the extension wraps.

The methods are public, and subclasses may override them, but Flask does not document which of its methods calls which.
A release that no longer calls them would run requests unprotected, and nothing else would show it. No other way is as
safe: ``before_request`` functions of blueprints run after those of the application, so a claim in such a function may
not know the caller yet.
"""

from __future__ import annotations

import inspect
import logging
from importlib.metadata import version
from typing import Any

from flask import Flask

#: for each method of Flask, the wrapped methods that it calls
CALLED = {
    "full_dispatch_request": ("preprocess_request", "dispatch_request"),
    "finalize_request": ("process_response",),
}
_logger = logging.getLogger("open_idempotency")
_warned: list[str] = []


def warn_of_release() -> None:
    """Warn, once in each process, if Flask does not call a wrapped method where it always has."""
    missing = [name for caller, names in CALLED.items() for name in names if name not in _names_in(caller)]
    if not missing or _warned:
        return
    _warned.extend(missing)
    _logger.warning(
        "Flask %s may not call %s, which this extension wraps, so requests may run unprotected: test that a retry is "
        "replayed, and install an older release of Flask, or a later one of open-idempotency, if it is not",
        version("flask"),
        ", ".join(f"{name}()" for name in missing),
    )


def _names_in(method: str) -> tuple[str, ...]:
    """The names that a method of Flask uses; if another library has wrapped it, those of the wrapped method."""
    function: Any = inspect.unwrap(getattr(Flask, method, warn_of_release))
    names: tuple[str, ...] = getattr(getattr(function, "__code__", None), "co_names", ())
    return names
