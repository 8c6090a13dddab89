"""One way of handling requests, as a process of its own: ``python -m benchmarks.served FRAMEWORK WAY BACKEND URL``.

Serves the ASGI application with uvicorn, as it comes, on a free port, which is the first line that it prints.
"""

from __future__ import annotations

import gc
import importlib
import logging
import socket
import sys
from collections.abc import Callable

import uvicorn

from benchmarks import floor
from benchmarks.floor import asgi as asgi_floor
from benchmarks.interface import App, Application, BackendName, application
from benchmarks.ways import BARE, FLOOR, LAYER, OURS, all_peers

#: ours, and the garbage collector set to leave alone what was there before the first request
FROZEN = f"{OURS}, gc.freeze()"


def _floor(module: Application, backend: BackendName, url: str) -> App:
    return asgi_floor.FloorMiddleware(module.bare(), floor.async_calls_for(backend, url))


_MADE: dict[str, Callable[[Application, BackendName, str], App]] = {
    BARE: lambda module, backend, url: module.bare(),
    LAYER: lambda module, backend, url: module.layer(),
    FLOOR: _floor,
    OURS: lambda module, backend, url: module.ours(url),
    FROZEN: lambda module, backend, url: module.ours(url),
}


def make(framework: str, way: str, backend: BackendName, url: str) -> App:
    """The application."""
    module = application(importlib.import_module(f"benchmarks.apps.{framework}"))
    if way in _MADE:
        return _MADE[way](module, backend, url)
    (peer,) = (one for one in all_peers() if (way, framework) == (one.NAME, one.FRAMEWORK))
    return peer.make(backend, url)


def main() -> None:
    """Serve until the process is ended."""
    framework, way, backend, url = sys.argv[1:]
    logging.getLogger().addHandler(logging.NullHandler())  # some peers log each refusal
    app = make(framework, way, backend, url)  # type: ignore[arg-type]  # one of the names
    if way == FROZEN:
        gc.collect()
        gc.freeze()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(listening.getsockname()[1], flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run([listening])


if __name__ == "__main__":
    main()
