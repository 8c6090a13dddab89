"""Streams, files and clients that leave, on Django's real handlers, driven as a server does."""

from __future__ import annotations

import asyncio
import gc
import io
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import django
import pytest
from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import FileResponse, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.test import AsyncClient, Client, RequestFactory

from open_idempotency import idem
from tests.django_project.calls import KEY, PATIENCE, REPLAYED, AsgiCall, post, project

# Django 4.2 does not listen for the client's disconnect, and runs every view to its end.
needs_disconnects = pytest.mark.skipif(django.VERSION < (5, 0), reason="Django 4.2 does not notice disconnects")


def _environ(**extra: Any) -> dict[str, Any]:
    return RequestFactory().post("/0", headers={"Idempotency-Key": KEY}).environ | extra


def _start(status: str, headers: list[tuple[str, str]]) -> None:
    """The ``start_response`` of a server."""


async def _until(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, PATIENCE)


def test_a_stream_is_replayed_with_the_stages_that_its_iterator_ran() -> None:
    """R-04, S-03: the generator runs within its request, although Django iterates it later."""
    calls: list[str] = []

    def view(request: HttpRequest) -> StreamingHttpResponse:
        def parts() -> Iterator[str]:
            yield "a"
            idem.run("charge", calls.append, "charge")
            yield "b"

        return StreamingHttpResponse(parts())

    with project(view):
        first = post(Client()).getvalue()
        again = post(Client())
    assert first == again.content == b"ab"
    assert calls == ["charge"]


