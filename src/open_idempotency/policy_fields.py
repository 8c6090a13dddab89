"""The policy's fields as keyword arguments, for type checkers: they check ``add_middleware(...)`` by name.

``IdempotencyPolicy`` documents each field and its values; a test keeps the two alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    from open_idempotency._core.models import Ledger, Request, Response, Sealer
    from open_idempotency._core.problems import Problem
    from open_idempotency.events import Listener

__all__ = ["PolicyFields"]


class PolicyFields(TypedDict, total=False):
    """The fields of ``IdempotencyPolicy`` as a caller may write them: any iterable, seconds or a timedelta."""

    enabled: bool
    cover: Literal["methods", "marked"]
    methods: Iterable[str]
    required: bool
    header: str
    aliases: Iterable[str]
    profile: Literal["lenient", "strict"]
    validate: Callable[[str], object] | None
    key: Callable[[Request], str | None] | None
    echo_key: bool
    scope: Callable[[Request], str] | Literal["anonymous"] | None
    session_identity: str | Sequence[str]
    credential_headers: Iterable[str]
    scope_by_host: bool
    scope_by_route: bool
    application: str
    fingerprint: Literal["auto", "json", "jcs", "none"] | Callable[[Request], bytes]
    fingerprint_parts: Iterable[str]
    fingerprint_headers: Iterable[str]
    fingerprint_ignore: Iterable[str]
    secret: bytes | None
    max_live_keys: int | None
    lease: float | timedelta
    ttl: float | timedelta
    error_ttl: float | timedelta | None
    max_run: float | timedelta
    wait: float | timedelta
    max_wait: float | timedelta
    max_waiting: int | None
    respond_within: float | timedelta
    record_within: float | timedelta | None
    stream_grace: float | timedelta
    on_failed: Literal["resume", "replay", "reject"]
    on_abandoned: Literal["resume", "reject"]
    max_attempts: int | None
    ledger: Ledger | None
    fail_open: bool
    store: Callable[[Response], bool | None] | None
    drop_headers: Iterable[str]
    keep_headers: Iterable[str]
    redact: Callable[[Response], Response] | None
    on_replay: Callable[[Response, Request], Response] | None
    encryption: Sealer | None
    plain_records: Literal["refuse", "accept", "write"]
    max_request_bytes: int
    max_response_bytes: int
    max_stage_bytes: int
    spool_bytes: int
    strict_stages: bool
    docs_url: str | None
    problem_headers: Mapping[str, str] | Iterable[tuple[str, str]]
    compat: Literal["stripe"] | None
    render_problem: Callable[[Problem], Response] | None
    on_event: Listener | None
