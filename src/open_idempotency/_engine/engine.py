"""The engine that every adapter holds: policy, sync and async backend, performers and heartbeat.

Built once, at start, where wrong configuration is refused; opens nothing until the first request.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from open_idempotency import rules
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

_logger = logging.getLogger("open_idempotency")
_said_off = False


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
        if not self.policy.enabled:
            say_off()
            # Each request runs as one without a key, wherever no key is needed.
            self.policy = self.policy.replace(required=False, strict_stages=False)
            backend = "memory://" if backend is None else backend
        self.backend = open_backend(_named(backend))
        self._check(self.policy)
        self.heartbeat = Heartbeat(self.backend)
        self.sync = Performer(self.backend, self.heartbeat, look)
        asynchronous = ThreadedBackend(self.backend) if threads else self.backend.to_async()
        self.aio = AsyncPerformer(asynchronous, self.heartbeat, alook)
        self.advice = Advice()
        #: which rules views have
        self.rules = rules.registry
        self._policies: dict[Rule, IdempotencyPolicy] = {}

    def policy_for(self, rule: Rule | None) -> IdempotencyPolicy | None:
        """The policy of a route with this rule; made and checked once for each rule.

        None for an exempt route, and for one without a rule where only marked routes are covered.
        """
        if rule is None:
            return None if self.policy.cover == "marked" else self.policy
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


def say_off() -> None:
    """Warn, once in each process, that nothing is protected."""
    global _said_off
    if not _said_off:
        _said_off = True
        _logger.warning(
            "enabled=False switches idempotency off in this process: no key is read, no response is stored, and a "
            "retry runs again. That is meant for tests; remove it anywhere else"
        )


def _named(backend: Given | None) -> Given:
    if backend is None:
        raise ConfigurationError('backend: none given; pass a URL such as backend="sqlite:///idempotency.db"')
    return backend


def new_owner() -> bytes:
    """A random id for one request's claim; a claim resent with it is recognised as the same one."""
    return os.urandom(16)
