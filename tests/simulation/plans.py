"""The plan of a seed: the clients, the work of the handlers, and the kinds of faults."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.simulation.site import Order

#: the kinds of trouble; each history has some of them
KINDS = (
    "lost_request", "lost_reply", "doubled", "late", "slow", "held", "local",
    "crash", "freeze", "block", "outage", "full", "vanish", "jump", "cancel", "leave", "errors", "long",
)  # fmt: skip
#: faults after which an effect may be repeated, or get no response
UNCALM = frozenset(KINDS) - {"cancel", "leave", "errors", "long"}


#: after these a request may end without an outcome, and its client gets 409
POLICIES: list[tuple[str, Any]] = [
    ("max_attempts", 2), ("on_failed", "replay"), ("on_failed", "reject"), ("on_abandoned", "reject"),
]  # fmt: skip


@dataclass
class Plan:
    """The plan of one seed."""

    seed: int
    workers: int = 2
    stages: int = 2
    orders: list[Order] = field(default_factory=list)
    rates: dict[str, float] = field(default_factory=dict)
    wait: float = 0.0
    #: whether the stages record their intent first, and are not repeated where they are in doubt (S-04)
    external: bool = False
    #: the share of the handlers' work that runs in threads
    threads: float = 0.0
    #: whether cancellations can be delayed while threads run, as on a supported event loop
    holds: bool = True
    #: policy fields that are not as by default
    policy: dict[str, Any] = field(default_factory=dict)

    @property
    def is_calm(self) -> bool:
        """Whether every effect has to happen exactly once."""
        # Without that delay a thread ends unnoticed, and a retry repeats its work.
        return UNCALM.isdisjoint(self.rates) and (self.holds or not self.threads or "cancel" not in self.rates)

    def __str__(self) -> str:
        rates = ", ".join(f"{kind} {rate:g}" for kind, rate in self.rates.items()) or "no trouble"
        stages = f"{self.stages} {'external ' if self.external else ''}stages"
        if self.threads:
            stages += f", threads {self.threads:g}{'' if self.holds else ' that hold nothing back'}"
        policy = "".join(f", {name}={value!r}" for name, value in self.policy.items())
        return f"seed {self.seed}: {self.workers} workers, {stages}, {len(self.orders)} clients{policy}; {rates}"


def plan(seed: int) -> Plan:
    """The plan of a seed. Each history has a few kinds of faults, so that none hides behind another."""
    random = Random(seed)
    kinds = KINDS if seed % 6 else sorted(set(KINDS) - UNCALM)
    rates = {kind: random.choice([0.02, 0.1, 0.3]) for kind in kinds if random.random() < 0.25}
    made = Plan(seed, random.randint(1, 3), random.randint(0, 3), rates=rates, wait=random.choice([0.0, 0.0, 4.0]))
    for number in range(random.randint(1, 2)):
        key = f"key-{number}-0123456789abcdef"
        for user in ["alice", "bob"][: random.choice([1, 1, 2])]:
            for _ in range(random.randint(1, 3)):
                made.orders.append(Order(key, user, b"mug"))
            if random.random() < 0.25:
                made.orders.append(Order(key, user, b"cup"))
    made.external = random.random() < 0.25
    if random.random() < 0.2:
        made.policy = dict([random.choice(POLICIES)])
    made.threads, made.holds = random.choice([0.0, 0.0, 0.3, 1.0]), random.random() < 0.6
    return made
