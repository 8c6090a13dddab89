"""Large uploads with a key: refused at the limit, spooled to disk under a higher one, always in bounded memory."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.wire.client import Connection, Response
from tests.wire.conftest import NewCase
from tests.wire.kinds import wire_needs
from tests.wire.servers import Server

MIB = 1024 * 1024
ADDED = 64 * MIB
BLOCK = bytes(range(256)) * (MIB // 256)


class Peak:
    """The most memory that any process of a server has added."""

    added = 0


@contextmanager
def memory_of(server: Server) -> Iterator[Peak]:
    """Measure the resident memory that is added within the block."""
    pids = server.pids()
    before = {pid: _resident(pid, "VmRSS") for pid in pids}
    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak starts from here
    peak = Peak()
    yield peak
    assert server.pids() == pids, "a process ended on the way"
    peak.added = max(_resident(pid, "VmHWM") - before[pid] for pid in pids)


def _resident(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise AssertionError(f"{field} of {pid}")


def upload(connection: Connection, head: bytes, blocks: int) -> Response:
    """Send a chunked body while reading the response: a server that refuses it need not read it all."""
    connection.send(head)

    def pour() -> None:
        with suppress(OSError):  # refused in the middle
            for _ in range(blocks):
                connection.send(b"%x\r\n" % len(BLOCK) + BLOCK + b"\r\n")
            connection.send(b"0\r\n\r\n")

    sender = threading.Thread(target=pour)
    sender.start()
    try:
        return connection.read()
    finally:
        connection.reset()
        sender.join(15)
        assert not sender.is_alive()


@wire_needs("chunked upload", "memory")
def test_an_upload_over_the_limit_ends_in_413_with_bounded_memory(served: str, new_case: NewCase) -> None:
    """O-07, R-09: 128 MiB without a declared length, a limit of 10 MiB, less than 64 MiB added."""
    case = new_case("charge")
    assert case.ask(key=None).status == 201
    with memory_of(case.server) as peak, case.connect() as connection:
        response = upload(connection, case.head(b"Transfer-Encoding: chunked"), 128)

    assert response.status == 413
    assert peak.added < ADDED
    assert case.journal.lines() == ["ran"]
    assert not case.ask().replayed


@wire_needs("unread refusal")
def test_a_declared_gigabyte_is_refused_before_a_byte_of_it(served: str, new_case: NewCase) -> None:
    """O-07: the client gets the response without sending any body."""
    case = new_case("charge")
    response = case.exchange(case.head(b"Content-Length: 1073741824"))

    assert response.status == 413
    assert b"urn:problem-type:open-idempotency:" in response.body
    assert case.journal.lines() == []


@wire_needs("native", "memory")
def test_a_body_under_a_high_limit_is_spooled_with_bounded_memory(served: str, native_case: NewCase) -> None:
    """R-09: 96 MiB are fingerprinted, passed to the handler, and recognised in a retry."""
    case = native_case("/digest", variant="spooling")
    case.ask(key=None)
    with memory_of(case.server) as peak:
        with case.connect() as connection:
            response = upload(connection, case.head(b"Transfer-Encoding: chunked"), 96)
        with case.connect() as connection:
            again = upload(connection, case.head(b"Transfer-Encoding: chunked"), 96)

    assert response.status == 201
    assert response.body.decode() == hashlib.sha256(BLOCK * 96).hexdigest()
    assert (again.replayed, again.body) == (True, response.body)
    assert peak.added < ADDED
    assert case.journal.lines() == ["ran", "ran"]
