"""The core's responses as Flask responses, and the headers of a Flask response as the core's bytes."""

from __future__ import annotations

from typing import Any

from flask import Flask, Response
from werkzeug.datastructures import Headers as FlaskHeaders

from open_idempotency._core.requests import Headers
from open_idempotency._core.requests import Response as CoreResponse
from open_idempotency._core.stored_response import BODILESS, CORS, is_stored_header
from open_idempotency._engine.current import Running
from open_idempotency._wsgi.environ import native_headers, octets
from open_idempotency._wsgi.exchange import BoundIterable
from open_idempotency.policy import IdempotencyPolicy

# Flask changes headers when it sends them: it makes URLs absolute, and omits some from 204 and 304.
_PLAIN = Response.get_wsgi_headers
_MADE_ANEW = frozenset({b"location", b"content-location"})


def make_response(app: Flask, core: CoreResponse) -> Response:
    """A Flask response with the status, headers and body of a core response, and no headers of its own."""
    headers = FlaskHeaders(native_headers(core))
    typed = "content-type" in headers
    # A list, as of bytes Flask would make a Content-Length of its own.
    response: Response = app.response_class([core.body or b""], core.status, headers)
    if not typed:
        del response.headers["Content-Type"]
    return response


def is_untouched(response: Response, made: Response, headers: list[tuple[str, str]], core: CoreResponse) -> bool:
    """Whether a response is still as ``make_response`` made it of ``core``. ``headers``: those that it had then."""
    return (
        response is made
        and made.status_code == core.status
        and list(made.headers) == headers
        and made.get_data() == (core.body or b"")
    )


def stand_in(app: Flask, core: CoreResponse, current: Response, policy: IdempotencyPolicy) -> Response:
    """The core's response instead of the current one.

    Of the current response only headers that are never stored stay (R-02): its cookies, its CORS headers, its date.
    Functions that ran now know better than the record which origins are allowed (R-11).
    """
    response = make_response(app, core)
    own = {name.lower() for name, _ in core.headers}
    for name in [name.decode("ascii") for name in own if name.startswith(CORS)]:
        response.headers.setlist(name, _set_anew(current, name, response.headers.getlist(name)))
    for name, value in current.headers:
        field = octets(name).lower()
        if field not in own and not is_stored_header(field, policy.keep_headers, policy.drop_headers):
            response.headers.add(name, value)
    response.call_on_close(current.close)
    return response


def _set_anew(current: Response, name: str, stored: list[str]) -> list[str]:
    """The values of a header that the current response has instead of the stored ones, or behind them."""
    values = current.headers.getlist(name)
    added = len(values) > len(stored) and values[: len(stored)] == stored
    return values[len(stored) :] if added else values or stored


def bind_stream(here: Running, response: Response) -> None:
    """Let the iterator of a response run under its own request, wherever the server iterates over it."""
    if not response.is_sequence and not response.direct_passthrough:
        close = getattr(response.response, "close", None)
        response.response = BoundIterable(here, response.iter_encoded(), close)


def response_headers(response: Response, environ: dict[str, Any]) -> Headers:
    """The headers that the response will send, without a Content-Length, which is never stored."""
    headers = [(octets(name), octets(value)) for name, value in response.headers]
    if type(response).get_wsgi_headers is _PLAIN and response.status_code not in BODILESS:
        if not any(name.lower() in _MADE_ANEW for name, _ in headers):
            return headers
    return [(octets(name), octets(value)) for name, value in response.get_wsgi_headers(environ)]
