"""The endpoint as an awaited Django view."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.urls import path

from benchmarks.interface import HELD, HOLD, PATH, STATUS, answer


async def charge(request: HttpRequest) -> HttpResponse:
    """Read the order, answer with as many bytes."""
    body = request.body
    if HOLD in request.headers:
        await HELD.wait_async()
    return HttpResponse(answer(len(body)), status=STATUS, content_type="application/json")


urlpatterns = [path(PATH[1:], charge)]
