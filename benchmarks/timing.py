"""The method: all ways in turn, round after round, the order rotated; medians, quartiles, ratios within a round.

A machine whose speed drifts slows all ways of a round alike, so ratios are taken in each round, and their median is
reported.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

#: carries out so many requests; the seconds that they took
Batch = Callable[[int], float]
#: microseconds a request, one for each round
Series = Sequence[float]


@dataclass(frozen=True, slots=True)
class Effort:
    """``rounds`` of batches of about ``seconds``; a way gets no more than ``most`` requests in total."""

    rounds: int
    seconds: float
    most: int = 100_000


@dataclass(frozen=True, slots=True)
class Spread:
    """A median, and the quartiles around it."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def interleaved(ways: Mapping[str, Batch], effort: Effort, least: int = 1) -> dict[str, list[float]]:
    """Time the ways; ``least``: requests in a batch, such as those that run concurrently."""
    sizes = {name: _size(batch, effort, least) for name, batch in ways.items()}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(effort.rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            taken[name].append(ways[name](sizes[name]) / sizes[name] * 1e6)
    return taken


def _size(batch: Batch, effort: Effort, least: int) -> int:
    batch(1)  # tables are made, code is loaded
    batch(least)  # connections are opened
    each = batch(least) / least
    return max(least, min(int(effort.seconds / each), effort.most // (effort.rounds + 2)))


def spread(series: Series) -> Spread:
    """Median and quartiles of some values."""
    if len(series) < 2:
        return Spread(series[0], series[0], series[0])
    low, middle, high = statistics.quantiles(series, n=4, method="inclusive")
    return Spread(middle, low, high)


def ratio(series: Series, to: Series) -> Spread:
    """One way's time as a multiple of another's, round by round."""
    return spread([one / other for one, other in zip(series, to, strict=True)])


def added(series: Series, floor: Series, layer: Series) -> Spread:
    """What a way adds to the do-nothing layer, as a multiple of what the floor adds.

    What the floor adds is the median over rounds: in a single round the difference of two small times may be almost
    zero.
    """
    floor_adds = statistics.median(one - other for one, other in zip(floor, layer, strict=True))
    return spread([(one - other) / floor_adds for one, other in zip(series, layer, strict=True)])
