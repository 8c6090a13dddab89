"""The record and the attempt in a request's log lines: in threads, on asyncio and trio, with logging and structlog."""

from __future__ import annotations

import asyncio
import contextvars
import io
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import structlog
import trio
from structlog.testing import LogCapture

from open_idempotency import events
from open_idempotency.asgi import IdempotencyMiddleware
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.telemetry import RequestFilter, add_request
from tests.unit.every_adapter import FIELDS, KEY, post_asgi

# a logger of this module alone, so no other test sets its level
SHOP = logging.getLogger(f"{__name__}.shop")


class Lines(logging.Handler):
    """A handler that keeps the fields of each line."""

    def __init__(self) -> None:
        super().__init__()
        self.addFilter(RequestFilter())
        self.seen: list[tuple[str, Any, Any]] = []
        self.references: list[str] = []

    def emit(self, record: Any) -> None:
        """Keep the fields of the line."""
        self.seen.append((record.name, record.record, record.attempt))
        self.references.append(record.reference)

    def of_shop(self) -> list[tuple[Any, Any]]:
        """The fields of the application's own lines."""
        return [(record, attempt) for name, record, attempt in self.seen if name == SHOP.name]


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler, root = Lines(), logging.getLogger()
    level, ours = root.level, logging.getLogger("open_idempotency")
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    ours.setLevel(logging.DEBUG)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)
    ours.setLevel(logging.NOTSET)


def _protected(inside: Callable[[], Any], **fields: Any) -> tuple[Any, list[events.Event]]:
    """An application that calls a function and awaits its result, and the events of its requests."""
    heard: list[events.Event] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        waited = inside()
        if waited is not None:
            await waited
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    return IdempotencyMiddleware(app, MemoryBackend(), on_event=heard.append, **fields), heard


def _own_thread() -> None:
    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(SHOP.info, "in a thread"))
    thread.start()
    thread.join()


@pytest.mark.parametrize(
    "inside",
    [lambda: SHOP.info("here"), lambda: asyncio.to_thread(SHOP.info, "there"), _own_thread],
    ids=["on the loop", "in a thread of asyncio", "in a thread of its own"],
)
def test_each_line_of_a_request_has_its_record_and_attempt(inside: Callable[[], Any], lines: Lines) -> None:
    """P-35: on asyncio, and in threads that have the request's context."""
    app, heard = _protected(inside)
    post_asgi(app)
    assert lines.of_shop() == [(heard[0].record, 1)]


def test_on_trio_each_line_of_a_request_has_its_record(lines: Lines) -> None:
    """P-35: also in a thread of trio."""

    async def inside() -> None:
        SHOP.info("on the loop")
        await trio.to_thread.run_sync(SHOP.info, "in a thread")

    app, heard = _protected(inside)

    async def send() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            await client.post("/", headers=FIELDS)

    trio.run(send)
    assert lines.of_shop() == [(heard[0].record, 1)] * 2


def test_a_resumed_attempt_has_its_number(lines: Lines) -> None:
    """P-35: the lines of two attempts can be separated."""
    failed: list[int] = []

    def inside() -> None:
        SHOP.info("attempt")
        if not failed:
            failed.append(1)
            raise RuntimeError("the first time")

    app, heard = _protected(inside)
    with pytest.raises(RuntimeError):
        post_asgi(app)
    post_asgi(app)
    assert lines.of_shop() == [(heard[0].record, 1), (heard[0].record, 2)]


def test_outside_of_a_request_with_a_key_there_is_a_dash(lines: Lines) -> None:
    """P-35: a format that names the field works for every line."""
    SHOP.info("at start")
    app, _ = _protected(lambda: SHOP.info("without a key"))

    async def send() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            await client.post("/")

    asyncio.run(send())
    assert lines.of_shop() == [("-", "-")] * 2


def test_a_line_of_the_library_has_the_fields_of_its_event(lines: Lines) -> None:
    """P-35: also before the handler runs, and for a problem with its reference."""
    app, heard = _protected(lambda: None)
    post_asgi(app)
    post_asgi(app)
    ours = [(record, attempt) for name, record, attempt in lines.seen if name == "open_idempotency"]
    record = heard[0].record
    assert ours == [(record, 1), (record, 1), (record, "-")]
    refused, heard = _protected(lambda: None, validate=lambda key: False)
    reply = post_asgi(refused)
    fields = zip(lines.seen, lines.references, strict=True)
    assert (("open_idempotency", "-", "-"), reply.problem["reference"]) in fields


def test_a_format_can_name_the_fields() -> None:
    """P-35: with a configuration by ``dictConfig``."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(RequestFilter())
    handler.setFormatter(logging.Formatter("%(message)s record=%(record)s attempt=%(attempt)s ref=%(reference)s"))
    logger = logging.Logger("shop of its own")
    logger.addHandler(handler)
    app, heard = _protected(lambda: logger.warning("charged"))
    post_asgi(app)
    assert stream.getvalue() == f"charged record={heard[0].record} attempt=1 ref=-\n"
    assert KEY not in stream.getvalue()


def test_structlog_adds_the_record_and_the_attempt() -> None:
    """P-35: outside of a request nothing is added, and the application's own value stays."""
    captured = LogCapture()
    logger = structlog.wrap_logger(None, processors=[add_request, captured])

    def inside() -> None:
        logger.info("charged")
        logger.info("charged", attempt="of a card")

    app, heard = _protected(inside)
    logger.info("at start")
    post_asgi(app)
    record = heard[0].record
    assert captured.entries == [
        {"event": "at start", "log_level": "info"},
        {"event": "charged", "log_level": "info", "record": record, "attempt": 1},
        {"event": "charged", "log_level": "info", "record": record, "attempt": "of a card"},
    ]
