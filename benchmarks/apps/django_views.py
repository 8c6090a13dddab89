"""The endpoint as a sync Django view."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.urls import path

from benchmarks.interface import HELD, HOLD, OTHER_PATH, PATH, STATUS, Reply, body_of


def for_django(reply: Reply) -> HttpResponseBase:
    """A script's reply."""
    if reply.streamed:
        return StreamingHttpResponse(iter(reply.parts), status=reply.status, headers=reply.headers)
    return HttpResponse(b"".join(reply.parts), status=reply.status, headers=reply.headers)


def charge(request: HttpRequest) -> HttpResponseBase:
    """Read the order, respond with as many bytes."""
    body = request.body
    if HOLD in request.headers:
        reply = HELD.wait()
        if reply is not None:
            return for_django(reply)
    return HttpResponse(body_of(len(body)), status=STATUS, content_type="application/json")


urlpatterns = [path(each[1:], charge) for each in (PATH, OTHER_PATH)]
