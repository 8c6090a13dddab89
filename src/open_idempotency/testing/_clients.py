"""Sending requests by test clients, and reading their responses.

A client is recognised by the package of its class, so no framework is imported here.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from open_idempotency.policy import NEVER_COVERED
from open_idempotency.testing._script import KitError

_KNOWN = (
    "Starlette's and FastAPI's TestClient, httpx.Client and httpx.AsyncClient, Django's Client and AsyncClient, "
    "Django REST framework's APIClient, Flask's and Werkzeug's test clients, and sessions with a request() method such "
    "as requests.Session"
)
_BY_HAND = (
    "pass a function instead of the request: it takes the headers to send, sends, and returns the response, as in "
    "assert_idempotent(None, lambda headers: client.post('/payments', json=..., headers=headers))"
)


@dataclass
class Reply:
    """The result of a client's call. ``status``: None if there is no response, since the worker was killed."""

    status: int | None
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    #: what the client returned, or raised
    raw: Any = None

    def header(self, name: str) -> list[str]:
        """The values of a header, in order."""
        return [value for key, value in self.headers if key.lower() == name.lower()]


class Sender(Protocol):
    """Sends one request each time it is called. If ``awaits``, its result is awaited."""

    awaits: bool
    #: for messages
    what: str

    def __call__(self, headers: Mapping[str, str]) -> Any: ...


@dataclass
class _Sends:
    call: Callable[[Mapping[str, str]], Any]
    awaits: bool
    what: str

    def __call__(self, headers: Mapping[str, str]) -> Any:
        return self.call(headers)


def sender(client: Any, request: Any, options: Mapping[str, Any]) -> Sender:
    """The sender of ``request`` by ``client``. Raises ``KitError`` if the client cannot send it."""
    if callable(request) and not isinstance(request, str | Mapping):
        if options:
            raise KitError(f"{', '.join(options)}: options are for a request that is named; the function sends its own")
        name = getattr(request, "__name__", type(request).__name__)
        return _Sends(request, _is_async(request), f"the request that {name} sends")
    method, url, given = _parts(request, options)
    if method in NEVER_COVERED:
        raise KitError(
            f"{method} {url}: {method} requests change nothing and are never covered by idempotency keys; name a "
            "request with an effect, such as 'POST /payments'"
        )
    own = given.pop("headers", None) or {}
    if not isinstance(own, Mapping):
        own = dict(own)
    kind, awaits = _kind_of(client)

    def call(headers: Mapping[str, str]) -> Any:
        new = {name.lower() for name in headers}
        kept = {name: value for name, value in own.items() if str(name).lower() not in new}
        return kind(client, method, url, {**given, "headers": {**kept, **headers}})

    return _Sends(call, awaits, f"{method} {url}")


