"""A release of Django without the private parts that the library uses: the public parts protect requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.test import AsyncClient, Client

from open_idempotency.django import private
from tests.django_project.calls import REPLAYED, post, project


@pytest.fixture(params=["STREAM", "_BODY", "_CLOSERS"])
def missing(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[str]:
    """Looks one private part up under a name that this release lacks; the warning is in ``caplog``."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(private, request.param, "_name_of_a_later_release")
        with caplog.at_level(logging.WARNING, "open_idempotency"):
            private.look(again=True)
        yield request.param
    private.look(again=True)


def _echo(request: HttpRequest) -> HttpResponse:
    calls.append(request.body)
    return JsonResponse({"calls": len(calls), "got": request.body.decode()}, status=201)


def _form(request: HttpRequest) -> HttpResponse:
    calls.append(dict(request.POST))
    return JsonResponse({"calls": len(calls), "got": request.POST["a"]}, status=201)


def _stream(request: HttpRequest) -> StreamingHttpResponse:
    calls.append(request.read(3))
    return StreamingHttpResponse(iter([b"a", b"b"]), status=201)


calls: list[Any] = []


def _sync(place: str, **extra: Any) -> Any:
    return post(Client(), place, **extra)


def _awaited(place: str, **extra: Any) -> Any:
    return asyncio.run(post(AsyncClient(), place, **extra))


def _content(response: Any) -> bytes:
    if not response.streaming:
        return bytes(response.content)
    if not response.is_async:
        return b"".join(response.streaming_content)

    async def read() -> bytes:
        return b"".join([part async for part in response.streaming_content])

    return asyncio.run(read())


@pytest.mark.parametrize("send", [_sync, _awaited], ids=["wsgi", "asgi"])
@pytest.mark.parametrize("place", [0, 1])
def test_requests_are_protected_by_public_parts(missing: str, send: Any, place: int) -> None:
    """B-25: the view reads its body, a retry is replayed, and another body under the key is refused."""
    calls.clear()
    extra = {} if place == 0 else {"content_type": "application/x-www-form-urlencoded"}
    with project(_echo, _form):
        first = send(f"/{place}", data="a=1", **extra)
        again = send(f"/{place}", data="a=1", **extra)
        other = send(f"/{place}", data="a=2", **extra)
    assert (first.status_code, again.status_code, other.status_code) == (201, 201, 422)
    assert again[REPLAYED] == "true"
    assert again.json() == first.json()
    assert len(calls) == 1


def test_a_stream_is_closed_and_recorded(missing: str) -> None:
    """B-25: also where the view reads the request like a file."""
    calls.clear()
    with project(_stream):
        first = _sync("/0", data="abcdef")
        assert _content(first) == b"ab"
        first.close()
        assert _sync("/0", data="abcdef")[REPLAYED] == "true"
    assert calls == [b'"ab']


def test_one_warning_says_which_part_is_missing(missing: str, caplog: pytest.LogCaptureFixture) -> None:
    """B-25."""
    with caplog.at_level(logging.WARNING, "open_idempotency"):
        private.look()
    part = "responses" if missing == "_CLOSERS" else "requests"
    (message,) = [record.getMessage() for record in caplog.get_records("setup")]
    assert f"is not known: its {part} have other private parts" in message
    assert caplog.messages == []
