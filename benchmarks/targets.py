"""The targets, as data: the limit for a row of results, and whether it is met. Nothing here measures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from benchmarks.interface import BackendName
from benchmarks.rows import SMALL, Row
from benchmarks.timing import Series, added, ratio, spread
from benchmarks.ways import BARE, CLAIM, FLOOR, LAYER, OURS

#: the most that a new key may add, as a multiple of what it adds at the floor
ADDED_TO_FLOOR: dict[BackendName, float] = {
    "memory": 3.0,
    "sqlite-normal": 1.5,
    "sqlite-full": 1.25,
    "redis": 1.25,
    "postgres": 1.25,
}
NO_KEY_TO_LAYER = 1.1
REPLAY_TO_CLAIM, REPLAY_GRACE = 1.25, 5.0  # microseconds
PAIRS_TO_POOL: dict[BackendName, float] = {"redis": 5.0, "sqlite-full": 5.0}
# Where the middleware stands outside of the framework; elsewhere a replay also takes the framework's own way to it.
_OUTSIDE = ("starlette", "fastapi")
NOT_PEERS = (BARE, LAYER, FLOOR, OURS, CLAIM)


class Verdict(NamedTuple):
    """A target's number, the measured value, and the most (or, with ``at_least``, the least) that it allows."""

    target: int
    what: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the target is met."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def verdicts(row: Row, taken: Mapping[str, Series]) -> list[Verdict]:
    """The verdicts on one row."""
    return [*_of_kind(row, taken), *_of_peers(taken)]


def _of_kind(row: Row, taken: Mapping[str, Series]) -> Iterator[Verdict]:
    if row.kind == "no-key":
        yield Verdict(3, "time ÷ layer's", ratio(taken[OURS], taken[LAYER]).median, NO_KEY_TO_LAYER)
    if row.kind == "new-key":
        value = added(taken[OURS], taken[FLOOR], taken[LAYER]).median
        yield Verdict(2, "added ÷ floor's", value, ADDED_TO_FLOOR[row.backend])
    # The digest of a large body alone takes many times the 5 µs.
    if row.kind == "replay" and row.framework in _OUTSIDE and row.size == SMALL:
        allowed = [claim + REPLAY_GRACE for claim in taken[CLAIM]]
        yield Verdict(4, "time ÷ (bare claim + 5 µs)", ratio(taken[OURS], allowed).median, REPLAY_TO_CLAIM)


def _of_peers(taken: Mapping[str, Series]) -> Iterator[Verdict]:
    peers = {name: spread(series).median for name, series in taken.items() if name not in NOT_PEERS}
    if peers:
        fastest = min(peers, key=lambda name: peers[name])
        yield Verdict(7, f"time ÷ {fastest}'s", ratio(taken[OURS], taken[fastest]).median, 1.0)