def _is_async(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _parts(request: Any, options: Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """Method, URL and further options of a request."""
    given = dict(options)
    if isinstance(request, Mapping):
        given = {**request, **given}
        method = given.pop("method", "POST")
        url = given.pop("url", None) or given.pop("path", None)
    elif isinstance(request, str):
        method, space, url = request.partition(" ")
        if not space:
            method, url = "POST", method
        url = url.strip()
    else:
        raise KitError(
            f"request: expected 'POST /payments', a dictionary with method and url, or a function that sends, got "
            f"{type(request).__name__}"
        )
    if not url or not isinstance(url, str) or not isinstance(method, str):
        raise KitError(f"request: {request!r} names no path; write 'POST /payments'")
    if not (url.startswith("/") or urlsplit(url).scheme):
        raise KitError(f"request: {url!r} is neither a path nor a URL; write 'POST /payments'")
    return method.upper(), url, given


Kind = Callable[[Any, str, str, dict[str, Any]], Any]


def _kind_of(client: Any) -> tuple[Kind, bool]:
    """How a client sends, and whether it is async."""
    modules = {kind.__module__.partition(".")[0] for kind in type(client).__mro__}
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(client).__mro__}
    if "django.test.client.RequestFactory" in names or "django.test.client.AsyncRequestFactory" in names:
        if not hasattr(client, "force_login"):
            raise KitError(
                f"client: {type(client).__name__} makes requests but does not send them; use django.test.Client, "
                "AsyncClient or rest_framework.test.APIClient"
            )
        return (_by_django_async, True) if "django.test.client.AsyncClient" in names else (_by_django, False)
    if "werkzeug.test.Client" in names:
        return _by_open, False
    if "quart" in modules and hasattr(client, "open"):
        return _by_open, True
    send = getattr(client, "request", None)
    if callable(send) and not isinstance(client, type):
        return _by_request, _is_async(send)
    raise KitError(f"client: {type(client).__name__} is not known. Known are {_KNOWN}. For another one, {_BY_HAND}")


def _by_request(client: Any, method: str, url: str, given: dict[str, Any]) -> Any:
    return client.request(method, url, **given)


def _by_open(client: Any, method: str, url: str, given: dict[str, Any]) -> Any:
    return client.open(url, method=method, **given)


def _by_django(client: Any, method: str, url: str, given: dict[str, Any]) -> Any:
    if "json" in given:
        if "data" in given:
            raise KitError("json= and data=: leave one of them out")
        body = json.dumps(given.pop("json"))
        given = {**given, "data": body, "content_type": "application/json"}
    call = getattr(client, method.lower(), None)
    return client.generic(method, url, **given) if call is None else call(url, **given)


def _by_django_async(client: Any, method: str, url: str, given: dict[str, Any]) -> Any:
    # Django 4.2 writes the names in ``headers=`` with underscores, and the names of other keywords as they are.
    headers = {str(name).lower(): value for name, value in given.pop("headers").items()}
    return _by_django(client, method, url, {**given, **headers})


# Responses


def read(response: Any) -> Reply:
    """The response to the request itself, before any redirect that the client followed. Raises ``KitError``."""
    first = _first(response)
    body = _body(first)
    return Reply(_status(first), _headers(first), body, response)


async def aread(response: Any) -> Reply:
    """``read``, async, since a stream of Django may be async."""
    first = _first(response)
    if getattr(first, "is_async", False) and getattr(first, "streaming", False):
        body = b"".join([bytes(part) async for part in first.streaming_content])
    else:
        body = _body(first)
        if inspect.isawaitable(body):
            body = await body
    return Reply(_status(first), _headers(first), bytes(body), response)


def _first(response: Any) -> Any:
    history = getattr(response, "history", None)
    return history[0] if isinstance(history, list | tuple) and history else response


def _status(response: Any) -> int:
    status = getattr(response, "status_code", None)
    if not isinstance(status, int):
        raise KitError(
            f"the client returned {type(response).__name__}, which has no status_code; return the response itself from "
            "the function that sends"
        )
    return status


def _body(response: Any) -> Any:
    if getattr(response, "streaming", False):
        return b"".join(response.streaming_content)
    get_data = getattr(response, "get_data", None)
    if callable(get_data):
        return get_data()
    body = getattr(response, "content", b"")
    return body.encode() if isinstance(body, str) else body


def _headers(response: Any) -> list[tuple[str, str]]:
    headers = getattr(response, "headers", {})
    several = getattr(headers, "multi_items", None)
    pairs: Any = several() if callable(several) else headers.items()
    return [(str(name), str(value)) for name, value in pairs]


# Whether two responses are equal for a client that retries.

#: headers that a client acts on. Others differ between responses and mean nothing: Date, Server-Timing, trace ids,
#: request ids, cookies
COMPARED = (
    "content-type", "content-language", "content-disposition", "location", "etag", "last-modified", "link",
)  # fmt: skip
_SHOWN = 200
_MOST = 5


def differences(first: Reply, second: Reply, headers: Sequence[str], ignore: Sequence[str]) -> list[str]:
    """The differences, one line each. ``headers``: names to compare in addition to ``COMPARED``."""
    found: list[str] = []
    if first.status != second.status:
        found.append(f"the status: {first.status}, then {second.status}")
    for name in (*COMPARED, *headers):
        one, two = first.header(name), second.header(name)
        if one != two:
            found.append(f"the header {name}: {_joined(one)}, then {_joined(two)}")
    return [*found, *body_differences(first.body, second.body, ignore)]


def body_differences(first: bytes | None, second: bytes | None, ignore: Sequence[str]) -> list[str]:
    """The differences of two bodies: JSON by its members, anything else as a whole."""
    if first == second or first is None or second is None:
        return []
    try:
        one, two = json.loads(first), json.loads(second)
    except ValueError:
        return [f"the body: {shown(first)}, then {shown(second)}"]
    lines = list(_json_differences(one, two, "", frozenset(ignore)))
    more = len(lines) - _MOST
    return [*lines[:_MOST], *([f"and {more} more"] if more > 0 else [])]


def _json_differences(one: Any, two: Any, where: str, ignore: frozenset[str]) -> Iterator[str]:
    if isinstance(one, dict) and isinstance(two, dict):
        for name in [*one, *(each for each in two if each not in one)]:
            path = f"{where}.{name}" if where else str(name)
            if name in ignore or path in ignore:
                continue
            if name not in one or name not in two:
                yield f"the body, {path}: only in the {'second' if name in two else 'first'} response"
            else:
                yield from _json_differences(one[name], two[name], path, ignore)
    elif isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        for index, (left, right) in enumerate(zip(one, two, strict=True)):
            yield from _json_differences(left, right, f"{where}[{index}]", ignore)
    elif one != two or type(one) is not type(two):
        yield f"the body{', ' + where if where else ''}: {_cut(repr(one))}, then {_cut(repr(two))}"


def shown(body: bytes) -> str:
    """The beginning of a body, for a message."""
    return _cut(body.decode("utf-8", "replace")) or "(empty)"


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _joined(values: list[str]) -> str:
    return ", ".join(values) or "(none)"
