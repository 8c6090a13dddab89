"""What an engine tells its operator once: a caller that is known by its token alone is somebody else with the next."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from open_idempotency import events
from open_idempotency._core.commands import Claim
from open_idempotency._core.models import Leased
from open_idempotency._core.telling import Advice
from open_idempotency.asgi import IdempotencyMiddleware as AsgiMiddleware
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.wsgi import IdempotencyMiddleware
from tests.unit.admissions import Admission
from tests.unit.builders import lease_of
from tests.unit.wsgi_server import KEY, environ, hello, serve

TOKEN = [(b"authorization", b"Bearer one")]


def told(times: int = 1, **admission: Any) -> int:
    """How often so many requests that share their advice tell it."""
    requests = [Admission(Leased(lease_of(), ()), **admission) for _ in range(times)]
    for request in requests:
        request.intake.advice = requests[0].intake.advice
        request.run()
    return sum(request.listener.kinds().count(events.CredentialScoped) for request in requests)


def test_a_caller_known_by_a_token_alone_is_a_reason_to_warn_once() -> None:
    """A rotating token is warned about."""
    assert told(times=3, headers=TOKEN) == 1


@pytest.mark.parametrize(
    "admission",
    [{"headers": TOKEN, "user": "ada"}, {"headers": TOKEN, "scope": lambda _: "ada"}, {"headers": []}, {"key": None}],
)
def test_a_caller_known_otherwise_is_no_reason_to_warn(admission: dict[str, Any]) -> None:
    """A verified user and ``scope=`` outlive a token; nobody has none; without a key nobody asks."""
    assert told(**admission) == 0


def test_the_warning_is_told_before_the_claim() -> None:
    """An operator hears of it although the backend is down."""
    admission = Admission(Leased(lease_of(), ()), headers=TOKEN)
    admission.run()
    told_at = next(n for n, command in enumerate(admission.script.asked) if type(command).__name__ == "Emit")
    assert told_at < next(n for n, command in enumerate(admission.script.asked) if isinstance(command, Claim))


def test_of_many_threads_one_is_told_to_give_the_advice() -> None:
    """Once for each engine, also when its first requests come together."""
    advice, together = Advice(), threading.Barrier(8, timeout=10)

    def ask(_: int) -> bool:
        together.wait()
        return advice.due()

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(ask, range(8))) == 1


def test_the_log_says_once_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    """A WARNING of "open_idempotency" that names the way out, and no credentials."""
    middleware = IdempotencyMiddleware(hello, "memory://")
    for token in ("Bearer one", "Bearer two"):
        serve(middleware, environ(HTTP_AUTHORIZATION=token))
    (record,) = [r for r in caplog.records if r.name == "open_idempotency" and r.levelno == logging.WARNING]
    assert "a client whose token changes between two tries is a new caller" in record.getMessage()
    assert "scope=" in record.getMessage()
    assert "Bearer" not in record.getMessage()


def test_each_engine_says_it_for_itself() -> None:
    """Two applications in one process may be configured differently."""
    seen: list[events.Event] = []
    for _ in range(2):
        serve(IdempotencyMiddleware(hello, "memory://", on_event=seen.append), environ(HTTP_AUTHORIZATION="Bearer one"))
    assert [type(event) for event in seen].count(events.CredentialScoped) == 2


# The policy field that a middleware's own argument must not hide


def test_two_wsgi_applications_share_a_backend_under_their_names() -> None:
    """``application`` is a keyword of the middleware."""
    backend = MemoryBackend()
    for name in ("shop", "bank"):
        serve(IdempotencyMiddleware(hello, backend, application=name), environ(key=KEY))
    assert len(list(backend.scan())) == 2


async def _nothing(scope: Any, receive: Any, send: Any) -> None:
    """An application that is never called."""


def test_an_asgi_application_is_named_by_a_keyword() -> None:
    """``application`` is a keyword of the middleware."""
    middleware = AsgiMiddleware(_nothing, "memory://", application="shop")
    assert (middleware.app, middleware.engine.policy.application) == (_nothing, "shop")
