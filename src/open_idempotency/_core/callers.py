"""Who sent a request with a key, and which records other callers would have for it (O-14)."""

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
    """Who sent a request with a key. ``identity``: what the framework and the session say of its caller.

    ``own``: the id of the record that its scope at the claim says, which need not be the one at which it began.
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
        """Whether the caller is somebody."""
        return self.names(self.identity)

    def names(self, identity: Identity) -> bool:
        """Whether it is somebody: a user, whoever ``scope=`` says, or whom the session names."""
        if identity.user is not None or callable(self.policy.scope):
            return True
        return named_by_session(identity.session, self.policy.session_identity) is not None

    def as_left(self, user: str | None, session: Mapping[str, Any] | None) -> Identity:
        """Who the caller is behind the view: the user, and the session that may name somebody where there is none."""
        return self.identity._replace(user=user, session=None if user is not None else session)

    def record(self, identity: Identity) -> bytes | None:
        """The id of the record that this request would have, if this caller sent it; None if that cannot be known."""
        try:
            scope = caller_scope(self.request, identity, self.key, self.policy)
        except IdempotencyError:
            return None
        return record_id(scope, self.key, self.request, self.policy)

    def of_session(self, digest: str) -> bytes:
        """What this request has in common with others of one session: an id that no user's record can have.

        A browser may show one session to several tenants, so it is another one in each.
        """
        scope = within("session:" + digest, self.request, self.identity, self.policy)
        return record_id(scope, self.key, self.request, self.policy)
