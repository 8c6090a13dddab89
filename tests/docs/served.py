"""A page's application on a real server, and the output of ``curl -i`` for it.

The application is the text of the page, written to ``app.py``. uvicorn serves it in a separate process, on a socket
that was opened here, so that no port is guessed. The page's ``curl`` commands define the requests.
"""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

SECONDS = 20.0
_SERVE = """
import socket, sys, uvicorn
from app import app
config = uvicorn.Config(app, log_level="warning", ws="none", access_log=False)
uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(sys.argv[1]))])
"""


class Exchange(NamedTuple):
    """A ``curl`` command of a page and the lines that the page shows below it."""

    command: str
    printed: list[str]


@contextmanager
def listening() -> Iterator[socket.socket]:
    """A socket that clients may connect to already; it outlives the servers that accept on it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def start(directory: Path, listener: socket.socket) -> subprocess.Popen[bytes]:
    """Serve ``app.py`` of a directory on the listener; ``stop`` ends it."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", _SERVE, str(listener.fileno())],
        cwd=directory,
        pass_fds=[listener.fileno()],
    )


def stop(server: subprocess.Popen[bytes]) -> int:
    """End a server by its own process id; its exit code."""
    server.terminate()
    try:
        return server.wait(SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        return server.wait(SECONDS)


def exchanges(text: str) -> list[Exchange]:
    """The commands of a console block that begin with ``$ curl``, each with what follows it."""
    parts = re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]
    lines = [part.rstrip("\n").split("\n") for part in parts]
    return [Exchange(head, rest) for head, *rest in lines if head.startswith("curl ")]


def await_ready(listener: socket.socket) -> None:
    """Wait until the server responds, with any status."""
    with socket.create_connection(listener.getsockname(), SECONDS) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert _read(client)


def perform(command: str, listener: socket.socket) -> list[str]:
    """Send what a ``curl -i`` command says; the lines that it would print, or none if there is no response."""
    options, path = _parse(command)
    body = options.pop("-d", [""])[0].encode()
    lines = [f"POST {path} HTTP/1.1", "Host: localhost:8000", "Connection: close", f"Content-Length: {len(body)}"]
    lines += options.pop("-H", [])
    assert not options, f"{command}: unknown options {options}"
    with socket.create_connection(listener.getsockname(), SECONDS) as client:
        client.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        return _read(client)


def _parse(command: str) -> tuple[dict[str, list[str]], str]:
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:2] == ["curl", "-i"], command
    options: dict[str, list[str]] = {}
    path = ""
    rest = iter(words[2:])
    for word in rest:
        if word.startswith("-"):
            options.setdefault(word, []).append(next(rest))
        else:
            path = word.removeprefix("localhost:8000")
    return options, path


def _read(client: socket.socket) -> list[str]:
    response = b""
    try:
        while piece := client.recv(65536):
            response += piece
    except ConnectionResetError:
        return []
    head, _, body = response.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    return [line for line in lines if line and line.lower() != "connection: close"] + ["", body.decode()] * bool(head)


def undated(lines: list[str]) -> list[str]:
    """The lines without dates and times, and with one name for 422, which Python 3.13 renamed."""
    renamed = [line.replace("422 Unprocessable Content", "422 Unprocessable Entity") for line in lines]
    unmarked = [re.sub(r'"reference": "[0-9a-f]{16}"', '"reference": "…"', line) for line in renamed]
    return [re.sub(r"^(date|retry-after): .*", r"\1: …", line) for line in unmarked]
