"""The ways of handling a row's requests: the bare application, the layer, the floor, this package and the peers."""

from __future__ import annotations

import asyncio
import importlib
import pkgutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from uuid import uuid4

from benchmarks import floor, peers
from benchmarks.calls import AsgiCaller, Caller, WsgiCaller
from benchmarks.floor import asgi as asgi_floor
from benchmarks.floor import wsgi as wsgi_floor
from benchmarks.interface import HELD, App, Kind, Peer, application, body_of, peer
from benchmarks.rows import Row
from benchmarks.servers import Servers
from benchmarks.timing import Batch

BARE, LAYER, FLOOR, OURS, CLAIM = "bare", "layer", "floor", "open-idempotency", "bare claim"
_EXPECTED: dict[Kind, range] = {
    "no-key": range(200, 300),
    "new-key": range(200, 300),
    "replay": range(200, 300),
    "duplicate": range(400, 500),
}


def new_keys(count: int) -> list[bytes]:
    """Keys as most clients make them."""
    return [str(uuid4()).encode() for _ in range(count)]


def all_peers() -> list[Peer]:
    """The installed peers."""
    names = sorted(module.name for module in pkgutil.iter_modules(peers.__path__, "benchmarks.peers."))
    modules = [module for module in map(importlib.import_module, names) if hasattr(module, "make")]
    return [one for one in map(peer, modules) if one.available()]


def peers_of(row: Row) -> list[Peer]:
    """The peers that can handle a row's requests."""
    return [
        one
        for one in all_peers()
        if row.framework == one.FRAMEWORK
        and row.backend in one.BACKENDS
        and row.kind in one.ROWS
        and (row.backend, row.kind) not in getattr(one, "WRONG", ())
    ]


class Ways:
    """The ways of one row, ready to be timed; ``close`` closes everything that they opened.

    ``against``: the peers, by default all that can handle the row's requests.
    """

    def __init__(
        self, row: Row, servers: Servers, loop: asyncio.AbstractEventLoop, against: Sequence[Peer] | None = None
    ) -> None:
        self._row = row
        self._loop = loop
        self._peers = peers_of(row) if against is None else against
        self._application = application(importlib.import_module(f"benchmarks.apps.{row.framework}"))
        self._url = servers.url(row.backend)
        self._closings: list[Callable[[], object]] = []
        HELD.close()
        self.batches: dict[str, Batch] = dict(self._all())

    def _all(self) -> Iterator[tuple[str, Batch]]:
        # What knows of no key handles every request alike.
        yield BARE, self._batch(self._application.bare(), "no-key")
        yield LAYER, self._batch(self._application.layer(), "no-key")
        yield FLOOR, self._batch(self._floor(), self._row.kind)
        yield OURS, self._batch(self._application.ours(self._url), self._row.kind)
        for one in self._peers:
            yield one.NAME, self._batch(one.make(self._row.backend, self._url), self._row.kind)
        if self._row.kind == "replay":
            yield CLAIM, self._bare_claim()

    def _floor(self) -> App:
        return _FLOORS[self._application.STYLE](self, self._application.bare())

    def asgi_floor(self, app: App) -> App:
        """The floor around an ASGI application."""
        calls = floor.async_calls_for(self._row.backend, self._url)
        self._closings.append(lambda: self._loop.run_until_complete(calls.close()))
        return asgi_floor.FloorMiddleware(app, calls)

    def wsgi_floor(self, app: App) -> App:
        """The floor around a WSGI application."""
        calls = floor.calls_for(self._row.backend, self._url)
        self._closings.append(calls.close)
        return wsgi_floor.FloorMiddleware(app, calls)

    def _batch(self, app: App, kind: Kind) -> Batch:
        body = body_of(self._row.size)
        asgi = self._application.STYLE == "asgi"
        caller: Caller = AsgiCaller(app, body, self._loop) if asgi else WsgiCaller(app, body)
        self._closings.append(caller.close)
        keys = _KEYS[kind](caller)

        def batch(count: int) -> float:
            sent = caller.send(keys(count), self._row.in_flight)
            _check(sent.statuses, count, kind)
            return sent.seconds

        return batch

    def _bare_claim(self) -> Batch:
        return _CLAIMS[self._application.STYLE](self)

    def asgi_claim(self) -> Batch:
        """The floor's claim of a completed record, with nothing around it."""
        calls = floor.async_calls_for(self._row.backend, self._url)
        self._closings.append(lambda: self._loop.run_until_complete(calls.close()))

        async def claims(count: int) -> float:
            start = time.perf_counter()
            for _ in range(count):
                await calls.claim(*_CLAIMED)
            return time.perf_counter() - start

        async def complete() -> None:
            await calls.claim(*_CLAIMED)
            await calls.complete(_CLAIMED[0], _CLAIMED[2], body_of(self._row.size))

        self._loop.run_until_complete(complete())
        return lambda count: self._loop.run_until_complete(claims(count))

    def wsgi_claim(self) -> Batch:
        """The floor's sync claim of a completed record."""
        calls = floor.calls_for(self._row.backend, self._url)
        self._closings.append(calls.close)
        calls.claim(*_CLAIMED)
        calls.complete(_CLAIMED[0], _CLAIMED[2], body_of(self._row.size))

        def batch(count: int) -> float:
            start = time.perf_counter()
            for _ in range(count):
                calls.claim(*_CLAIMED)
            return time.perf_counter() - start

        return batch

    def close(self) -> None:
        """Close applications first, then their backends."""
        while self._closings:
            self._closings.pop()()


_CLAIMED = (b"claimed".ljust(32), b"the same request".ljust(32), b"its owner".ljust(16))
_FLOORS: dict[str, Callable[[Ways, App], App]] = {"asgi": Ways.asgi_floor, "wsgi": Ways.wsgi_floor}
_CLAIMS: dict[str, Callable[[Ways], Batch]] = {"asgi": Ways.asgi_claim, "wsgi": Ways.wsgi_claim}


def _used_again(caller: Caller) -> Callable[[int], Any]:
    (key,) = new_keys(1)
    _check(caller.send([key]).statuses, 1, "new-key")
    return lambda count: [key] * count


def _held(caller: Caller) -> Callable[[int], Any]:
    (key,) = new_keys(1)
    caller.hold(key)
    return lambda count: [key] * count


#: the keys of a batch, after whatever makes the requests what they are to be
_KEYS: dict[Kind, Callable[[Caller], Callable[[int], Any]]] = {
    "no-key": lambda caller: lambda count: [None] * count,
    "new-key": lambda caller: new_keys,
    "replay": _used_again,
    "duplicate": _held,
}


def _check(statuses: list[int], count: int, kind: Kind) -> None:
    wrong = Counter(status for status in statuses if status not in _EXPECTED[kind])
    if wrong or len(statuses) != count:
        raise RuntimeError(f"{kind}: {len(statuses)} responses for {count} requests, unexpected: {dict(wrong)}")
