"""One run of ``admit`` under a script, for the tests of admission."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from open_idempotency._core.admission import Intake, admit
from open_idempotency._core.commands import Claim, Release, Withdraw
from open_idempotency._core.models import Identity, Response
from open_idempotency._core.stored_response import encode_response
from open_idempotency.policy import IdempotencyPolicy
from tests.unit.builders import OWNER, Listener, Script, body_of, request_of

KEY = (b"idempotency-key", b"0123456789abcdef")
FRAME = encode_response(Response(201, [(b"location", b"/1")], b"made"))
TOMBSTONE = encode_response(Response(201, [(b"location", b"/1")], None))


class Admission:
    """One run of ``admit`` under a script; ``result`` is an attempt or a response."""

    def __init__(
        self,
        *claims: Any,
        key: tuple[bytes, bytes] | None = KEY,
        headers: list[tuple[bytes, bytes]] | None = None,
        releases: tuple[Any, ...] = (),
        withdrawals: tuple[Any, ...] = (None,),
        receive: Any = None,
        user: str | None = None,
        session: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        self.listener = Listener()
        self.policy = IdempotencyPolicy(on_event=self.listener, **fields)
        self.script = Script({Claim: list(claims), Release: list(releases), Withdraw: list(withdrawals)})
        request = request_of(headers=headers or [])
        fields_of_key = [key] if key else []
        self.intake = Intake(
            request, fields_of_key, OWNER, lambda: Identity(user, session=session), receive or (lambda: body_of(b"{}"))
        )

    def run(self) -> Any:
        """Run ``admit``; return the attempt or the response."""
        return self.script.run(admit(self.intake, self.policy))

    def problem(self) -> dict[str, Any]:
        """Run ``admit``; return the members of the problem that it ends with."""
        response = self.run()
        assert isinstance(response, Response)
        assert (b"content-type", b"application/problem+json") in response.headers
        members: dict[str, Any] = json.loads(response.body or b"")
        assert members["status"] == response.status
        return members


def name(problem: dict[str, Any]) -> str:
    """The last part of a problem's type."""
    return str(problem["type"]).rpartition(":")[2]
