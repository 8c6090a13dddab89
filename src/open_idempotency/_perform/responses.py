"""A framework's response as the core's answer, told by what it has; no framework is imported."""

from __future__ import annotations

from typing import Any

from open_idempotency._core.requests import Answer, Headers


def answer_of(response: Any) -> Answer:
    """Status, header fields and body. Raises ``TypeError`` for what has not all three, such as a stream."""
    if isinstance(response, Answer):
        return response
    for read in (_of_starlette, _of_werkzeug, _of_django):
        answer = read(response)
        if answer is not None:
            return answer
    raise TypeError(
        f"atomic.answer() takes a whole response of Starlette's, Flask's or Django's, not {type(response).__name__}; "
        "in Flask make_response(...) makes one, in FastAPI JSONResponse(...)"
    )


def _of_starlette(response: Any) -> Answer | None:
    headers, body = getattr(response, "raw_headers", None), getattr(response, "body", None)
    if headers is None or not isinstance(body, bytes):
        return None
    return Answer(response.status_code, list(headers), body)


def _of_werkzeug(response: Any) -> Answer | None:
    if not hasattr(response, "get_wsgi_headers") or not response.is_sequence:
        return None
    return Answer(response.status_code, _pairs(response.headers.items()), response.get_data())


def _of_django(response: Any) -> Answer | None:
    if getattr(response, "streaming", True) or not hasattr(response, "content"):
        return None
    cookies = [("Set-Cookie", cookie.OutputString()) for cookie in response.cookies.values()]
    return Answer(response.status_code, _pairs([*response.items(), *cookies]), response.content)


def _pairs(items: Any) -> Headers:
    return [(name.encode("latin-1"), str(value).encode("latin-1")) for name, value in items]
