"""Real servers in threads, on free ports: threaded WSGI from the standard library, and uvicorn for ASGI."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import trustme
import uvicorn

AUTHORITY = trustme.CA()
SECONDS = 10.0


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    timeout = SECONDS

    def get_environ(self) -> dict[str, Any]:
        """The environ of the request, with the names of the headers as they were written."""
        return {**super().get_environ(), "tests.names": self.headers.keys()}

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing, to keep the tests' output clean."""


@contextmanager
def wsgi(app: Any, *, tls: bool = False) -> Iterator[str]:
    """Serve a WSGI application; its address."""
    server = make_server("127.0.0.1", 0, app, server_class=_Server, handler_class=_Handler)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        AUTHORITY.issue_cert("127.0.0.1").configure_cert(context)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(SECONDS)
        server.server_close()


@contextmanager
def asgi(app: Any) -> Iterator[str]:
    """Serve an ASGI application; its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + SECONDS
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            assert time.monotonic() < deadline, "the server did not start in time"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(SECONDS)
