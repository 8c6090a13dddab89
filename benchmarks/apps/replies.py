"""A script's reply as a response of each framework."""

from __future__ import annotations

from django.http import HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from flask import Response as FlaskResponse
from starlette.responses import Response, StreamingResponse

from benchmarks.interface import Reply


def for_starlette(reply: Reply) -> Response:
    """For Starlette and FastAPI."""
    if reply.streamed:
        return StreamingResponse(iter(reply.parts), reply.status, reply.headers)
    return Response(b"".join(reply.parts), reply.status, reply.headers)


def for_flask(reply: Reply) -> FlaskResponse:
    """For Flask."""
    body = iter(reply.parts) if reply.streamed else b"".join(reply.parts)
    return FlaskResponse(body, reply.status, reply.headers)


def for_django(reply: Reply) -> HttpResponseBase:
    """For Django."""
    if reply.streamed:
        return StreamingHttpResponse(iter(reply.parts), status=reply.status, headers=reply.headers)
    return HttpResponse(b"".join(reply.parts), status=reply.status, headers=reply.headers)
