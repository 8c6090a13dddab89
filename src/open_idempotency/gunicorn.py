"""Hooks for gunicorn, to be imported by ``gunicorn.conf.py``; gunicorn finds them by their names.

``from open_idempotency.gunicorn import on_reload, post_worker_init, worker_int``. When gunicorn stops, it
kills the workers that are not done after ``graceful_timeout``. The hooks give up what still runs a moment before that.

There is no ``worker_exit`` on purpose: a worker that ends by itself has finished its requests, or waits for its threads
to finish them after that hook. What is left then is given up by the interpreter's own exit functions.
"""

from __future__ import annotations

import mmap
import struct
from typing import Any

from open_idempotency._engine.shutdown import drain
from open_idempotency._runtime import processes
from open_idempotency.shutdown import arm_sigterm

__all__ = ["on_reload", "post_worker_init", "worker_int"]

#: seconds before the end of ``graceful_timeout`` at which is drained; a quarter of it where that is less
_BEFORE_THE_KILL = 2.0
_AT_ONCE = 1.0
_FORMAT = "q"

# The number of the last worker that was started before the last reload. Shared memory: the arbiter imports this module
# and writes here, and the workers, which it has forked, read.
_reloaded = mmap.mmap(-1, struct.calcsize(_FORMAT))


def post_worker_init(worker: Any) -> None:
    """In a worker, before it serves: drain shortly before gunicorn kills it, and take note of ``timeout``.

    A ``sync`` worker that works at one request for longer than ``timeout`` is killed. So stages and responses that the
    backend does not take are given up, or recorded later, shortly before that.
    The worker class of uvicorn puts a handler of SIGTERM instead of this one's while it serves, so it needs a
    ``timeout_graceful_shutdown`` that is shorter than gunicorn's ``graceful_timeout`` besides.
    """
    # The other classes report to the arbiter that they live whatever their requests do.
    if worker.cfg.timeout and any(kind.__name__ == "SyncWorker" for kind in type(worker).__mro__):
        processes.limit_requests(worker.cfg.timeout)
    grace: float = worker.cfg.graceful_timeout
    signals = 0

    def wanted() -> bool:
        # A worker that is only replaced, by a reload, is not killed and may finish; a second SIGTERM is the end.
        nonlocal signals
        signals += 1
        return signals > 1 or worker.age > _last_before_reload()

    arm_sigterm(grace - min(_BEFORE_THE_KILL, grace / 4), wanted)


def worker_int(worker: Any) -> None:
    """In a worker, at SIGINT or SIGQUIT, which end it at once: drain at once."""
    drain(_AT_ONCE)


def on_reload(arbiter: Any) -> None:
    """In the arbiter, at SIGHUP: the workers up to now are replaced, and nobody kills them."""
    struct.pack_into(_FORMAT, _reloaded, 0, arbiter.worker_age)


def _last_before_reload() -> int:
    last: int = struct.unpack_from(_FORMAT, _reloaded)[0]
    return last
