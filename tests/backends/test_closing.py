"""When connections are closed: with the server, with the application object, and with the process."""

from __future__ import annotations

import asyncio
import gc
import secrets
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import redis

from open_idempotency import open_backend
from open_idempotency._core.models import Request, Response
from open_idempotency.adapter import Adapter, AsyncAdapter
from open_idempotency.asgi import IdempotencyMiddleware
from open_idempotency.backend import AsyncBackend, Backend, Get
from open_idempotency.backends.postgres import PostgresBackend
from open_idempotency.shutdown import DrainAtShutdown
from tests.backends.postgres.test_postgres_connections import of_this_name
from tests.postgres_server import PostgresServer

SOON = 20.0
_ROOT = Path(__file__).parent.parent.parent


class Store:
    """A server, the URL of a backend on it, and the number of the backend's connections."""

    def __init__(self, url: str, count: Callable[[], int]) -> None:
        self.url = url
        self.count = count

    def falls_to(self, number: int) -> bool:
        """Whether the number of connections soon falls to this: a server notices an end with a delay."""
        deadline = time.monotonic() + SOON
        while self.count() > number and time.monotonic() < deadline:
            time.sleep(0.005)
        return self.count() <= number


@pytest.fixture(params=["postgres", "valkey"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """Both kinds of servers."""
    name = secrets.token_hex(8)
    if request.param == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres18")
        yield Store(f"{server.url()}?application_name={name}", lambda: of_this_name(server, name))
        return
    address = request.getfixturevalue("valkey_url")
    with redis.Redis.from_url(address) as client:
        before = {each["id"] for each in client.client_list()}
        yield Store(address, lambda: len({each["id"] for each in client.client_list()} - before))


async def respond(scope: Any, receive: Any, send: Any) -> None:
    """An ASGI application with a lifespan."""
    if scope["type"] == "lifespan":
        for _ in range(2):
            await send({"type": f"{(await receive())['type']}.complete"})
        return
    await send({"type": "http.response.start", "status": 201, "headers": []})
    await send({"type": "http.response.body", "body": b"made"})


def scope_of(key: str) -> dict[str, Any]:
    """The scope of a keyed request."""
    headers = [(b"idempotency-key", key.encode())]
    return {
        "type": "http", "method": "POST", "path": "/", "raw_path": b"/", "query_string": b"", "headers": headers,
    }  # fmt: skip


async def post(app: Any) -> None:
    """One keyed request to an ASGI application, under a new key."""

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        assert message.get("status", 201) == 201

    await app(scope_of(secrets.token_hex(16)), receive, send)


async def live(app: Any, during: Callable[[], Awaitable[object]]) -> None:
    """Start an ASGI application, run a function, and shut it down, as a server does."""
    says: asyncio.Queue[str] = asyncio.Queue()
    hears: asyncio.Queue[str] = asyncio.Queue()

    async def receive() -> Any:
        return {"type": await says.get()}

    async def send(message: Any) -> None:
        hears.put_nowait(message["type"])

    lifespan = asyncio.create_task(app({"type": "lifespan"}, receive, send))
    says.put_nowait("lifespan.startup")
    assert await hears.get() == "lifespan.startup.complete"
    await during()
    says.put_nowait("lifespan.shutdown")
    assert await hears.get() == "lifespan.shutdown.complete"
    await lifespan


@pytest.mark.parametrize("around", [IdempotencyMiddleware, DrainAtShutdown])
def test_a_server_that_shuts_down_leaves_no_connections(store: Store, around: Any) -> None:
    """B-25: for a backend that is named by a URL; a restarted application works again."""
    protected = IdempotencyMiddleware(respond, backend=store.url)
    app = protected if around is IdempotencyMiddleware else around(protected)

    async def serve() -> None:
        await live(app, lambda: asyncio.gather(*(post(app) for _ in range(5))))

    for _ in range(2):
        asyncio.run(serve())
        assert store.falls_to(0)


def test_a_backend_of_the_application_is_the_applications_to_close(store: Store) -> None:
    """B-25: it may be used outside of the middleware too."""
    backend = open_backend(store.url)

    async def serve() -> None:
        app = IdempotencyMiddleware(respond, backend=backend)
        await live(app, lambda: post(app))
        assert store.count() > 0
        await backend.to_async().close()

    asyncio.run(serve())
    assert store.falls_to(0)


def test_applications_of_a_test_suite_leave_no_connections(store: Store) -> None:
    """B-25: each is dropped without a shutdown, which WSGI lacks."""
    request = Request("POST", b"/", b"", [(b"idempotency-key", secrets.token_hex(16).encode())], None)
    for _ in range(5):
        adapter = Adapter(backend=store.url)
        adapter.handle(request, b"", lambda: Response(201, [], b""))
        del adapter
    gc.collect()
    assert store.falls_to(0)


def test_an_adapter_is_closed_by_its_framework(store: Store) -> None:
    """B-25: sync and async; it may be used again."""
    request = Request("POST", b"/", b"", [(b"idempotency-key", secrets.token_hex(16).encode())], None)
    adapter = Adapter(backend=store.url)
    for _ in range(2):
        adapter.handle(request, b"", lambda: Response(201, [], b""))
        adapter.close()
        assert store.falls_to(0)

    async def handler() -> Response:
        return Response(201, [], b"")

    async def serve() -> None:
        awaited = AsyncAdapter(backend=store.url)
        await awaited.handle(request, b"", handler)
        await awaited.aclose()
        assert await asyncio.to_thread(store.falls_to, 0)

    asyncio.run(serve())


def test_a_backend_is_a_context_manager(store: Store) -> None:
    """B-25: sync and async, also for ``contextlib.aclosing``."""
    missing = Get(secrets.token_bytes(32))
    with open_backend(store.url) as backend:
        assert isinstance(backend, Backend)
        assert backend.get(missing) is None
    assert store.falls_to(0)

    async def awaited() -> None:
        async with open_backend(store.url).to_async() as backend:
            assert isinstance(backend, AsyncBackend)
            assert await backend.get(missing) is None
        assert await asyncio.to_thread(store.falls_to, 0)
        async with aclosing(backend):
            assert await backend.get(missing) is None
        assert await asyncio.to_thread(store.falls_to, 0)

    asyncio.run(awaited())


def test_the_sync_front_closes_connections_of_loops_that_have_ended(postgres18: PostgresServer) -> None:
    """B-25: they can no longer be closed on their loop."""
    name = secrets.token_hex(8)
    with PostgresBackend(f"{postgres18.url()}?application_name={name}") as backend:

        async def use() -> None:
            await backend.to_async().get(Get(bytes(32)))

        asyncio.run(use())
    assert Store("", lambda: of_this_name(postgres18, name)).falls_to(0)


_SCRIPT = """
import sys
from open_idempotency import open_backend
from open_idempotency._core.models import Request, Response
from open_idempotency.adapter import Adapter
from open_idempotency.backends.sqlite import SqliteBackend

close = SqliteBackend.close
def heard(self):
    print("closed")
    close(self)
SqliteBackend.close = heard
path, kind = sys.argv[1:]
adapter = Adapter(backend=open_backend(path) if kind == "instance" else path)
adapter.handle(Request("POST", b"/", b"", [(b"idempotency-key", b"k" * 16)], None), b"", lambda: Response(201, [], b""))
if kind == "raises":
    raise SystemExit(0)
"""


@pytest.mark.parametrize(("kind", "closed"), [("url", 1), ("raises", 1), ("instance", 0)])
def test_at_exit_the_process_closes_what_it_has_opened(kind: str, closed: int, tmp_path: Path) -> None:
    """B-25: and not what the application has opened."""
    command = [sys.executable, "-X", "dev", "-c", _SCRIPT, f"sqlite:///{tmp_path}/records.db", kind]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "closed\n" * closed)
