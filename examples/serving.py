"""A real server around an example, so that each of them runs with one command."""

from __future__ import annotations

import logging
import os
from typing import Any

#: 0 takes any free port; the server says which
PORT = int(os.environ.get("PORT", "8000"))


def serve_asgi(app: Any) -> None:
    """Run an ASGI application on uvicorn until it is interrupted."""
    import uvicorn

    uvicorn.run(app, host="127.0.0.1", port=PORT)


def serve_wsgi(app: Any) -> None:
    """Run a WSGI application on waitress until it is interrupted."""
    import waitress

    # waitress names its address at this level only
    logging.basicConfig(level=logging.INFO)
    waitress.serve(app, host="127.0.0.1", port=PORT)
