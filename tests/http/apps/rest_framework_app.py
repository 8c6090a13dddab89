"""The application in Django REST framework, under WSGI: parsed requests, rendered responses, class-based views.

The views read the body and then parse it, since such views use ``request.data``. Everything else is the same as in the
application in Django.
"""

# ruff: noqa: E402 (Django has to be set up before what needs its settings is imported)
from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any

from django.http import HttpResponseBase, StreamingHttpResponse
from django.urls import path

from tests.django_project import set_up

set_up()

from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import ParseError
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.parsers import FormParser, JSONParser, MultiPartParser
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from open_idempotency.django import exempt, idempotent
from tests.http.apps.django_app import become_user, log_in
from tests.http.behaviours import Reply, call_of, chunks, perform


class MiddlewareUser(BaseAuthentication):
    """Authenticates the user of an outer middleware, as session authentication does."""

    def authenticate(self, request: Request) -> tuple[Any, None] | None:
        user = getattr(request._request, "user", None)
        return (user, None) if user is not None else None


class AsItIs(BaseRenderer):
    """A renderer for bytes that are rendered already."""

    media_type = "application/octet-stream"
    charset = None

    def render(self, data: bytes, *_: Any, **__: Any) -> bytes:
        return data


class FirstRenderer(BaseContentNegotiation):
    """Content negotiation that ignores what the client accepts."""

    def select_parser(self, request: Request, parsers: Any) -> Any:
        return next((p for p in parsers if p.media_type == request.content_type.partition(";")[0]), None)

    def select_renderer(self, request: Request, renderers: Any, format_suffix: Any = None) -> Any:
        return renderers[0], renderers[0].media_type


class Charges(APIView):
    """A view that does what the script says."""

    authentication_classes = [MiddlewareUser]
    permission_classes: list[Any] = []
    parser_classes = [JSONParser, FormParser, MultiPartParser]
    renderer_classes = [AsItIs]
    content_negotiation_class = FirstRenderer

    def post(self, request: Request, rest: str) -> HttpResponseBase:
        """Any method."""
        body = request.body
        with suppress(ParseError):  # the suite sends bytes of all kinds as JSON
            assert request.data is not None
        query = request.META["QUERY_STRING"]
        become = partial(become_user, request)
        call = call_of(str(request.method), request.path, query, body, request.headers["x-script"], become)
        return _respond(perform(call))

    get = put = patch = delete = post


@idempotent(required=True)
class RequiringCharges(Charges):
    """The same view; a key is required."""


@exempt
class ExemptCharges(Charges):
    """The same view, not covered."""


def _respond(reply: Reply) -> HttpResponseBase:
    headers = dict(reply.headers)
    content_type = headers.pop("Content-Type", None)
    if isinstance(reply.body, bytes):
        return Response(reply.body, reply.status, headers=headers, content_type=content_type)
    return StreamingHttpResponse(chunks(reply.body), content_type, reply.status, headers=headers)


class Urls:
    """The views of the application."""

    urlpatterns = [
        path("required/<path:rest>", RequiringCharges.as_view()),
        path("exempt/<path:rest>", ExemptCharges.as_view()),
        path("login/<str:name>", log_in),
        path("<path:rest>", Charges.as_view()),
    ]
