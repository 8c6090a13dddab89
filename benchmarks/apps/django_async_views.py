"""The endpoint as an async Django view."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.urls import path

from benchmarks.apps.django_views import for_django
from benchmarks.interface import HELD, HOLD, OTHER_PATH, PATH, STATUS, body_of


async def charge(request: HttpRequest) -> HttpResponseBase:
    """Read the order, respond with as many bytes."""
    body = request.body
    if HOLD in request.headers:
        reply = await HELD.wait_async()
        if reply is not None:
            return for_django(reply)
    return HttpResponse(body_of(len(body)), status=STATUS, content_type="application/json")


urlpatterns = [path(each[1:], charge) for each in (PATH, OTHER_PATH)]
