"""The least that pure ASGI middleware can do."""

from __future__ import annotations

from typing import Any

from benchmarks.interface import App


class Layer:
    """Passes everything on."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)
