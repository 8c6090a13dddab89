"""A process without memory for a copy of a response: the handler has run, so something is recorded all the same.

The memory is real, and so are the limits: a response of 64 MiB in a process that may use little more.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

_SCRIPT = """
import asyncio, json, resource, sys

from open_idempotency.asgi import IdempotencyMiddleware
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.wsgi import IdempotencyMiddleware as WsgiMiddleware

HALF = 64 * 1024 * 1024
PART = bytes(HALF)
KEY = "8e03978e-40d5-43e8-bc93-6894a57f9324"
interface, parts = sys.argv[1], int(sys.argv[2])
backend, runs = MemoryBackend(), []


def limit():
    # Allow a little more memory, into which no copy of the response fits.
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + HALF // 2, resource.getrlimit(resource.RLIMIT_AS)[1]))


async def app(scope, receive, send):
    runs.append(1)
    limit()
    await send({"type": "http.response.start", "status": 201, "headers": [(b"location", b"/charges/1")]})
    for left in reversed(range(parts)):
        await send({"type": "http.response.body", "body": PART, "more_body": left > 0})


def wsgi_app(environ, start_response):
    runs.append(1)
    limit()
    start_response("201 Created", [("Location", "/charges/1")])
    return [PART] * parts


async def ask():
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "extensions": {}}
    scope["headers"] = [(b"idempotency-key", KEY.encode())]
    await IdempotencyMiddleware(app, backend, max_response_bytes=parts * HALF)(scope, receive, send)
    return sent[0]["status"]


def ask_wsgi():
    from io import BytesIO
    from wsgiref.util import setup_testing_defaults

    environ, said = {"REQUEST_METHOD": "POST", "HTTP_IDEMPOTENCY_KEY": KEY, "CONTENT_LENGTH": "0"}, []
    setup_testing_defaults(environ)
    environ["wsgi.input"] = BytesIO()
    middleware = WsgiMiddleware(wsgi_app, backend, max_response_bytes=parts * HALF)
    result = middleware(environ, lambda status, headers, exc_info=None: said.append(int(status[:3])))
    for _ in result:
        pass
    if hasattr(result, "close"):
        result.close()
    return said[-1]


async def both():
    return [await ask(), await ask()]


statuses = asyncio.run(both()) if interface == "asgi" else [ask_wsgi(), ask_wsgi()]
print(json.dumps([statuses, len(runs)]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds the memory of a process")
@pytest.mark.parametrize("parts", [1, 2], ids=["whole", "in parts"])
@pytest.mark.parametrize("interface", ["asgi", "wsgi"])
def test_a_response_that_no_memory_is_left_for_is_not_run_again(interface: str, parts: int) -> None:
    """O-11, B-10a: the client gets the response, a tombstone is recorded, and a retry is refused."""
    ran = subprocess.run(
        [sys.executable, "-c", _SCRIPT, interface, str(parts)], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1]) == [[201, 409], 1]
