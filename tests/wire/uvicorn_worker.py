"""gunicorn's worker class that runs uvicorn, as ``docs/deploying.md`` shows it; importing uvicorn's own warns."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from uvicorn.workers import UvicornWorker


class Worker(UvicornWorker):
    """Cancels what did not end in time before gunicorn kills it."""

    CONFIG_KWARGS = {**UvicornWorker.CONFIG_KWARGS, "timeout_graceful_shutdown": 1}
