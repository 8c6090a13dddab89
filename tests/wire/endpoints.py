"""The endpoints of the servers, as behaviours for every framework; the test runs in another process.

``?case=`` names the journal. Each run responds with a different body, so that a replay cannot be a second run.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import time
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs
from uuid import uuid4

from open_idempotency import idem
from tests.http.behaviours import Behaviour, Call, Reply, Run, Save, Wait
from tests.wire.journal import Journal

Steps = Generator[Any, Any, Reply]


def journal_of(query: str) -> Journal:
    """The journal of a request."""
    return Journal(Path(os.environ["WIRE_FOLDER"]), parse_qs(query)["case"][0])


def charge(call: Call) -> Steps:
    """Run, and respond with the digest of the body."""
    yield from ()
    journal_of(call.query).write("ran")
    digest = hashlib.sha256(call.body).hexdigest()
    return Reply(201, [("Content-Type", "text/plain"), ("X-Body", digest)], uuid4().hex.encode())


def gated(call: Call) -> Steps:
    """Run, wait for the gate, and respond."""
    journal = journal_of(call.query)
    journal.write("arrived")
    yield Wait(journal.gate())
    return (yield from charge(call))


def staged(call: Call) -> Steps:
    """Run a stage, then wait; a later attempt charges without waiting."""
    journal = journal_of(call.query)
    yield Run("reserve", lambda: journal.write("reserve"))
    if idem.attempt == 1:
        journal.write("arrived")
        yield Wait(journal.gate())
    yield Run("charge", lambda: journal.write("charge"))
    return Reply(201, [], f"attempt {idem.attempt}".encode())


def leaving(error: type[BaseException]) -> Behaviour:
    """Run a stage; at the first attempt, raise an exception that no handler catches."""

    def endpoint(call: Call) -> Steps:
        journal = journal_of(call.query)
        yield Run("reserve", lambda: journal.write("reserve"))
        if idem.attempt == 1:
            raise error(3)
        yield Run("charge", lambda: journal.write("charge"))
        return Reply(201, [], f"attempt {idem.attempt}".encode())

    return endpoint


def stubborn(call: Call) -> Steps:
    """Run a stage; at the first attempt, go on whatever the server raises."""
    journal = journal_of(call.query)
    yield Run("reserve", lambda: journal.write("reserve"))
    while idem.attempt == 1:
        try:
            journal.gate().wait(60)
        except BaseException:
            journal.write("refused to end")
    yield Run("charge", lambda: journal.write("charge"))
    return Reply(201, [], f"attempt {idem.attempt}".encode())


def mine(call: Call) -> Steps:
    """Save a stage, let other requests run, and respond with the stage of this request."""
    journal = journal_of(call.query)
    yield Save("mine", call.body.decode())
    journal.write(f"saved {call.body.decode()}")
    yield Wait(journal.gate())
    return Reply(201, [], f"{idem.load('mine')} {idem.attempt} {idem.key_for('x')}".encode())


def events(call: Call) -> Steps:
    """One event at once, another one when the gate opens."""
    yield from ()
    journal = journal_of(call.query)
    journal.write("ran")
    tail = uuid4().hex.encode()
    body = [b"data: first\n\n", journal.gate(), b"data: " + tail + b"\n\n"]
    return Reply(200, [("Content-Type", "text/event-stream")], body)


def long_events(call: Call) -> Steps:
    """An event, a gate, and then more bytes than the small variant keeps, in many pieces."""
    yield from ()
    journal = journal_of(call.query)
    journal.write("ran")
    body = [b"data: first\n\n", journal.gate(), *[b"data: " + b"x" * 90 + b"\n\n"] * 30]
    return Reply(200, [("Content-Type", "text/event-stream")], body)


class _Beat:
    """A gate that opens by itself after a moment."""

    def wait(self, timeout: float) -> bool:
        time.sleep(0.05)
        return True


def _beats(journal: Journal) -> Iterator[Any]:
    try:
        while True:
            yield b"data: beat\n\n"
            yield _Beat()
    finally:
        journal.write("closed")


def endless(call: Call) -> Steps:
    """Run a stage; at the first attempt, send events without an end."""
    journal = journal_of(call.query)
    yield Run("reserve", lambda: journal.write("reserve"))
    if idem.attempt > 1:
        return Reply(200, [], f"attempt {idem.attempt}".encode())
    return Reply(200, [("Content-Type", "text/event-stream")], cast("Any", _beats(journal)))


def late_events(call: Call) -> Steps:
    """Events that begin when the gate opens."""
    journal = journal_of(call.query)
    journal.write("arrived")
    yield Wait(journal.gate())
    tail = uuid4().hex.encode()
    return Reply(200, [("Content-Type", "text/event-stream")], [b"data: first\n\n", _Beat(), b"data: " + tail])


def background(call: Call) -> Steps:
    """Respond; the task that follows waits for the gate."""
    journal = journal_of(call.query)

    def task() -> None:
        journal.write("task began")
        assert journal.gate().wait(10)
        journal.write("task ended")

    reply = yield from charge(call)
    reply.background = task
    return reply


def _replying(reply: Reply) -> Behaviour:
    def endpoint(call: Call) -> Steps:
        yield from ()
        journal_of(call.query).write("ran")
        return reply

    return endpoint


DUPLICATES = [("X-Trail", "one"), ("X-Other", "between"), ("X-Trail", "two"), ("X-Trail", "one")]
OF_THE_MOMENT = [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("Access-Control-Allow-Origin", "*"), ("Age", "1")]
REPLIES: Mapping[str, Reply] = {
    "duplicates": Reply(201, [("Content-Type", "text/plain"), *DUPLICATES], b"said"),
    "moment": Reply(201, [("Content-Type", "text/plain"), *OF_THE_MOMENT, ("X-Kept", "yes")], b"said"),
    "one cookie": Reply(201, [("Content-Type", "text/plain"), ("Set-Cookie", "a=1"), ("X-Kept", "yes")], b"said"),
    "204": Reply(204, [("X-Kept", "yes")]),
    "304": Reply(304, [("ETag", '"v1"')]),
    "empty": Reply(200, [("Content-Type", "text/plain")], b""),
    "binary": Reply(200, [("Content-Type", "application/octet-stream")], bytes(range(256)) * 40),
    "gzip": Reply(
        200, [("Content-Type", "text/plain"), ("Content-Encoding", "gzip")], gzip.compress(b"squeezed" * 99, mtime=0)
    ),
    "latin": Reply(200, [("Content-Type", "text/plain"), ("X-Name", "caf\xe9")], b"said"),
}

ENDPOINTS: Mapping[str, Behaviour] = {
    "charge": charge,
    "gated": gated,
    "staged": staged,
    "exit": leaving(SystemExit),
    "interrupt": leaving(KeyboardInterrupt),
    "stubborn": stubborn,
    "mine": mine,
    "events": events,
    "long events": long_events,
    "late events": late_events,
    "endless": endless,
    "background": background,
    **{name: _replying(reply) for name, reply in REPLIES.items()},
}
