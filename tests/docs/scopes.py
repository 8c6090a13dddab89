"""Runs a page, and sends a request without credentials to each ``scope=`` on it: ``python -m tests.docs.scopes PAGE``.

A ``scope=`` of an adapter on the page is tested through that application, any other one through a bare ASGI and a bare
WSGI middleware. Prints ``name: status`` for each; an exception counts as a 500.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
from werkzeug.test import Client

from open_idempotency import IdempotencyPolicy, asgi, wsgi
from tests.docs.execute import run

FIELDS = {"Idempotency-Key": "8e03978e-40d5-43e8-bc93-6894a57f9324"}
PATH = "/a-path-of-nobody"


def _all(kind: type[Any]) -> list[Any]:
    return [thing for thing in gc.get_objects() if issubclass(type(thing), kind)]


async def _bare_asgi(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 201, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def _bare_wsgi(environ: Any, start_response: Any) -> list[bytes]:
    start_response("201 Created", [])
    return [b""]


def ask_asgi(app: Any) -> int:
    """The status of a POST without credentials."""

    async def send() -> int:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return (await client.post(PATH, headers=FIELDS)).status_code

    return asyncio.run(send())


def ask_wsgi(app: Any, path: str = PATH) -> int:
    """The status of a POST without credentials, under WSGI."""
    try:
        return Client(app).post(path, headers=FIELDS).status_code
    except Exception:
        return 500


def _ask_flask(app: Any) -> int:
    app.config["PROPAGATE_EXCEPTIONS"] = False
    paths = [rule.rule for rule in app.url_map.iter_rules() if "POST" in rule.methods and not rule.arguments]
    if not paths:
        app.add_url_rule(PATH, "nobody", lambda: "", methods=["POST"])
    return ask_wsgi(app, *paths[:1])


def on_adapters() -> Iterator[tuple[Callable[..., str], int]]:
    """Each ``scope=`` of the page's own applications, and its status."""
    for found, ask in ((asgi.IdempotencyMiddleware, ask_asgi), (wsgi.IdempotencyMiddleware, ask_wsgi)):
        for middleware in _all(found):
            if callable(middleware.engine.policy.scope):
                middleware.app = _bare_asgi if ask is ask_asgi else _bare_wsgi
                yield middleware.engine.policy.scope, ask(middleware)
    flask = sys.modules.get("flask")
    for app in [] if flask is None else _all(flask.Flask):
        engine = app.extensions.get("open_idempotency")
        if engine is not None and callable(engine.policy.scope):
            yield engine.policy.scope, _ask_flask(app)


def on_policies(asked: set[Any]) -> Iterator[tuple[Callable[..., str], int]]:
    """Each ``scope=`` that no application has, under ASGI and under WSGI."""
    for scope in {policy.scope for policy in _all(IdempotencyPolicy) if callable(policy.scope)} - asked:
        yield scope, ask_asgi(asgi.IdempotencyMiddleware(_bare_asgi, "memory://", scope=scope))
        yield scope, ask_wsgi(wsgi.IdempotencyMiddleware(_bare_wsgi, "memory://", scope=scope))


def main(page: Path) -> None:
    """Run the page, and test each ``scope=``."""
    made: list[object] = []  # a page may use one name several times, and each object is tested
    run(page, lambda module: made.extend(vars(module).values()))
    _start_stacks()
    found = list(on_adapters())
    found += on_policies({scope for scope, _ in found})
    for scope, status in found:
        sys.stdout.write(f"{scope.__qualname__}: {status}\n")


def _start_stacks() -> None:
    """Make applications build their middleware, which some do at the first request."""
    starlette = sys.modules.get("starlette.applications")
    for app in [] if starlette is None else _all(starlette.Starlette):
        if app.middleware_stack is None:
            app.middleware_stack = app.build_middleware_stack()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