@pytest.mark.parametrize("key", [KEY, None])
def test_an_awaited_stream_runs_its_stages(key: str | None) -> None:
    """R-04, R-08, S-03: with a key and without one, in the awaited chain."""

    async def number() -> int:
        return 7

    async def parts() -> AsyncIterator[str]:
        yield "a"
        yield str(await idem.arun("number", number))

    async def view(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(parts())

    async def read() -> bytes:
        response = await post(AsyncClient(), key=key)
        return b"".join([part async for part in response.streaming_content])

    with project(view):
        assert asyncio.run(read()) == b"a7"


def test_earlier_parts_of_an_awaited_stream_are_not_held_back() -> None:
    """R-03, R-04: the first part leaves while the iterator waits, and nothing is recorded before the end."""

    async def scenario() -> None:
        go_on = asyncio.Event()

        async def parts() -> AsyncIterator[str]:
            yield "a"
            await go_on.wait()
            yield "b"

        async def view(request: HttpRequest) -> StreamingHttpResponse:
            return StreamingHttpResponse(parts())

        with project(view) as backend:
            call = AsgiCall()
            done = asyncio.ensure_future(call.run(ASGIHandler()))
            await asyncio.wait_for(call.body_came.wait(), PATIENCE)
            assert call.body == b"a"
            assert backend.verbs == ["claim"]
            go_on.set()
            await done
            assert call.body == b"ab"
            assert backend.verbs == ["claim", "complete"]

    asyncio.run(scenario())


def test_the_part_that_fills_the_content_length_is_held_until_it_is_durable() -> None:
    """R-03: a client counts bytes, and takes this part for the last one."""

    async def scenario() -> None:
        recorded: list[list[str]] = []

        async def parts() -> AsyncIterator[bytes]:
            yield b"a"
            yield b"b"
            recorded.append(list(backend.verbs))

        async def view(request: HttpRequest) -> StreamingHttpResponse:
            return StreamingHttpResponse(parts(), headers={"Content-Length": "2"})

        with project(view) as backend:
            await AsgiCall().run(ASGIHandler())
        assert recorded == [["claim", "complete"]]

    asyncio.run(scenario())


class FileWrapper:
    """The class by which a server sends files itself."""

    def __init__(self, *args: Any) -> None:
        raise AssertionError("the file went past the capture")


def test_a_file_is_captured_and_not_sent_by_the_server_itself() -> None:
    """R-07, R-08: for FileResponse and ``wsgi.file_wrapper``."""
    files: list[io.BytesIO] = []

    def view(request: HttpRequest) -> FileResponse:
        files.append(io.BytesIO(b"x" * 10_000))
        return FileResponse(files[-1])

    with project(view):
        for _ in range(2):
            response: Any = WSGIHandler()(_environ(**{"wsgi.file_wrapper": FileWrapper}), _start)
            assert b"".join(response) == b"x" * 10_000
            response.close()
    assert [file.closed for file in files] == [True]


def test_a_blocking_stream_whose_client_left_runs_to_its_end() -> None:
    """L-05: the server closes the response, and the retry replays it completely."""
    calls: list[str] = []

    def view(request: HttpRequest) -> StreamingHttpResponse:
        def parts() -> Iterator[str]:
            yield from "abc"
            calls.append("end")

        return StreamingHttpResponse(parts())

    with project(view):
        response: Any = WSGIHandler()(_environ(), _start)
        assert next(iter(response)) == b"a"
        response.close()
        again: Any = WSGIHandler()(_environ(), _start)
    assert again.content == b"abc"
    assert again[REPLAYED] == "true"
    assert calls == ["end"]


@needs_disconnects
def test_an_awaited_stream_whose_client_left_is_closed_after_its_grace() -> None:
    """L-05a: its stages are kept, and the retry does not wait for the lease."""

    async def scenario() -> None:
        attempts: list[int] = []
        cancelled: list[bool] = []

        async def parts() -> AsyncIterator[str]:
            attempts.append(idem.attempt)
            yield "a"
            if idem.attempt == 1:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    cancelled.append(True)
                    raise

        async def view(request: HttpRequest) -> StreamingHttpResponse:
            return StreamingHttpResponse(parts())

        with project(view, IDEMPOTENCY_STREAM_GRACE=0.1):
            handler, call = ASGIHandler(), AsgiCall()
            done = asyncio.ensure_future(call.run(handler))
            await asyncio.wait_for(call.body_came.wait(), PATIENCE)
            call.left.set()
            await done
            again = AsgiCall()
            await again.run(handler)
        assert again.body == b"a"
        assert attempts == [1, 2]
        assert cancelled == [True]

    asyncio.run(scenario())


class HeldCall(AsgiCall):
    """A server that takes the first part only after the client has left."""

    async def _send(self, message: dict[str, Any]) -> None:
        await super()._send(message)
        if message.get("body"):
            await asyncio.Event().wait()


@needs_disconnects
def test_an_awaited_stream_whose_client_left_between_two_parts_is_closed_after_its_grace() -> None:
    """L-05a: nothing waits for its next part, so no cancellation reaches its iterator, which is closed all the same."""

    async def scenario() -> None:
        attempts: list[int] = []
        ended = asyncio.Event()

        async def parts() -> AsyncIterator[str]:
            attempts.append(idem.attempt)
            try:
                yield "a"
                yield "b"
            finally:
                ended.set()

        async def view(request: HttpRequest) -> StreamingHttpResponse:
            return StreamingHttpResponse(parts())

        with project(view, IDEMPOTENCY_STREAM_GRACE=0):
            handler, call = ASGIHandler(), HeldCall()
            done = asyncio.ensure_future(call.run(handler))
            await asyncio.wait_for(call.body_came.wait(), PATIENCE)
            call.left.set()
            await done
            await asyncio.wait_for(ended.wait(), PATIENCE)
            again = AsgiCall()
            await again.run(handler)
            while again.sent[0]["status"] == 409:
                again = AsgiCall()
                await again.run(handler)
        assert again.body == b"ab"
        assert attempts == [1, 2]

    gc.disable()  # the stream must be closed without the garbage collector
    try:
        asyncio.run(asyncio.wait_for(scenario(), 2 * PATIENCE))
    finally:
        gc.enable()


@needs_disconnects
@pytest.mark.parametrize("call_class", [AsgiCall, HeldCall], ids=["while it is produced", "while it is sent"])
def test_an_awaited_stream_whose_client_left_ends_within_its_grace_and_is_replayed(
    call_class: type[AsgiCall],
) -> None:
    """L-05a: Django cancels the task that sends it, and not the iterator, which may be in the middle of an effect."""

    async def scenario() -> None:
        attempts: list[int] = []
        go_on = asyncio.Event()

        async def parts() -> AsyncIterator[str]:
            attempts.append(idem.attempt)
            yield "a"
            await go_on.wait()
            await idem.asave_stage("charged", True)
            yield "b"

        async def view(request: HttpRequest) -> StreamingHttpResponse:
            return StreamingHttpResponse(parts())

        with project(view, IDEMPOTENCY_STREAM_GRACE=PATIENCE) as backend:
            handler, call = ASGIHandler(), call_class()
            done = asyncio.ensure_future(call.run(handler))
            await asyncio.wait_for(call.body_came.wait(), PATIENCE)
            call.left.set()
            go_on.set()
            await done
            while "complete" not in backend.verbs:
                await asyncio.sleep(0)
            again = AsgiCall()
            await again.run(handler)
        assert again.body == b"ab"
        assert attempts == [1]

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))


