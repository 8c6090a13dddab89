"""The core's answers as Flask responses, and a Flask response's header fields as the core's bytes."""

from __future__ import annotations

from typing import Any

from flask import Flask, Response
from werkzeug.datastructures import Headers as FlaskHeaders

from open_idempotency._core.replay import is_kept_header
from open_idempotency._core.requests import Answer, Headers
from open_idempotency._wsgi.environ import native_headers, octets


def make_response(app: Flask, answer: Answer) -> Response:
    """A response with the answer's status, header fields and body, and nothing of its own."""
    response: Response = app.response_class(answer.body or b"", status=answer.status)
    response.headers = FlaskHeaders(native_headers(answer))
    return response


def stand_in(app: Flask, answer: Answer, current: Response) -> Response:
    """The answer instead of the current response, of which only what is never stored stays (R-02): its cookies,
    its CORS fields, its date."""
    response = make_response(app, answer)
    own = {name.lower() for name, _ in answer.headers}
    for name, value in current.headers:
        field = octets(name).lower()
        if field not in own and not is_kept_header(field):
            response.headers.add(name, value)
    response.call_on_close(current.close)
    return response


def header_fields(response: Response, environ: dict[str, Any]) -> Headers:
    """The header fields that the response will send."""
    return [(octets(name), octets(value)) for name, value in response.get_wsgi_headers(environ)]
