"""What a server's ``INFO`` says about the safety of records: whether it may evict them, and what else endangers them.

Only a server with a memory limit evicts, so every policy is safe without ``maxmemory``. The limit may be set later, so
``INFO`` is read again from time to time. The callers read it; nothing here waits or has a thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from open_idempotency.backends.redis.options import Options
from open_idempotency.exceptions import BackendUnavailable

logger = logging.getLogger("open_idempotency")

#: seconds until a process reads ``INFO`` again, and until it does so after a failure
EVERY, AGAIN = 300.0, 5.0

_SAFE = "noeviction"
_FULL = 0.9


class MemoryWatch:
    """What one process knows about its servers' eviction policy. A race between threads costs one more ``INFO``."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._next = 0.0
        self._missed = False
        #: whether ``INFO`` was ever read; with ``eviction=refuse`` it must be, before any claim
        self.looked = False
        self._dangers: tuple[str, ...] = ()

    def due(self) -> bool:
        """Whether the caller should read ``INFO`` now. The next caller then should not."""
        if self._options.eviction == "ignore" or time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + AGAIN
        return True

    def heed(self, infos: Sequence[Mapping[str, Any]]) -> None:
        """Take the replies of the servers. A new danger is logged."""
        dangers = tuple(dict.fromkeys(danger for info in infos for danger in evictions(info)))
        if dangers != self._dangers:
            for danger in dangers:
                logger.warning("%s: %s", self._options.where, danger)
        self._dangers, self.looked, self._missed = dangers, True, False
        self._next = time.monotonic() + EVERY

    def missed(self, error: BackendUnavailable) -> None:
        """Reading ``INFO`` failed, as for a user without permission. What was known before stays."""
        logger.log(
            logging.DEBUG if self._missed else logging.WARNING,
            "%s: the eviction policy is not known: %s (allow INFO, or set eviction=ignore)",
            self._options.where,
            error.__cause__,
        )
        self._missed = True

    def admit(self) -> None:
        """Raise ``BackendUnavailable`` if records may be evicted, or if that is not known: with ``eviction=refuse``."""
        if not self.looked:
            raise BackendUnavailable("Redis: the eviction policy could not be read, and eviction=refuse")
        if self._dangers:
            raise BackendUnavailable(f"Redis: {self._dangers[0]} (eviction=refuse)")


def evictions(info: Mapping[str, Any]) -> list[str]:
    """The danger that the server evicts records."""
    policy = str(info.get("maxmemory_policy", "unknown"))
    if policy == _SAFE or not int(info.get("maxmemory", 0)):
        return []
    return [
        f"maxmemory-policy is {policy}, so records may be evicted at the memory limit, and an evicted key runs again; "
        "set it to noeviction"
    ]


def dangers_of(infos: Sequence[Mapping[str, Any]], options: Options) -> list[str]:
    """All that is known to endanger records, for operators. Each danger is named once."""
    return list(dict.fromkeys(danger for info in infos for danger in _dangers(info, options)))


def _dangers(info: Mapping[str, Any], options: Options) -> list[str]:
    found = evictions(info)
    limit, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    if limit and used > _FULL * limit:
        found.append(f"{used} of {limit} bytes are used; at the limit new keys are refused")
    if info.get("role", "master") != "master":
        found.append("the server is a replica, which takes no writes")
    if int(info.get("connected_slaves", 0)) < options.min_replicas:
        found.append(f"{info.get('connected_slaves')} replicas are connected, and min_replicas={options.min_replicas}")
    if not int(info.get("aof_enabled", 1)):
        found.append("appendonly is off, so a crash of the server loses what was written since its last snapshot")
    return found
