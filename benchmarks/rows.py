"""Which rows are measured: not all combinations, but each backend, kind, framework and size where it shows most."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from benchmarks.interface import BACKENDS, KINDS, BackendName, Kind

SMALL, LARGE = 1_000, 100_000


class Row(NamedTuple):
    """One comparison. ``framework``: a module of ``apps``; ``size``: bytes of the body, and of the response."""

    framework: str
    backend: BackendName
    kind: Kind
    size: int = SMALL
    in_flight: int = 1

    def __str__(self) -> str:
        flight = f", {self.in_flight} in flight" if self.in_flight > 1 else ""
        return f"{self.framework}, {self.backend}, {self.kind}, {self.size // 1000} kB{flight}"


_FEW: tuple[BackendName, ...] = ("memory", "redis")
#: the backends on which a framework is measured with new keys; FastAPI is where most peers are
_FRAMEWORKS: dict[str, tuple[BackendName, ...]] = {
    "fastapi": BACKENDS,
    "flask": BACKENDS,
    "django_wsgi": ("memory", "sqlite-full", "redis", "postgres"),
    "django_asgi": _FEW,
}
_AGAIN: tuple[Kind, ...] = ("replay", "duplicate")


def _all() -> Iterator[Row]:
    yield from (Row("starlette", "memory", "no-key", size) for size in (SMALL, LARGE))
    yield from (Row("starlette", backend, "new-key", size) for size in (SMALL, LARGE) for backend in BACKENDS)
    yield from (Row("starlette", backend, "new-key", in_flight=64) for backend in BACKENDS)
    yield from (Row("starlette", backend, "replay") for backend in BACKENDS)
    yield from (Row("starlette", backend, "replay", LARGE) for backend in ("memory", "redis", "postgres"))
    yield from (Row("starlette", backend, "duplicate") for backend in BACKENDS)
    for framework, backends in _FRAMEWORKS.items():
        yield Row(framework, "memory", "no-key")
        yield from (Row(framework, backend, "new-key") for backend in backends)
        yield from (Row(framework, backend, kind) for kind in _AGAIN for backend in _FEW)


ROWS: tuple[Row, ...] = tuple(_all())


def chosen(kinds: Collection[str], only: Collection[str]) -> list[Row]:
    """The rows of these kinds, on these backends (empty: on all)."""
    return [row for row in ROWS if row.kind in kinds and (not only or row.backend in only)]


__all__ = ["KINDS", "LARGE", "ROWS", "SMALL", "Row", "chosen"]
