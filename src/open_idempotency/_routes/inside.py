"""CORS and compression that stand inside the middleware, as far as the start of an application shows them (R-12).

The first client's response passes through such a layer before it is stored. The responses that the library sends in
place of the endpoint's do not: a problem has no CORS headers, so no script of another origin may read it, and what was
compressed for the first client is sent to those who cannot read it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from open_idempotency.policy import IdempotencyPolicy, pairs_of

_logger = logging.getLogger("open_idempotency")

#: how many nested layers are inspected
_DEEPEST = 100
# By their names, in any case: whoever derives from such a class, or writes one, names it so.
_KINDS = {
    "cors": re.compile(r"CORS(\w*Middleware)?$", re.IGNORECASE),
    "compression": re.compile(r"(?<!de)(GZip|Brotli|Zstd|Deflate|Compress|Compression)(Middleware)?$", re.IGNORECASE),
}
# Where layers of ASGI and WSGI keep what they wrap.
_WRAPPED = ("app", "wsgi_app", "application")

CORS_INSIDE = (
    "%s is inside IdempotencyMiddleware: problems (400, 409, 422 and others) have no CORS headers, so no page of "
    "another origin can read them, and a replay has them only for the origin of the first request. Put it around "
    "IdempotencyMiddleware, or name the headers by problem_headers="
)
COMPRESSION_INSIDE = (
    "%s is inside IdempotencyMiddleware: what it compresses for the first client is stored, and sent to clients that "
    "cannot read it. Put it around IdempotencyMiddleware, or leave compression to the server in front"
)


def allows_pages(policy: IdempotencyPolicy) -> bool:
    """Whether the policy's own headers let pages of another origin read a problem."""
    return any(name.lower() == "access-control-allow-origin" for name, _ in pairs_of(policy.problem_headers))


def warn_of_layers(layers: Iterable[type], policy: IdempotencyPolicy) -> None:
    """Log one warning for each kind of layer among these classes of layers inside that belongs outside."""
    found: dict[str, str] = {}
    for layer in layers:
        kind = kind_of(layer)
        if kind is not None:
            found.setdefault(kind, layer.__name__)
    if "cors" in found and not allows_pages(policy):
        _logger.warning(CORS_INSIDE, found["cors"])
    if "compression" in found:
        _logger.warning(COMPRESSION_INSIDE, found["compression"])


def kind_of(layer: type) -> str | None:
    """``cors`` or ``compression`` by the names of a class and its bases; None for any other class."""
    names = [base.__name__ for base in layer.__mro__]
    return next((kind for kind, named in _KINDS.items() if any(map(named.search, names))), None)


def layers_inside(app: Any, ours: type, depth: int = _DEEPEST) -> Iterator[type]:
    """The classes of the layers of an ASGI or WSGI application, and of those that its routes lead to.

    It ends at a further middleware of this library, ``ours``: the innermost protects, and looks for itself.
    """
    seen: set[int] = set()
    for _ in range(depth):
        # What a framework calls its application may be a method of it.
        app = getattr(app, "__self__", app)
        if app is None or id(app) in seen or isinstance(app, ours):
            return
        seen.add(id(app))
        yield type(app)
        listed = [each for each in _listed(app) if isinstance(each, type)]
        if any(issubclass(each, ours) for each in listed):
            return
        yield from listed
        functions = getattr(app, "after_request_funcs", None)
        if isinstance(functions, dict):
            yield from map(layer_of, chain.from_iterable(functions.values()))
        routes = getattr(app, "routes", None)
        if isinstance(routes, list | tuple):
            beneath = [getattr(route, "app", None) for route in routes]
            yield from chain.from_iterable(layers_inside(each, ours, depth - 1) for each in beneath)
            return
        app = next((inner for inner in (getattr(app, name, None) for name in _WRAPPED) if inner is not None), None)


def _listed(app: Any) -> list[Any]:
    """The middleware that a Starlette application was given, which it may not have built yet."""
    given = getattr(app, "user_middleware", None)
    return [getattr(each, "cls", None) for each in given] if isinstance(given, list) else []


class FlaskCORS:
    """Stands for Flask-CORS, whose layer is a function."""


def layer_of(function: Any) -> type:
    """The class of the Flask extension to which an ``after_request`` function belongs; else that of the function."""
    owner = getattr(function, "__self__", None)
    if owner is not None:
        return type(owner)
    return FlaskCORS if str(getattr(function, "__module__", "")).startswith("flask_cors.") else type(function)
