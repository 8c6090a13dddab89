"""Hooks for gunicorn, to be imported by ``gunicorn.conf.py``; gunicorn finds them by their names.

``from open_idempotency.gunicorn import on_reload, post_worker_init, worker_int``. When gunicorn stops, it kills workers
that are still running after ``graceful_timeout``. The hooks give up running requests shortly before that.

There is no ``worker_exit`` on purpose: a worker that ends by itself has finished its requests, or waits after that hook
for its threads to finish them. The exit functions of this library give up the rest.
"""

from __future__ import annotations

import mmap
import struct
from typing import Any

from open_idempotency._engine.shutdown import drain
from open_idempotency._runtime import processes
from open_idempotency.shutdown import arm_sigterm

__all__ = ["on_reload", "post_worker_init", "worker_int"]

#: draining begins this many seconds before the end of ``graceful_timeout``, or a quarter of it if that is less
_BEFORE_THE_KILL = 2.0
_AT_ONCE = 1.0
_FORMAT = "q"

# The number of the last worker that was started before the last reload. It is in shared memory: the arbiter, which
# imports this module, writes it, and its forked workers read it.
_reloaded = mmap.mmap(-1, struct.calcsize(_FORMAT))


def post_worker_init(worker: Any) -> None:
    """In a worker, before it serves: drain shortly before gunicorn kills it, and read its ``timeout``.

    A ``sync`` worker that takes longer than ``timeout`` for one request is killed. So shortly before that, stages and
    responses that the backend does not accept are given up, or recorded later. The worker class of uvicorn replaces
    this handler of SIGTERM while it serves, so it also needs a ``timeout_graceful_shutdown`` that is shorter than
    gunicorn's ``graceful_timeout``.
    """
    # Workers of other classes report to the arbiter that they are alive, whatever their requests do.
    if worker.cfg.timeout and any(kind.__name__ == "SyncWorker" for kind in type(worker).__mro__):
        processes.limit_requests(worker.cfg.timeout)
    grace: float = worker.cfg.graceful_timeout
    signals = 0

    def wanted() -> bool:
        # A worker that a reload replaces is not killed and may finish. A second SIGTERM ends it.
        nonlocal signals
        signals += 1
        return signals > 1 or worker.age > _last_before_reload()

    arm_sigterm(grace - min(_BEFORE_THE_KILL, grace / 4), wanted)


def worker_int(worker: Any) -> None:
    """In a worker, at SIGINT or SIGQUIT, which end it at once: drain now."""
    drain(_AT_ONCE)


def on_reload(arbiter: Any) -> None:
    """In the arbiter, at SIGHUP: note that the present workers are replaced and not killed."""
    struct.pack_into(_FORMAT, _reloaded, 0, arbiter.worker_age)


def _last_before_reload() -> int:
    last: int = struct.unpack_from(_FORMAT, _reloaded)[0]
    return last
