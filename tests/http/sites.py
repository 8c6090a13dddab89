"""Real servers on loopback, each in a thread of the test process, and the client of a test.

There is one server for each adapter. The ``X-App`` request header selects the application (backend and variant), which
is built on first use; so a test can share plain objects with its endpoint.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import uvicorn
import waitress.server
import waitress.wasyncore

from open_idempotency.backend import Backend
from open_idempotency.events import Event
from tests.http.backends import DOWN as DOWN_BACKENDS
from tests.http.backends import Command, WatchedBackend
from tests.http.behaviours import PATIENCE, SCRIPTS, Behaviour, Call, Script
from tests.http.variants import DOWN, ON_UVICORN, VARIANTS

MAKERS = {
    "asgi": ("plain_asgi", "make"),
    "starlette": ("starlette_app", "make"),
    "fastapi": ("fastapi_app", "make"),
    "wsgi": ("plain_wsgi", "make"),
    "flask": ("flask_app", "make"),
    "django-wsgi": ("django_app", "make_wsgi"),
    "django-asgi": ("django_app", "make_asgi"),
    "rest-framework": ("django_app", "make_rest"),
}
Field = tuple[bytes, bytes]


class Built:
    """One application, with its backend and its events."""

    def __init__(self, adapter: str, backend: Backend, fields: dict[str, Any]) -> None:
        self.events: list[Event] = []
        self.backend = WatchedBackend(backend)
        module, name = MAKERS[adapter]
        make = getattr(import_module(f"tests.http.apps.{module}"), name)
        self.app = make(self.backend, {"on_event": self.events.append, **fields})


class Site:
    """One served adapter; ``app`` builds its applications."""

    def __init__(self, adapter: str, folder: Path) -> None:
        self.adapter = adapter
        self.port = 0
        # A server may close a connection after an error, and no request may race with that. So each request asks for
        # the end of its connection. A pool without keep-alive does not help: when a response ends, it takes the
        # connection for idle and closes it, although another thread may have got it meanwhile.
        self.client = httpx.Client(timeout=15, trust_env=False, headers={"Connection": "close"})
        self._folder = folder
        self._built: dict[str, Built] = {}
        self.pool = ThreadPoolExecutor(8, thread_name_prefix="client")

    def app(self, name: str, backend: Backend, variant: str) -> Built:
        """The application over this backend with this variant's policy."""
        full_name = f"{name}/{variant}"
        if full_name not in self._built:
            if variant in DOWN:
                folder = self._folder / uuid4().hex
                folder.mkdir()
                backend = DOWN_BACKENDS[name](folder)
            self._built[full_name] = Built(self.adapter, backend, dict(VARIANTS[variant]))
        return self._built[full_name]

    async def asgi(self, scope: Any, receive: Any, send: Any) -> None:
        """The ASGI application that uvicorn serves."""
        headers = dict(scope["headers"])
        await self._built[headers[b"x-app"].decode()].app(scope, receive, send)

    def wsgi(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """The WSGI application that waitress serves."""
        body: Iterable[bytes] = self._built[environ["HTTP_X_APP"]].app(environ, start_response)
        return body


@contextmanager
def served(adapter: str, folder: Path) -> Iterator[Site]:
    """Serve a site on a free port until the end of the block."""
    site = Site(adapter, folder)
    serve = _uvicorn if adapter in ON_UVICORN else _waitress
    with serve(site), site.pool, site.client:
        yield site


@contextmanager
def _uvicorn(site: Site) -> Iterator[None]:
    config = uvicorn.Config(site.asgi, interface="asgi3", lifespan="off", log_level="critical")
    server = uvicorn.Server(config)
    started = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    site.port = listener.getsockname()[1]

    async def run() -> None:
        serving = asyncio.ensure_future(server.serve([listener]))
        while not server.started:
            await asyncio.sleep(0.005)
        started.set()
        await serving

    thread = threading.Thread(target=lambda: asyncio.run(run()), name=f"uvicorn-{site.adapter}", daemon=True)
    thread.start()
    assert started.wait(PATIENCE), "uvicorn did not start"
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        listener.close()


@contextmanager
def _waitress(site: Site) -> Iterator[None]:
    sockets: dict[int, Any] = {}
    server = waitress.server.create_server(site.wsgi, map=sockets, host="127.0.0.1", port=0, threads=8)
    site.port = server.effective_port
    stopping = threading.Event()

    def run() -> None:
        while not stopping.is_set():
            waitress.wasyncore.loop(timeout=0.2, map=sockets, count=1)

    thread = threading.Thread(target=run, name=f"waitress-{site.adapter}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        server.pull_trigger()
        thread.join(PATIENCE)
        server.task_dispatcher.shutdown(timeout=5)
        waitress.wasyncore.close_all(sockets)


class Case:
    """One test's endpoint, key and client. Each test has a key of its own, so tests share servers and backends."""

    def __init__(self, site: Site, app_name: str, built: Built, behaviour: Behaviour) -> None:
        self.site = site
        self.script = Script(behaviour)
        self.key = str(uuid4())
        self.watched = built.backend
        self._name = uuid4().hex
        self._app = app_name
        self._built = built
        self._url = f"http://127.0.0.1:{site.port}"
        self._first_event = len(built.events)
        self._first_wait = len(built.backend.waits)
        self._first_command = len(built.backend.commands)
        SCRIPTS[self._name] = self.script

    @property
    def app(self) -> Any:
        """The application."""
        return self._built.app

    @property
    def runs(self) -> list[Call]:
        """The calls of the handler."""
        return self.script.runs

    @property
    def events(self) -> list[Event]:
        """The events of the application since this case began."""
        return self._built.events[self._first_event :]

    @property
    def commands(self) -> list[Command]:
        """The commands that the backend was given since this case began."""
        return self._built.backend.commands[self._first_command :]

    @property
    def verbs(self) -> list[str]:
        """The names of the commands since this case began."""
        return [type(command).__name__ for command in self.commands]

    def send(
        self,
        method: str = "POST",
        path: str = "/charges",
        *,
        key: str | None = "own",
        body: Any = b'{"amount": 1}',
        headers: Sequence[tuple[str, str]] = (),
    ) -> httpx.Response:
        """Send one request and read its response. ``key``: without quotes; None for none."""
        return self.site.client.send(self.request(method, path, key=key, body=body, headers=headers))

    def wait_for_a_waiter(self) -> None:
        """Wait until another duplicate, sent by another thread, waits too."""
        poll(lambda: len(self.watched.waits) > self._first_wait)

    def wait_until_reported(self, kind: type[Event]) -> None:
        """Wait for an event that is reported after the response, when its write is done."""
        poll(lambda: any(type(event) is kind for event in self.events))

    def start(self, *args: Any, **kwargs: Any) -> Future[httpx.Response]:
        """One request in another thread."""
        return self.site.pool.submit(self.send, *args, **kwargs)

    def stream(self) -> Any:
        """One request whose response is read piece by piece: a context manager."""
        return self.site.client.stream(
            "POST", self._url + "/charges", content=b'{"amount": 1}', headers=self._headers("own", ())
        )

    def request(
        self, method: str, path: str, *, key: str | None, body: Any, headers: Sequence[tuple[str, str]]
    ) -> httpx.Request:
        """The request that ``send`` sends."""
        return self.site.client.build_request(
            method, self._url + path, content=body, headers=self._headers(key, headers)
        )

    def _headers(self, key: str | None, headers: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        fields = [("x-app", self._app), ("x-script", self._name), *headers]
        if not any(name.lower() == "content-type" for name, _ in headers):
            fields.append(("content-type", "application/json"))
        if key is not None:
            fields.append(("idempotency-key", f'"{self.key if key == "own" else key}"'))
        return fields

    def raw(self, *fields: Field, body: bytes = b"{}") -> http.client.HTTPResponse:
        """Send one request with these raw header bytes, on a connection of its own."""
        with self.connected(*fields, body=body) as connection:
            response = http.client.HTTPResponse(connection)
            response.begin()
            response.read()
            return response

    @contextmanager
    def connected(self, *fields: Field, body: bytes = b"{}") -> Iterator[socket.socket]:
        """Send the same request without reading a response; at the end of the block the client leaves."""
        lines = [
            b"POST /charges HTTP/1.1",
            b"Host: localhost",
            b"Connection: close",
            b"Content-Type: application/json",
            b"X-App: " + self._app.encode(),
            b"X-Script: " + self._name.encode(),
            b"Content-Length: %d" % len(body),
            *(name + b": " + value for name, value in fields),
        ]
        with socket.create_connection(("127.0.0.1", self.site.port), timeout=PATIENCE) as connection:
            connection.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + body)
            yield connection


def poll(holds: Callable[[], bool]) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def assert_problem(
    response: httpx.Response, name: str, status: int, *, retryable: bool, path: str = "/charges"
) -> dict[str, Any]:
    """Assert that a response is a problem document with all its members; return the document."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"
    assert "idempotent-replayed" not in response.headers
    document: dict[str, Any] = json.loads(response.content)
    assert document["type"] == f"urn:problem-type:open-idempotency:{name}"
    assert document["status"] == status
    assert document["title"]
    assert document["detail"]
    assert document["instance"] == path
    assert document["retryable"] is retryable
    assert ("retry-after" in response.headers) is retryable
    assert re.fullmatch("[0-9a-f]{16}", document["reference"])
    return document
