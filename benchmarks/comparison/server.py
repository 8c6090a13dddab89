"""One subject as a process of its own: ``python -m benchmarks.comparison.server MAKE STYLE BACKEND URL FOLDER OPTION``.

Serves an ASGI application with uvicorn and a WSGI application with waitress, on a free port, which is the first line
that it prints. ``FOLDER`` has the script of the endpoint; ``OPTION`` names a function that returns documented options.
"""

from __future__ import annotations

import logging
import socket
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.comparison.script import FileScript
from benchmarks.interface import HELD, App


def named(text: str) -> Any:
    """The object ``module:name``."""
    module, _, name = text.partition(":")
    return getattr(import_module(module), name)


def main() -> None:
    """Serve until the process is ended."""
    make, style, backend, url, folder, option = sys.argv[1:]
    logging.getLogger().addHandler(logging.StreamHandler())
    HELD.script = FileScript(Path(folder))
    app: App = named(make)(backend, url, **(named(option)() if option else {}))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(listening.getsockname()[1], flush=True)
        if style == "asgi":
            import uvicorn  # only where it serves: the start is part of a scenario's time

            uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run([listening])
        else:
            import waitress

            waitress.serve(app, sockets=[listening], threads=8)


if __name__ == "__main__":
    main()
