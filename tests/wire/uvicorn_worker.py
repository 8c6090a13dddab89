"""The gunicorn worker class for uvicorn of ``docs/deploying.md``; importing uvicorn's own class warns."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from uvicorn.workers import UvicornWorker


class Worker(UvicornWorker):
    """Cancels requests that did not end in time before gunicorn kills the worker."""

    CONFIG_KWARGS = {**UvicornWorker.CONFIG_KWARGS, "timeout_graceful_shutdown": 1}
