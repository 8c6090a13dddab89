"""The core's answers as Django responses, and a Django response's header fields as the core's bytes."""

from __future__ import annotations

from typing import Any

from django.http import HttpResponse
from django.http.response import HttpResponseBase

from open_idempotency._core.requests import Headers
from open_idempotency._core.requests import Response as CoreResponse
from open_idempotency._core.stored_response import UNRECORDED, is_kept_header
from open_idempotency._wsgi.environ import octets
from open_idempotency.policy import IdempotencyPolicy

_OF_ANOTHER_BODY = frozenset({b"content-length", b"transfer-encoding", b"trailer"})


def make_response(answer: CoreResponse) -> HttpResponse:
    """A response with the answer's status, header fields and body, and nothing of its own."""
    fields: dict[str, str] = {}
    spelt: dict[str, str] = {}
    cookies: list[str] = []
    for raw_name, raw_value in answer.headers:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        if name.lower() == "set-cookie":  # the one header that no list joins (RFC 9110, section 5.3)
            cookies.append(value)
            continue
        name = spelt.setdefault(name.lower(), name)
        # Django's responses have each name once; RFC 9110 (5.3) lets a list be joined.
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    response = HttpResponse(answer.body or b"", status=answer.status, headers=fields)
    if "content-type" not in spelt:
        del response.headers["Content-Type"]
    for cookie in cookies:
        response.cookies.load(cookie)
    return response


def stand_in(answer: CoreResponse, current: HttpResponseBase, policy: IdempotencyPolicy) -> HttpResponse:
    """The answer instead of the current response, of which only what the policy never stores stays (R-02): its cookies,
    its CORS fields, its date."""
    response = make_response(answer)
    for name, value in current.items():
        field = octets(name).lower()
        stored = is_kept_header(field, policy.keep_headers, policy.drop_headers)
        if name not in response.headers and field not in _OF_ANOTHER_BODY and not stored:
            response.headers[name] = value
    stored_cookies, response.cookies = response.cookies, current.cookies
    response.cookies.update(stored_cookies)
    # Not current.close(), which would also tell Django that the request has ended.
    old: Any = current
    new: Any = response
    new._resource_closers.extend(old._resource_closers)
    return response


def is_untouched(
    response: HttpResponseBase, made: HttpResponse, fields: list[tuple[str, str]], answer: CoreResponse
) -> bool:
    """Whether a response is still as ``make_response`` made it, with these header fields, for this answer."""
    return (
        response is made
        and made.status_code == answer.status
        and list(made.items()) == fields
        and made.content == (answer.body or b"")
    )


def header_fields(response: HttpResponseBase) -> Headers:
    """The header fields that the response will send, with those of its cookies that are set by now."""
    fields = [(octets(name), octets(value)) for name, value in response.items()]
    return [*fields, *((b"Set-Cookie", octets(cookie.OutputString())) for cookie in response.cookies.values())]


def mark_unrecorded(response: HttpResponseBase) -> None:
    """Tell the client that its answer could not be recorded (L-08)."""
    name, value = UNRECORDED
    response.headers[name.decode("ascii")] = value.decode("ascii")
