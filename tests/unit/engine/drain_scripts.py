"""Scripts of processes that exit, fork or are interrupted while a lease runs. ``test_drain`` runs them by name."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading

from open_idempotency import drain
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.commands import KeepAlive
from open_idempotency._engine.engine import Engine
from open_idempotency.backend import Claim, Complete, Leased
from open_idempotency.shutdown import drain_after_sigterm

_kept: list[Engine] = []


def engine_at(url: str) -> Engine:
    """An engine that lives as long as its process."""
    engine = Engine(url, None, {}, threads=True)
    _kept.append(engine)
    return engine


def admit(engine: Engine, owner: bytes = b"o" * 16) -> Attempt:
    """Begin an attempt that runs until its process ends."""
    leased = engine.backend.claim(Claim(owner * 2, b"\x01", owner, 30.0, 60.0))
    assert isinstance(leased, Leased)
    attempt = Attempt.of(leased.lease, (), engine.policy, "/")
    engine.heartbeat.keep(KeepAlive(attempt))
    return attempt


def hold(path: str) -> Engine:
    """Begin an attempt, and exit."""
    engine = engine_at(f"sqlite:///{path}")
    admit(engine)
    return engine


def hold_in_thread(path: str) -> None:
    """Run the handler in a thread that nobody joins, as waitress does."""
    begun = threading.Event()

    def handle() -> None:
        engine = hold(path)
        begun.set()
        threading.Event().wait(60)
        engine.heartbeat.close()

    threading.Thread(target=handle, daemon=True).start()
    assert begun.wait(30)


def finish_in_thread(path: str) -> None:
    """Run the handler in a thread that is joined, and finishes after the main thread."""
    begun = threading.Event()

    def handle() -> None:
        engine = engine_at(f"sqlite:///{path}")
        attempt = admit(engine)
        begun.set()
        threading.main_thread().join(0.5)
        if not attempt.lost:
            assert attempt.lease is not None
            engine.backend.complete(Complete(attempt.lease, b"response"))
        engine.heartbeat.forget(attempt)

    threading.Thread(target=handle).start()
    assert begun.wait(30)


def in_child(method: str, target: str, path: str) -> None:
    """``finish_in_thread`` in a child process of multiprocessing."""
    process = multiprocessing.get_context(method).Process(target=globals()[target], args=(path,))
    process.start()
    process.join(50)
    assert process.exitcode == 0


def at_sigterm(path: str) -> None:
    """A server that handles no signal."""
    hold_in_thread(path)
    drain_after_sigterm(50.0)
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(50)


def fork() -> None:
    """Parent and child each have a lease."""
    engine = engine_at("memory://")
    admit(engine)
    pid = os.fork()
    if pid == 0:
        admit(engine, b"c" * 16)
        sys.stdout.write(f"child {drain()}\n")
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(pid, 0)
    sys.stdout.write(f"parent {drain()}\n")


def interrupt() -> None:
    """A signal arrives again and again while leases begin and end."""
    engine = engine_at("memory://")
    drained = 0

    def handle(number: int, frame: object) -> None:
        nonlocal drained
        drain(timeout=0.5)
        drained += 1
        # Armed again at the end, so that on a slow machine the handlers do not interrupt each other without end.
        signal.setitimer(signal.ITIMER_REAL, 0.001)

    signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.0005)
    number = 0
    while drained < 200:
        number += 1
        attempt = admit(engine, number.to_bytes(16, "big"))
        engine.heartbeat.forget(attempt)
    signal.setitimer(signal.ITIMER_REAL, 0)
    sys.stdout.write("drained\n")


if __name__ == "__main__":
    endings = {
        "signal": interrupt,
        "fork": fork,
        "exit": lambda: hold(sys.argv[2]),
        "thread": lambda: hold_in_thread(sys.argv[2]),
        "mp-fork": lambda: in_child("fork", "hold", sys.argv[2]),
        "mp-spawn": lambda: in_child("spawn", "hold_in_thread", sys.argv[2]),
        "mp-thread": lambda: in_child("fork", "finish_in_thread", sys.argv[2]),
        "sigterm": lambda: at_sigterm(sys.argv[2]),
    }
    endings[sys.argv[1]]()
