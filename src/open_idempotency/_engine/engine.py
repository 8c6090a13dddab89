"""The engine that every adapter holds: policy, sync and async backend, performers and heartbeat.

Built once, at start, where wrong configuration is refused; opens nothing until the first request.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from open_idempotency._core import canonical_json
from open_idempotency._core.notify import Advice
from open_idempotency._engine.heartbeat import Heartbeat
from open_idempotency._engine.performers import AsyncPerformer, Performer
from open_idempotency.backends.registry import Given, open_backend
from open_idempotency.backends.threaded import ThreadedBackend
from open_idempotency.exceptions import ConfigurationError
from open_idempotency.ledger.looking import alook, look
from open_idempotency.policy import SESSION_IDENTITY, IdempotencyPolicy, make_policy
from open_idempotency.rules import Rule


class Engine:
    """What an adapter needs to protect requests.

    ``backend``: a URL, a sync or async instance, or a client that a backend takes. ``threads``: the adapter is sync, so
    coroutines under it live on short-lived event loops and reach the backend through threads. ``sessions``: the adapter
    reads sessions. Raises ``ConfigurationError``.
    """

    def __init__(
        self,
        backend: Given | None,
        policy: IdempotencyPolicy | None,
        fields: Mapping[str, Any],
        *,
        threads: bool,
        sessions: bool = True,
    ) -> None:
        self._sessions = sessions
        self.policy = make_policy(policy, fields)
        self.backend = open_backend(_named(backend))
        self._check(self.policy)
        self.heartbeat = Heartbeat(self.backend)
        self.sync = Performer(self.backend, self.heartbeat, look)
        asynchronous = ThreadedBackend(self.backend) if threads else self.backend.to_async()
        self.aio = AsyncPerformer(asynchronous, self.heartbeat, alook)
        self.advice = Advice()
        self._policies: dict[Rule, IdempotencyPolicy] = {}

    def policy_for(self, rule: Rule | None) -> IdempotencyPolicy | None:
        """The policy of a route with this rule, None for an exempt one; made and checked once for each rule."""
        if rule is None:
            return self.policy
        if rule.exempt:
            return None
        policy = self._policies.get(rule)
        if policy is None:
            policy = self.policy.replace(**rule.fields)
            self._check(policy)
            self._policies[rule] = policy
        return policy

    def _check(self, policy: IdempotencyPolicy) -> None:
        if policy.fingerprint == "json":
            canonical_json.prepare()
        if policy.max_live_keys is not None and not self.backend.quotas:
            raise ConfigurationError(
                f"max_live_keys: {type(self.backend).__name__} has no quotas; leave it out, or take another backend"
            )
        if not self._sessions and policy.session_identity != SESSION_IDENTITY:
            raise ConfigurationError(
                "session_identity: WSGI hands on no decoded session, so this has no effect; return the caller by scope="
            )
        slowest = self.backend.call_timeout
        if slowest >= policy.lease:
            raise ConfigurationError(
                f"lease: {policy.lease} s is not longer than the slowest backend call ({slowest} s); raise lease, "
                "or lower the backend's timeout (?timeout= in its URL)"
            )


def _named(backend: Given | None) -> Given:
    if backend is None:
        raise ConfigurationError('backend: none given; pass a URL such as backend="sqlite:///idempotency.db"')
    return backend


def new_owner() -> bytes:
    """A random id for one request's claim; a claim resent with it is recognised as the same one."""
    return os.urandom(16)
