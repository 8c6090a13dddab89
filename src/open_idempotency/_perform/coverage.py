"""How requests are covered, by the rules that apply to their route."""

from __future__ import annotations

from typing import NamedTuple

from open_idempotency._core.keys import key_names
from open_idempotency._perform.engine import Engine
from open_idempotency.policy import IdempotencyPolicy
from open_idempotency.rules import Rule, combine


class Coverage(NamedTuple):
    """The policy, and the lower-case names of the fields that carry keys under it."""

    policy: IdempotencyPolicy
    names: frozenset[bytes]


class Coverages:
    """Those of one engine, each made once."""

    __slots__ = ("_engine", "_known", "default", "largest_request")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[tuple[Rule, ...], Coverage | None] = {}
        #: where no rule applies
        self.default = Coverage(engine.policy, key_names(engine.policy))
        #: the largest ``max_request_bytes`` of those that were made
        self.largest_request = engine.policy.max_request_bytes

    def by(self, rules: tuple[Rule, ...]) -> Coverage | None:
        """What these rules make of the engine's policy, the nearest last; None where the route is exempt.

        Raises ``ConfigurationError`` for rules that contradict the policy.
        """
        if not rules:
            return self.default
        if rules not in self._known:
            policy = self._engine.policy_for(combine(rules))
            self._known[rules] = None if policy is None else Coverage(policy, key_names(policy))
            if policy is not None:
                self.largest_request = max(self.largest_request, policy.max_request_bytes)
        return self._known[rules]
