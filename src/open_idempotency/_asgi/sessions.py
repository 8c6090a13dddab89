"""The session that a layer outside has decoded into the ASGI scope, as Starlette's ``SessionMiddleware`` does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def read_session(session: object) -> dict[str, Any]:
    """A copy of what is in ``scope["session"]``; empty where that is no mapping.

    A session notes who reads it, and the response would begin to vary by cookie: so it is read as a plain dict.
    """
    if isinstance(session, dict):
        return dict(dict.items(session))
    return dict(session) if isinstance(session, Mapping) else {}
