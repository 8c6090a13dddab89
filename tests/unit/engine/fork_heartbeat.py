"""A process with a running heartbeat forks; the child must renew its own leases. ``test_heartbeat`` runs it."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence

from open_idempotency._core.attempt import Attempt
from open_idempotency._core.commands import KeepAlive
from open_idempotency._engine.heartbeat import Heartbeat
from open_idempotency.backend import Claim, Leased, Renew, Renewal
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.policy import IdempotencyPolicy


class Recording(MemoryBackend):
    """A backend that notes the owners of renewed leases."""

    def __init__(self) -> None:
        super().__init__()
        self.owners: set[bytes] = set()
        self.beaten = threading.Semaphore(0)

    def renew(self, c: Renew, /) -> Sequence[Renewal]:
        """Note the owners, then renew."""
        self.owners |= {lease.owner for lease in c.leases}
        self.beaten.release()
        return super().renew(c)


def admit(backend: Recording, heartbeat: Heartbeat, owner: bytes) -> None:
    """Claim a record and watch its attempt."""
    leased = backend.claim(Claim(owner * 2, b"\x01", owner, 0.15, 60.0))
    assert isinstance(leased, Leased)
    heartbeat.keep(KeepAlive(Attempt.of(leased.lease, (), IdempotencyPolicy(lease=0.15), "/")))


def main() -> int:
    """Run a heartbeat, fork, and renew only the child's lease in the child."""
    backend = Recording()
    heartbeat = Heartbeat(backend)
    admit(backend, heartbeat, b"p" * 16)
    assert backend.beaten.acquire(timeout=10)
    pid = os.fork()
    if pid == 0:
        backend.owners.clear()
        backend.beaten = threading.Semaphore(0)
        admit(backend, heartbeat, b"c" * 16)
        beats = backend.beaten.acquire(timeout=10) and backend.owners == {b"c" * 16}
        os._exit(0 if beats else 3)
    _, status = os.waitpid(pid, 0)
    sys.stdout.write("child beats\n" if status == 0 else f"child ended with {status}\n")
    backend.beaten = threading.Semaphore(0)
    sys.stdout.write("parent beats\n" if backend.beaten.acquire(timeout=10) else "parent stopped\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