@needs_disconnects
def test_an_awaited_view_whose_client_left_is_run_again() -> None:
    """L-04: Django cancels the view; its stages are kept."""

    async def scenario() -> None:
        attempts: list[int] = []
        running = asyncio.Event()
        cancelled: list[bool] = []

        async def view(request: HttpRequest) -> HttpResponse:
            attempts.append(idem.attempt)
            await idem.asave_stage("reached", len(attempts))
            running.set()
            if idem.attempt == 1:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    cancelled.append(True)
                    raise
            return JsonResponse({"reached": idem.load("reached")})

        with project(view):
            handler, call = ASGIHandler(), AsgiCall()
            done = asyncio.ensure_future(call.run(handler))
            await asyncio.wait_for(running.wait(), PATIENCE)
            call.left.set()
            await done
            again = AsgiCall()
            await again.run(handler)
        assert cancelled == [True]
        assert again.body == b'{"reached": 1}'
        assert attempts == [1, 2]

    asyncio.run(scenario())


def _plain() -> HttpResponse:
    return HttpResponse("done")


def _blocking_stream() -> StreamingHttpResponse:
    return StreamingHttpResponse(iter(["do", "ne"]))


def _awaited_stream() -> StreamingHttpResponse:
    async def parts() -> AsyncIterator[str]:
        yield "do"
        yield "ne"

    return StreamingHttpResponse(parts())


@needs_disconnects
@pytest.mark.parametrize("respond", [_plain, _blocking_stream, _awaited_stream])
def test_a_blocking_view_whose_client_left_an_asgi_server_is_not_run_beside_itself(
    respond: Callable[[], HttpResponse],
) -> None:
    """L-05, I1: its thread cannot be cancelled; until it ends a retry gets 409, and then the response."""

    async def scenario() -> None:
        running, go_on = threading.Event(), threading.Event()
        calls: list[int] = []

        def view(request: HttpRequest) -> HttpResponse:
            calls.append(idem.attempt)
            running.set()
            assert go_on.wait(PATIENCE)
            return respond()

        with project(view) as backend:
            handler, call = ASGIHandler(), AsgiCall()
            done = asyncio.ensure_future(call.run(handler))
            await _until(running)
            call.left.set()
            meanwhile = AsgiCall()
            await meanwhile.run(handler)
            assert meanwhile.sent[0]["status"] == 409
            go_on.set()
            await done
            again = AsgiCall()
            await again.run(handler)
        assert again.body == b"done"
        assert calls == [1]
        assert "complete" in backend.verbs

    asyncio.run(scenario())


@needs_disconnects
def test_an_awaited_view_whose_client_left_is_not_run_beside_its_thread() -> None:
    """L-09: the function that it calls by ``sync_to_async`` ends first, and then its response is stored."""

    async def scenario() -> None:
        running, go_on = threading.Event(), threading.Event()
        calls: list[int] = []

        def charge() -> None:
            calls.append(idem.attempt)
            running.set()
            assert go_on.wait(PATIENCE)

        async def view(request: HttpRequest) -> HttpResponse:
            await sync_to_async(charge)()
            return HttpResponse("done")

        with project(view):
            handler, call = ASGIHandler(), AsgiCall()
            done = asyncio.ensure_future(call.run(handler))
            await _until(running)
            call.left.set()
            meanwhile = AsgiCall()
            await meanwhile.run(handler)
            assert meanwhile.sent[0]["status"] == 409
            go_on.set()
            await done
            again = AsgiCall()
            await again.run(handler)
        assert again.body == b"done"
        assert calls == [1]

    asyncio.run(scenario())


@needs_disconnects
def test_an_awaited_view_that_goes_on_after_its_thread_is_cancelled_then() -> None:
    """L-09, L-04: its attempt fails after the thread has ended."""

    async def scenario() -> None:
        running = threading.Event()
        attempts: list[int] = []

        async def view(request: HttpRequest) -> HttpResponse:
            attempts.append(idem.attempt)
            await sync_to_async(running.set)()
            if idem.attempt == 1:
                await asyncio.Event().wait()
            return HttpResponse("done")

        with project(view):
            handler, call = ASGIHandler(), AsgiCall()
            done = asyncio.ensure_future(call.run(handler))
            await _until(running)
            call.left.set()
            await done
            again = AsgiCall()
            await again.run(handler)
        assert (again.body, attempts) == (b"done", [1, 2])

    asyncio.run(scenario())
