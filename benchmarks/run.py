"""The input and the output of every part of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.interface import BACKENDS, BackendName
from benchmarks.servers import Servers
from benchmarks.timing import Effort

#: what is written: rows of JSON
Results = list[dict[str, Any]]
QUICK = Effort(rounds=3, seconds=0.002)
#: bytes that the bodies of one way may come to, since a backend in memory keeps them all
KEPT = 64_000_000


@dataclass(frozen=True)
class Run:
    """``kinds``: of the rows in process; ``only``: the backends, none for all; ``quick``: shows that it runs."""

    servers: Servers
    kinds: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    quick: bool = False

    def effort(self, size: int = 1, rounds: int = 15, seconds: float = 0.02) -> Effort:
        """How much to measure with bodies of ``size`` bytes."""
        whole = QUICK if self.quick else Effort(rounds, seconds)
        return replace(whole, most=max(whole.rounds, KEPT // max(size, 1)))

    def backends(self, among: Sequence[BackendName] = BACKENDS) -> list[BackendName]:
        """The chosen ones of these backends."""
        return [backend for backend in among if not self.only or backend in self.only]
