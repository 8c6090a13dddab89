"""The core's answers as Flask responses, and a Flask response's header fields as the core's bytes."""

from __future__ import annotations

from typing import Any

from flask import Flask, Response
from werkzeug.datastructures import Headers as FlaskHeaders

from open_idempotency._core.requests import Headers
from open_idempotency._core.requests import Response as CoreResponse
from open_idempotency._core.stored_response import BODILESS, is_stored_header
from open_idempotency._engine.current import Running
from open_idempotency._wsgi.environ import native_headers, octets
from open_idempotency._wsgi.exchange import BoundIterable
from open_idempotency.policy import IdempotencyPolicy

# What Flask does to header fields as it sends them: it makes addresses absolute, and spares 204 and 304 some.
_PLAIN = Response.get_wsgi_headers
_MADE_ANEW = frozenset({b"location", b"content-location"})


def make_response(app: Flask, answer: CoreResponse) -> Response:
    """A response with the answer's status, header fields and body, and nothing of its own."""
    fields = FlaskHeaders(native_headers(answer))
    typed = "content-type" in fields
    # A list, as of bytes Flask would make a Content-Length of its own.
    response: Response = app.response_class([answer.body or b""], answer.status, fields)
    if not typed:
        del response.headers["Content-Type"]
    return response


def is_untouched(response: Response, made: Response, fields: list[tuple[str, str]], answer: CoreResponse) -> bool:
    """Whether a response is still as ``make_response`` made it, with these header fields, for this answer."""
    return (
        response is made
        and made.status_code == answer.status
        and list(made.headers) == fields
        and made.get_data() == (answer.body or b"")
    )


def stand_in(app: Flask, answer: CoreResponse, current: Response, policy: IdempotencyPolicy) -> Response:
    """The answer instead of the current response, of which only what the policy never stores stays (R-02): its cookies,
    its CORS fields, its date."""
    response = make_response(app, answer)
    own = {name.lower() for name, _ in answer.headers}
    for name, value in current.headers:
        field = octets(name).lower()
        if field not in own and not is_stored_header(field, policy.keep_headers, policy.drop_headers):
            response.headers.add(name, value)
    response.call_on_close(current.close)
    return response


def bind_stream(here: Running, response: Response) -> None:
    """Let a response's iterator run under its own request, wherever the server iterates over it."""
    if not response.is_sequence and not response.direct_passthrough:
        close = getattr(response.response, "close", None)
        response.response = BoundIterable(here, response.iter_encoded(), close)


def header_fields(response: Response, environ: dict[str, Any]) -> Headers:
    """The header fields that the response will send, but for a Content-Length, which is never stored."""
    fields = [(octets(name), octets(value)) for name, value in response.headers]
    if type(response).get_wsgi_headers is _PLAIN and response.status_code not in BODILESS:
        if not any(name.lower() in _MADE_ANEW for name, _ in fields):
            return fields
    return [(octets(name), octets(value)) for name, value in response.get_wsgi_headers(environ)]
