"""A separate process for the fork tests: ``fork_script.py SCENARIO URL``; exits with 0 if the scenario succeeds."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time

from open_idempotency.backend import Busy, Claim, Complete, Finished, Leased, Wait
from open_idempotency.backends.registry import open_backend

CLAIMS = 100


def claim_of(record_id: bytes) -> Claim:
    return Claim(record_id, b"fingerprint", os.urandom(16), 30.0, 600.0)


def work(backend, name: bytes) -> None:
    """Claims and completions that would fail on a connection shared with another process."""
    for number in range(CLAIMS):
        record_id = name + b"-%d" % number
        result = backend.claim(claim_of(record_id))
        assert isinstance(result, Leased), result
        backend.complete(Complete(result.lease, record_id))
        assert backend.claim(claim_of(record_id)) == Finished(record_id)


def in_child(function) -> int:
    """Fork, run ``function`` in the child only, and return its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        function()
    except BaseException as error:
        sys.stderr.write(f"child: {error!r}\n")
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def expect(pid: int) -> None:
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def after_use(url: str) -> None:
    """Parent and child continue together, after the parent used the backend."""
    backend = open_backend(url)
    mine = claim_of(b"before")
    assert isinstance(backend.claim(mine), Leased)

    def child() -> None:
        assert isinstance(backend.claim(claim_of(b"before")), Busy)
        work(backend, b"child")
        backend.close()

    pid = in_child(child)
    work(backend, b"parent")
    expect(pid)
    assert isinstance(backend.claim(mine), Leased)


def on_loops(url: str) -> None:
    """Parent and child continue together, each on a new event loop; the parent had used one before."""
    backend = open_backend(url)

    async def at_once(name: bytes) -> None:
        ids = [name + b"-%d" % number for number in range(20)]
        results = await asyncio.gather(*(backend.to_async().claim(claim_of(record_id)) for record_id in ids))
        assert all(isinstance(result, Leased) for result in results), results

    asyncio.run(at_once(b"before"))
    pid = in_child(lambda: asyncio.run(at_once(b"child")))
    asyncio.run(at_once(b"parent"))
    expect(pid)


def while_locked(url: str) -> None:
    """Fork while another thread is in the middle of a write."""
    inside, go_on, parent = threading.Event(), threading.Event(), os.getpid()

    def clock() -> float:
        if os.getpid() == parent and threading.current_thread() is not threading.main_thread():
            inside.set()
            go_on.wait(20)
        return time.time()

    backend = open_backend(url, clock=clock)
    thread = threading.Thread(target=lambda: backend.claim(claim_of(b"thread")))
    thread.start()
    assert inside.wait(20)
    timer = threading.Timer(0.2, go_on.set)
    timer.start()
    pid = in_child(lambda: work(backend, b"child"))
    expect(pid)
    thread.join(20)
    timer.join(20)
    work(backend, b"parent")


def no_file_inherited(path: str) -> None:
    """The child inherits no open database."""
    backend = open_backend(f"sqlite:///{path}")
    work(backend, b"parent")

    def child() -> None:
        links = []
        for number in os.listdir("/proc/self/fd"):
            try:
                links.append(os.readlink(f"/proc/self/fd/{number}"))
            except FileNotFoundError:
                continue
        assert not [link for link in links if path in link], links
        work(backend, b"child")

    expect(in_child(child))
    work(backend, b"again")


def while_waiting(url: str) -> None:
    """The parent waits when it forks; then both wait, and each is notified when the other completes."""
    backend = open_backend(url)
    claims = {name: claim_of(name) for name in (b"parent", b"child")}
    leases = {}
    for name, claim in claims.items():
        result = backend.claim(claim)
        assert isinstance(result, Leased)
        leases[name] = result.lease
    parent = threading.Thread(target=lambda: backend.wait(Wait(b"parent", 100.0, 100.0)), daemon=True)
    parent.start()
    while backend.listener._session is None or not backend.listener._session._waiters:
        time.sleep(0.001)
    reader, writer = os.pipe()

    def child() -> None:
        backend.complete(Complete(leases[b"parent"], b"response"))
        waiting = threading.Thread(target=lambda: backend.wait(Wait(b"child", 100.0, 100.0)), daemon=True)
        waiting.start()
        os.write(writer, b"!")
        waiting.join(20)
        assert not waiting.is_alive()
        assert backend.claim(claim_of(b"child")) == Finished(b"response")
        backend.close()

    pid = in_child(child)
    parent.join(20)
    assert not parent.is_alive()
    os.read(reader, 1)
    backend.complete(Complete(leases[b"child"], b"response"))
    expect(pid)
    backend.close()


if __name__ == "__main__":
    scenarios = (after_use, on_loops, while_locked, no_file_inherited, while_waiting)
    {scenario.__name__: scenario for scenario in scenarios}[sys.argv[1]](sys.argv[2])
