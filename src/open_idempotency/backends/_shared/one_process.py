"""The warning that records are in the memory of one process, while the server has several."""

from __future__ import annotations

import logging
import os

from open_idempotency._runtime.processes import PerProcess, find_neighbour

_logger = logging.getLogger("open_idempotency")
_warned: PerProcess[list[str]] = PerProcess(list)
# the users for which this process has looked
_looked: PerProcess[set[str]] = PerProcess(set)


def warn_of_other_workers(where: str) -> None:
    """Log, once in this process, that another worker of the same server has records of its own (B-24).

    ``where``: what holds the records, as the application names it. To be called when a backend is made and when it is
    first used in a process: a server may begin to listen before or after the backend is made.
    """
    warned = _warned.get()
    if warned:
        return
    neighbour = find_neighbour()
    if neighbour is None:
        return
    warned.append(where)
    other = f"the worker with pid {neighbour.pid}" if neighbour.pid else "another worker"
    _logger.warning(
        "%s keeps records in the memory of one process, and this worker (pid %d) and %s both serve %s: a retry that "
        "reaches the other worker runs again; use a backend that workers share, such as sqlite:///idempotency.db, "
        "redis:// or postgresql://, or start one worker",
        where,
        os.getpid(),
        other,
        neighbour.address,
    )


def warn_of_other_processes(where: str, user: str) -> None:
    """Log, once in this process, that another process has records of its own for the same purpose (B-24).

    For processes that do not listen, such as the workers of a task queue. ``user``: what uses the records, such as the
    scope of a ``Once``. A process that was started in another folder counts as another application.
    """
    looked = _looked.get()
    if user in looked:
        return
    looked.add(user)
    neighbour = find_neighbour(f"{user} in {_folder()}")
    if neighbour is None:
        return
    other = f"the process with pid {neighbour.pid}" if neighbour.pid else "another process"
    _logger.warning(
        "%s keeps records in the memory of one process, and this one (pid %d) and %s both use %s: what reaches the "
        "other process runs again; use a backend that processes share, such as sqlite:///idempotency.db, redis:// or "
        "postgresql://",
        where,
        os.getpid(),
        other,
        user,
    )


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return ""
