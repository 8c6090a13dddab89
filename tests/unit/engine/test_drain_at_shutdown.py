"""The shutdown of an ASGI application: attempts are drained before the server gets ``lifespan.shutdown.complete``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from open_idempotency._core.attempt import Attempt
from open_idempotency._core.commands import KeepAlive
from open_idempotency._core.models import Leased
from open_idempotency._engine.engine import Engine
from open_idempotency.backend import Claim, Status
from open_idempotency.shutdown import DrainAtShutdown
from tests.unit.builders import PRINT, engine_of

pytestmark = pytest.mark.anyio

LIFESPAN = {"type": "lifespan"}


@pytest.fixture
def engine() -> Iterator[Engine]:
    """An engine with a running attempt that no server has cancelled."""
    engine = engine_of()
    leased = engine.backend.claim(Claim(b"r" * 32, PRINT, b"o" * 16, 30.0, 60.0))
    assert isinstance(leased, Leased)
    attempt = Attempt.of(leased.lease, (), engine.policy, "/")
    engine.heartbeat.keep(KeepAlive(attempt))
    yield engine
    engine.heartbeat.forget(attempt)
    engine.heartbeat.close()


class Server:
    """The server's side of a lifespan: the messages, and the record's status when each one is sent."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._says = iter(["lifespan.startup", "lifespan.shutdown"])
        self.heard: list[tuple[str, Status]] = []

    async def receive(self) -> Any:
        """The next event; after the last one it waits for ever."""
        said = next(self._says, None)
        if said is None:
            await anyio.sleep_forever()
        return {"type": said}

    async def send(self, message: Any) -> None:
        """Note the message, with the record's status."""
        (record,) = self._engine.backend.scan()
        self.heard.append((message["type"], record.status))


async def test_an_application_without_a_lifespan_gets_one_that_drains(engine: Engine) -> None:
    """L-06: Django refuses the scope, so a server would end its process without a drain."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("Django can only handle ASGI/HTTP connections, not lifespan.")

    server = Server(engine)
    await DrainAtShutdown(app)(LIFESPAN, server.receive, server.send)
    assert server.heard == [
        ("lifespan.startup.complete", Status.IN_PROGRESS),
        ("lifespan.shutdown.complete", Status.FAILED),
    ]


async def test_an_application_that_ignores_the_scope_gets_one_too(engine: Engine) -> None:
    """L-06."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        return

    server = Server(engine)
    await DrainAtShutdown(app)(LIFESPAN, server.receive, server.send)
    assert [status for _, status in server.heard] == [Status.IN_PROGRESS, Status.FAILED]


@pytest.mark.parametrize("end", ["complete", "failed"])
async def test_an_applications_own_lifespan_is_kept(engine: Engine, end: str) -> None:
    """L-06: its shutdown runs first, and its message is passed on after the drain."""
    heard: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        heard.append((await receive())["type"])
        await send({"type": "lifespan.startup.complete"})
        heard.append((await receive())["type"])
        await send({"type": f"lifespan.shutdown.{end}"})

    server = Server(engine)
    await DrainAtShutdown(app)(LIFESPAN, server.receive, server.send)
    assert heard == ["lifespan.startup", "lifespan.shutdown"]
    assert server.heard == [
        ("lifespan.startup.complete", Status.IN_PROGRESS),
        (f"lifespan.shutdown.{end}", Status.FAILED),
    ]


async def test_an_application_that_fails_to_start_fails_as_it_would_alone(engine: Engine) -> None:
    """L-06: it has received the event, so it has a lifespan, and the server has to get the error."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise OSError("no database")

    server = Server(engine)
    with pytest.raises(OSError, match="no database"):
        await DrainAtShutdown(app)(LIFESPAN, server.receive, server.send)
    assert server.heard == []


async def test_other_scopes_pass_untouched(engine: Engine) -> None:
    """R-06."""
    seen: list[Any] = []

    async def app(*arguments: Any) -> None:
        seen.extend(arguments)

    server = Server(engine)
    scope = {"type": "http"}
    receive, send = server.receive, server.send
    await DrainAtShutdown(app)(scope, receive, send)
    assert seen == [scope, receive, send]
