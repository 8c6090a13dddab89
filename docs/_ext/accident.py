"""The accident and the cure as sequence diagrams, drawn from a real run.

A WSGI application on a real socket charges a card. A client sends one request twice, as it hangs up before it has read
the first response. What each side sees is what the diagrams show; nothing in them is written by hand but the names.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import svg

from open_idempotency.wsgi import IdempotencyMiddleware

SECONDS = 20.0
KEY = "8e03978e-40d5-43e8-bc93-6894a57f9324"
PHONE, SERVER, CARD = ACTORS = ("Phone", "Server", "Card")
_X = {PHONE: 50, SERVER: 250, CARD: 390}
_WIDTH, _STEP, _TOP = 440, 34, 62


class Message(NamedTuple):
    """One arrow. ``lost``: it never arrives; ``replayed``: it was made before."""

    sender: str
    receiver: str
    words: str
    lost: bool = False
    replayed: bool = False


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the diagram is the log."""


def run(with_key: bool) -> list[Message]:
    """Send one request twice; what happens, in order."""
    seen: list[Message] = []

    def charge(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        seen.append(Message(SERVER, CARD, "charge 19.99"))
        body = b'{"id": "ch_%d"}' % sum(message.receiver == CARD for message in seen)
        start_response("201 Created", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    application = IdempotencyMiddleware(charge, backend="memory://") if with_key else charge
    with _serving(application) as server:
        _send(server, seen, with_key, lost=True)
        _send(server, seen, with_key, lost=False)
    return seen


@contextmanager
def _serving(application: Any) -> Iterator[WSGIServer]:
    with make_server("127.0.0.1", 0, application, handler_class=_Quiet) as server:
        server.timeout = SECONDS
        yield server


def _send(server: WSGIServer, seen: list[Message], with_key: bool, lost: bool) -> None:
    """One request; a response that is lost has been sent, and nobody reads it."""
    key = f"Idempotency-Key: {KEY}\r\n" if with_key else ""
    seen.append(Message(PHONE, SERVER, f"POST /charges{', key 8e03…' if with_key else ''}"))
    at_work = threading.Thread(target=server.handle_request)
    with socket.create_connection(server.server_address[:2], SECONDS) as phone:  # type: ignore[arg-type]
        at_work.start()
        phone.sendall(f"POST /charges HTTP/1.0\r\nHost: shop\r\n{key}Content-Length: 0\r\n\r\n".encode())
        at_work.join(SECONDS)
        if at_work.is_alive():
            raise TimeoutError(f"the server has not responded within {SECONDS} s")
        head = b"" if lost else phone.makefile("rb").read().lower()
    if lost:
        seen.append(Message(SERVER, PHONE, "201 Created", lost=True))
        return
    if b" 201 created\r\n" not in head:
        raise RuntimeError(f"expected 201, got {head!r}")
    replayed = b"\r\nidempotent-replayed: true\r\n" in head
    seen.append(Message(SERVER, PHONE, f"201 Created{', replayed' if replayed else ''}", replayed=replayed))


def as_svg(with_key: bool) -> str:
    """One run as a picture."""
    messages = run(with_key)
    charges = sum(message.receiver == CARD for message in messages)
    title = f"{'With' if with_key else 'Without'} a key: the card is charged {('once', 'twice')[charges - 1]}"
    height = _TOP + _STEP * len(messages) + 14
    body = [svg.text(_WIDTH / 2, 22, title, "good" if charges == 1 else "bad", weight="600")]
    for actor in ACTORS:
        x = _X[actor]
        body.append(f'<line x1="{x}" y1="52" x2="{x}" y2="{height - 8}" class="faint-line" stroke-dasharray="2 4"/>')
        body.append(svg.text(x, 46, actor, weight="600"))
    charged = 0
    for number, message in enumerate(messages):
        charged += message.receiver == CARD
        body += _draw(message, _TOP + number * _STEP + 20, wrong=message.receiver == CARD and charged > 1)
    return svg.document(_WIDTH, height, title, body)


def _draw(message: Message, y: float, wrong: bool) -> Iterator[str]:
    start, end = _X[message.sender], _X[message.receiver]
    way = 1 if end > start else -1
    role = "bad" if message.lost or wrong else "good" if message.replayed else "ink"
    stop = (start + end) / 2 if message.lost else end
    yield svg.text((start + end) / 2, y - 10, message.words + (", lost" if message.lost else ""), role)
    yield f'<line x1="{start}" y1="{y}" x2="{stop:.0f}" y2="{y}" class="{role}-line"/>'
    if message.lost:
        yield f'<path d="M{stop - 6:.0f} {y - 6} l12 12 m0 -12 l-12 12" class="bad-line" stroke-width="2"/>'
    else:
        yield svg.tip(end, y, way, 0, role)
