"""This package as a subject, in three frameworks, each imported only where it is served."""

from __future__ import annotations

from typing import Any

from benchmarks.interface import App, BackendName
from benchmarks.peers.loading import load


def fastapi(backend: BackendName, url: str, **documented: Any) -> App:
    """In FastAPI."""
    return load("benchmarks.apps.fastapi").ours(url, **documented)


def flask(backend: BackendName, url: str, **documented: Any) -> App:
    """In Flask."""
    return load("benchmarks.apps.flask").ours(url, **documented)


def django(backend: BackendName, url: str, **documented: Any) -> App:
    """In Django under WSGI."""
    return load("benchmarks.apps.django_wsgi").ours(url, **documented)
