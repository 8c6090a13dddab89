"""What an engine reports once: callers identified by a token alone (O-15), and cookies that name nobody (O-19a)."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from open_idempotency import events
from open_idempotency._core.commands import Claim
from open_idempotency._core.models import Leased
from open_idempotency._core.notify import Advice
from open_idempotency.asgi import IdempotencyMiddleware as AsgiMiddleware
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.wsgi import IdempotencyMiddleware
from tests.unit.builders import lease_of
from tests.unit.core.admissions import Admission
from tests.unit.wsgi.wsgi_server import KEY, environ, hello, serve

TOKEN = [(b"authorization", b"Bearer one")]


def reported(times: int = 1, kind: type[events.Event] = events.CredentialScoped, **admission: Any) -> int:
    """How often this many requests of one engine report this kind of event."""
    requests = [Admission(Leased(lease_of(), ()), **admission) for _ in range(times)]
    for request in requests:
        request.intake.advice = requests[0].intake.advice
        request.run()
    return sum(request.listener.kinds().count(kind) for request in requests)


def test_a_caller_known_by_a_token_alone_is_a_reason_to_warn_once() -> None:
    """A rotated token makes another caller, so it is warned about."""
    assert reported(times=3, headers=TOKEN) == 1


@pytest.mark.parametrize(
    "admission",
    [{"headers": TOKEN, "user": "ada"}, {"headers": TOKEN, "scope": lambda _: "ada"}, {"headers": []}, {"key": None}],
)
def test_a_caller_known_otherwise_is_no_reason_to_warn(admission: dict[str, Any]) -> None:
    """A verified user and ``scope=`` outlive a token; an anonymous caller has none; a request without a key has no
    caller.
    """
    assert reported(**admission) == 0


COOKIE = [(b"cookie", b"csrftoken=1; sid=secret")]
GUEST = {"basket": [7], "csrf_token": "secret"}


@pytest.mark.parametrize(
    "admission", [{"headers": COOKIE}, {"session": GUEST}, {"headers": COOKIE, "user": None, "session": {}}]
)
def test_a_caller_with_cookies_or_a_session_and_no_identity_is_a_reason_to_warn_once(admission: dict[str, Any]) -> None:
    """O-19a: also where the callers of many requests are unknown."""
    assert reported(times=3, kind=events.CallerUnidentified, **admission) == 1


@pytest.mark.parametrize(
    "admission",
    [
        {"headers": []},
        {"headers": [(b"cookie", b"csrftoken=1; XSRF-TOKEN=2; nameless; =3")]},
        {"session": {"csrf_token": "1", "_open_idempotency": {}, "_permanent": True, "_flashes": []}},
        {"headers": COOKIE, "user": "ada"},
        {"headers": COOKIE, "session": {"user_id": 7}},
        {"headers": [*COOKIE, *TOKEN]},
        {"headers": COOKIE, "scope": lambda _: "ada"},
        {"headers": COOKIE, "scope": "anonymous"},
        {"headers": COOKIE, "key": None},
    ],
)
def test_who_is_known_or_has_nothing_that_could_name_somebody_is_no_reason_to_warn(admission: dict[str, Any]) -> None:
    """O-19a: a CSRF token names nobody; ``scope="anonymous"`` says that sharing is intended."""
    assert reported(kind=events.CallerUnidentified, **admission) == 0


def test_the_warning_names_cookies_and_entries_and_no_values() -> None:
    """O-19a: the first five of each, shortened and printable, since the client chooses them."""
    cookies = "; ".join(f"{name}=secret" for name in ("sid", "a\x1b[31m", "n" * 50, "b", "c", "d"))
    admission = Admission(
        Leased(lease_of(), ()),
        headers=[(b"cookie", cookies.encode())],
        session={"basket": "secret", "account": "secret"},
    )
    admission.run()
    (event,) = [each for each in admission.listener.seen if isinstance(each, events.CallerUnidentified)]
    assert event.cookies == ("sid", "a?[31m", "n" * 40, "b", "c")
    assert event.entries == ("basket", "account")
    assert "secret" not in str(event)


def test_the_log_says_once_how_callers_can_be_known(caplog: pytest.LogCaptureFixture) -> None:
    """O-19a: a WARNING of ``open_idempotency`` with the name of the cookie and with each cure."""
    middleware = IdempotencyMiddleware(hello, "memory://")
    for value in ("sid=secret-1", "sid=secret-2"):
        serve(middleware, environ(HTTP_COOKIE=value))
    (record,) = [r for r in caplog.records if r.name == "open_idempotency" and r.levelno == logging.WARNING]
    message = record.getMessage()
    for part in ("'sid'", "session_identity=", "credential_headers=", "scope=", 'scope="anonymous"'):
        assert part in message
    assert "secret" not in message


def test_the_warning_is_reported_before_the_claim() -> None:
    """An operator sees it even if the backend is down."""
    admission = Admission(Leased(lease_of(), ()), headers=TOKEN)
    admission.run()
    reported_at = next(n for n, command in enumerate(admission.script.asked) if type(command).__name__ == "Emit")
    assert reported_at < next(n for n, command in enumerate(admission.script.asked) if isinstance(command, Claim))


def test_of_many_threads_one_gives_the_advice() -> None:
    """Once for each engine, also when its first requests arrive together."""
    advice, together = Advice(), threading.Barrier(8, timeout=10)

    def ask(_: int) -> bool:
        together.wait()
        return advice.due(events.CredentialScoped)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(ask, range(8))) == 1


def test_the_log_says_once_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    """A WARNING of "open_idempotency" that names the cure, and no credentials."""
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
