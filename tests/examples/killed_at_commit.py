"""Serves a transactional example, and dies right before or right after the COMMIT of the receipt.

``python -m tests.examples.killed_at_commit after examples.payments_django_atomic``. Only for workers that serve one
request: the receipt that this process has written identifies the COMMIT.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from examples import serving
from examples.evidence import FOLDER, read_journal


def dying(commit: Callable[..., Any], moment: str) -> Callable[..., Any]:
    """``commit``, which kills this process before or after it."""

    def committed(*args: Any) -> None:
        last = {"effect": "receipt", "worker": os.getpid()} in read_journal(FOLDER)
        if last and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        commit(*args)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)

    return committed


if __name__ == "__main__":
    moment, name = sys.argv[1:]
    module: Any = import_module(name)
    if hasattr(module, "wsgi_application"):
        from django.db.backends.base.base import BaseDatabaseWrapper

        kind: Any = BaseDatabaseWrapper
        kind._commit = dying(kind._commit, moment)
        serving.serve_wsgi(module.wsgi_application)
    else:
        dialect = module.engine.sync_engine.dialect
        dialect.do_commit = dying(dialect.do_commit, moment)
        serving.serve_asgi(module.app)
