"""Who sent a request with a key, and which records other callers would have for the same request (O-14)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from open_idempotency._core.keys import caller_scope, record_id, within
from open_idempotency._core.requests import Identity, Request
from open_idempotency._core.session_identity import named_by_session
from open_idempotency.exceptions import IdempotencyError
from open_idempotency.policy import IdempotencyPolicy


@dataclass(slots=True)
class Caller:
    """Who sent a request with a key. ``identity``: what the framework and the session say of the caller.

    ``own``: the id of the record that belongs to the caller's scope at the claim. The request may have begun at
    another.
    """

    request: Request
    key: str
    policy: IdempotencyPolicy
    identity: Identity
    own: bytes

    @property
    def user(self) -> str | None:
        """The framework's verified user, None without one."""
        return self.identity.user

    @property
    def named(self) -> bool:
        """Whether the caller is known by more than its credentials."""
        return self.names(self.identity)

    def names(self, identity: Identity) -> bool:
        """Whether an identity names somebody: a user, the result of ``scope=``, or an entry of the session."""
        if identity.user is not None or callable(self.policy.scope):
            return True
        return named_by_session(identity.session, self.policy.session_identity) is not None

    def as_left(self, user: str | None, session: Mapping[str, Any] | None) -> Identity:
        """The caller after the view: the user, or the session, which may name somebody if there is no user."""
        return self.identity._replace(user=user, session=None if user is not None else session)

    def record(self, identity: Identity) -> bytes | None:
        """The id of the record that this request would have from this caller; None if that cannot be known."""
        try:
            scope = caller_scope(self.request, identity, self.key, self.policy)
        except IdempotencyError:
            return None
        return record_id(scope, self.key, self.request, self.policy)

    def of_session(self, digest: str) -> bytes:
        """An id for this request under one session, by the session's digest. No user's record can have this id.

        A browser may show one session to several tenants, so each tenant has another id.
        """
        scope = within("session:" + digest, self.request, self.identity, self.policy)
        return record_id(scope, self.key, self.request, self.policy)
