"""Idempotency keys for FastAPI: Starlette's middleware under the name that a FastAPI user looks for.

``app.add_middleware(IdempotencyMiddleware, backend="sqlite:///idempotency.db", lease=30)`` on the ``FastAPI()``
application. Nothing of FastAPI's own is needed here, so nothing else lives here.
"""

from __future__ import annotations

from open_idempotency.exceptions import MissingExtra

try:
    import fastapi
except ModuleNotFoundError as error:
    if error.name != "fastapi":
        raise
    raise MissingExtra(
        "open_idempotency.fastapi needs the fastapi package: pip install 'open-idempotency[fastapi]'"
    ) from error

from open_idempotency.starlette import IdempotencyMiddleware

__all__ = ["IdempotencyMiddleware"]

del fastapi
