"""Plain ASGI and WSGI applications that use features which no framework uses: one path each, with the middleware."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from open_idempotency import asgi, wsgi
from tests.wire.endpoints import journal_of
from tests.wire.journal import PATIENCE, Journal

#: what is sent as a file, by whichever way the server offers
FILE_BODY = bytes(range(256)) * 512


def _file() -> Path:
    return Path(os.environ["WIRE_FOLDER"]) / "file.bin"


# ASGI


async def _asgi_app(scope: Any, receive: Any, send: Any) -> None:
    journal = journal_of(scope["query_string"].decode())
    await _ASGI[scope["path"]](journal, scope, receive, send)


async def _digest(journal: Journal, scope: Any, receive: Any, send: Any) -> None:
    digest, more = hashlib.sha256(), True
    while more:
        message = await receive()
        digest.update(message.get("body", b""))
        more = message.get("more_body", False)
    journal.write("ran")
    await _start(send, 201)
    await send({"type": "http.response.body", "body": digest.hexdigest().encode()})


async def _leaves(journal: Journal, scope: Any, receive: Any, send: Any) -> None:
    """Respond when the client has left."""
    while (await receive()).get("more_body", False):
        pass
    journal.write("arrived")
    message = await receive()
    journal.write(message["type"])
    await _start(send, 201)
    await send({"type": "http.response.body", "body": b"nobody reads this"})
    journal.write("finished")


async def _in_pieces(journal: Journal, scope: Any, receive: Any, send: Any) -> None:
    """Send one piece, then the rest when the client has left."""
    while (await receive()).get("more_body", False):
        pass
    journal.write("ran")
    await _start(send, 200)
    await send({"type": "http.response.body", "body": b"first", "more_body": True})
    assert await asyncio.to_thread(journal.gate().wait, PATIENCE)
    for _ in range(5):
        await send({"type": "http.response.body", "body": b"more", "more_body": True})
    await send({"type": "http.response.body", "body": b"last"})
    journal.write("finished")


async def _trailing(journal: Journal, scope: Any, receive: Any, send: Any) -> None:
    """A body and a trailer after it."""
    while (await receive()).get("more_body", False):
        pass
    assert "http.response.trailers" in scope["extensions"]
    journal.write("ran")
    headers = [(b"trailer", b"x-sum"), (b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 200, "headers": headers, "trailers": True})
    await send({"type": "http.response.body", "body": b"summed"})
    await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"42")], "more_trailers": False})


async def _sends_file(journal: Journal, scope: Any, receive: Any, send: Any) -> None:
    """Send a file with ``pathsend`` if the server offers it, else its bytes."""
    while (await receive()).get("more_body", False):
        pass
    offered = "http.response.pathsend" in scope.get("extensions", {})
    journal.write(f"pathsend {offered}")
    await _start(send, 200)
    if offered:
        await send({"type": "http.response.pathsend", "path": str(_file())})
    else:
        await send({"type": "http.response.body", "body": _file().read_bytes()})


async def _start(send: Any, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})


_ASGI: Mapping[str, Callable[[Journal, Any, Any, Any], Any]] = {
    "/digest": _digest,
    "/leaves": _leaves,
    "/in-pieces": _in_pieces,
    "/trailing": _trailing,
    "/file": _sends_file,
}


# WSGI


def _wsgi_app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    return _WSGI[environ["PATH_INFO"]](journal_of(environ["QUERY_STRING"]), environ, start_response)


def _digested(journal: Journal, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    digest = hashlib.sha256()
    for piece in iter(lambda: environ["wsgi.input"].read(65536), b""):
        digest.update(piece)
    journal.write("ran")
    start_response("201 Created", [("Content-Type", "text/plain")])
    return [digest.hexdigest().encode()]


def _wraps_file(journal: Journal, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Send a file with the server's ``wsgi.file_wrapper``."""
    wrapper = environ["wsgi.file_wrapper"]
    journal.write(f"wrapper of {wrapper.__module__.partition('.')[0]}")
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    result: Iterable[bytes] = wrapper(_file().open("rb"))
    return result


def _writes(journal: Journal, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Send events with ``write()``, the second one when the gate opens, then return an iterable."""
    journal.write("ran")
    write = start_response("200 OK", [("Content-Type", "text/event-stream")])
    write(b"data: first\n\n")
    assert journal.gate().wait(PATIENCE)
    write(b"data: second\n\n")
    return [b"data: third\n\n"]


class _Closing:
    """An iterable whose ``close`` writes a line."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def __iter__(self) -> Iterator[bytes]:
        return iter((b"one ", b"two"))

    def close(self) -> None:
        self._journal.write("closed")


def _closes(journal: Journal, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return _Closing(journal)


_WSGI: Mapping[str, Callable[[Journal, dict[str, Any], Callable[..., Any]], Iterable[bytes]]] = {
    "/digest": _digested,
    "/file": _wraps_file,
    "/writes": _writes,
    "/closes": _closes,
}

MAKERS: Mapping[str, Callable[[str, dict[str, Any]], Any]] = {
    "native-asgi": lambda backend, fields: asgi.IdempotencyMiddleware(_asgi_app, backend, **fields),
    "native-wsgi": lambda backend, fields: wsgi.IdempotencyMiddleware(_wsgi_app, backend, **fields),
}
