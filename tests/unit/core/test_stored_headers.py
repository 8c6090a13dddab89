"""Which response headers are stored, how a policy changes that, and how a replay without some of them is reported."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import flask
import pytest
from werkzeug.test import Client as WsgiClient

from open_idempotency import events
from open_idempotency._core.models import Cors, Response
from open_idempotency._core.stored_response import (
    RESPONSE,
    decode_response,
    encode_response,
    omitted,
    storable,
    stored_form,
)
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.encryption import EncryptionKeys
from open_idempotency.flask import Idempotency, idempotent
from open_idempotency.policy import IdempotencyPolicy
from open_idempotency.redaction import tombstone
from tests.unit.builders import Listener, Script, lease_of
from tests.unit.every_adapter import ADAPTERS, FIELDS, Reply

KEYS = EncryptionKeys({"2026": bytes(range(32))})
COOKIE = ("Set-Cookie", "session=secret")
TOKEN = ("Authorization", "Bearer secret")
ALLOW_ORIGIN = b"access-control-allow-origin"

by_every_adapter = pytest.mark.parametrize("adapter", ADAPTERS)


class Twice:
    """A request and its retry, and the events of both."""

    def __init__(self, adapter: str, *sent: tuple[str, str], **policy: Any) -> None:
        self.backend, self.listener = MemoryBackend(), Listener()
        send = ADAPTERS[adapter](self.backend, sent, on_event=self.listener, **policy)
        self.first: Reply = send()
        self.again: Reply = send()
        assert (self.first.status, self.first.body) == (201, b"ran")

    @property
    def lacking(self) -> list[str]:
        """The names of the headers that each replay lacked."""
        found = [event for event in self.listener.seen if isinstance(event, events.ReplayedWithoutCredentials)]
        assert all(event.status == 201 for event in found)
        return [event.headers for event in found]


@by_every_adapter
@pytest.mark.parametrize("credentials", [COOKIE, TOKEN], ids=["cookie", "token"])
def test_credentials_of_a_response_are_not_stored(adapter: str, credentials: tuple[str, str]) -> None:
    """O-21, O-21a: the first client gets them, and the record does not have them; a replay without them is reported."""
    twice = Twice(adapter, credentials, ("X-Kept", "1"))
    assert "secret" in twice.first.headers[credentials[0].lower()]
    assert credentials[0].lower() not in twice.again.headers
    assert (twice.again.headers["x-kept"], twice.again.headers["idempotent-replayed"]) == ("1", "true")
    (record,) = twice.backend.scan()
    assert b"secret" not in (record.response or b"")
    assert twice.lacking == [credentials[0].lower()]
    assert "idempotency-omitted" not in {**twice.first.headers, **twice.again.headers}


@by_every_adapter
def test_a_response_without_credentials_is_no_event(adapter: str) -> None:
    """O-21a: nor is a response that lacks other headers, such as Date."""
    assert Twice(adapter, ("Age", "1"), ("X-Kept", "1")).lacking == []


@by_every_adapter
def test_a_policy_leaves_further_headers_out(adapter: str) -> None:
    """O-21: names are compared in any case; with ``Set-Cookie`` among them the omission is intended, and is not
    reported.
    """
    twice = Twice(adapter, ("X-Internal", "1"), ("X-Kept", "1"), COOKIE, drop_headers=["x-internal", "SET-COOKIE"])
    assert twice.first.headers["x-internal"] == "1"
    assert "x-internal" not in twice.again.headers
    assert "set-cookie" not in twice.again.headers
    assert twice.again.headers["x-kept"] == "1"
    assert twice.lacking == []


@by_every_adapter
def test_a_policy_keeps_headers_that_are_left_out(adapter: str) -> None:
    """O-21: headers such as Date, and families of headers with a common prefix."""
    sent = [("Server-Timing", "db;dur=1"), ("Access-Control-Expose-Headers", "ETag"), ("Age", "7")]
    twice = Twice(adapter, *sent, keep_headers=["server-timing", "Access-Control-Expose-Headers"])
    assert twice.again.headers["server-timing"] == "db;dur=1"
    assert twice.again.headers["access-control-expose-headers"] == "ETag"
    assert "age" not in twice.again.headers


@by_every_adapter
def test_encrypted_credentials_may_be_kept(adapter: str) -> None:
    """O-21: each replay then has them, the record does not show them, and nothing is reported."""
    policy = {"keep_headers": ["Set-Cookie", "Authorization"], "encryption": KEYS}
    twice = Twice(adapter, COOKIE, ("Set-Cookie", "other=2; HttpOnly; Path=/"), TOKEN, **policy)
    assert (twice.again.headers["set-cookie"], twice.again.headers["authorization"]) == (
        twice.first.headers["set-cookie"],
        "Bearer secret",
    )
    assert "other=2" in twice.again.headers["set-cookie"]
    (record,) = twice.backend.scan()
    assert b"secret" not in (record.response or b"")
    assert twice.lacking == []


def test_a_rule_has_headers_of_its_own() -> None:
    """O-21: a rule may set these fields as it may set every policy field."""
    app = flask.Flask("shop")

    def view() -> Any:
        response = flask.make_response("ran", 201)
        response.headers["X-Internal"] = response.headers["Age"] = "1"
        return response

    app.add_url_rule("/plain", "plain", view, methods=["POST"])
    ruled = idempotent(drop_headers=["X-Internal"], keep_headers=["Age"])(lambda: view())
    app.add_url_rule("/ruled", "ruled", ruled, methods=["POST"])
    Idempotency(app, "memory://", scope_by_route=True)
    found = {}
    for path in ("/plain", "/ruled"):
        for _ in range(2):
            response = app.test_client().post(path, headers=FIELDS)
        found[path] = "X-Internal" in response.headers, "Age" in response.headers
    assert found == {"/plain": (True, False), "/ruled": (False, True)}


def test_the_configuration_of_flask_has_the_fields() -> None:
    """O-21: the configuration has these fields as it has every policy field."""
    app = flask.Flask("shop")
    app.config.update(
        IDEMPOTENCY_BACKEND="memory://", IDEMPOTENCY_DROP_HEADERS=["X-A"], IDEMPOTENCY_KEEP_HEADERS=["Age"]
    )
    Idempotency(app)
    policy = app.extensions["open_idempotency"].policy
    assert (policy.drop_headers, policy.keep_headers) == (("X-A",), ("Age",))


@pytest.mark.parametrize(
    ("redact", "lacking"),
    [
        (lambda response: response, ["set-cookie"]),
        (
            lambda response: Response(response.status, [*response.headers, (b"x-more", b"1")], response.body),
            ["set-cookie"],
        ),
        (lambda response: replace(response, headers=[]), ["set-cookie"]),
        (tombstone, []),
    ],
    ids=["none", "adds", "clears", "tombstone"],
)
def test_a_hook_that_redacts_changes_nothing_of_it(redact: Callable[[Response], Response], lacking: list[str]) -> None:
    """O-21a: the hook does not see the note about omitted headers, and cannot remove it. A response that is not
    replayed lacks nothing.
    """
    seen: list[Any] = []

    def hook(response: Response) -> Response:
        seen.extend(name.lower() for name, _ in response.headers)
        return redact(response)

    twice = Twice("wsgi", COOKIE, redact=hook)
    assert twice.lacking == lacking
    assert not {b"set-cookie", b"idempotency-omitted"} & set(seen)


def test_what_a_hook_takes_out_of_kept_credentials_is_reported() -> None:
    """O-21a: a header that the hook removes is missing too."""
    policy = {"keep_headers": ["Set-Cookie"], "encryption": KEYS}
    twice = Twice("wsgi", COOKIE, redact=lambda response: Response(response.status, [], response.body), **policy)
    assert twice.lacking == ["set-cookie"]


def test_an_application_cannot_write_the_note() -> None:
    """O-21a: a header of this name from the application is not stored."""
    twice = Twice("wsgi", ("Idempotency-Omitted", "set-cookie"), ("X-Kept", "1"))
    assert twice.lacking == []
    assert "idempotency-omitted" not in twice.again.headers


def test_the_log_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    """O-21a: a warning, with and without a listener; the cookie itself is not in it."""
    send = ADAPTERS["wsgi"](MemoryBackend(), [COOKIE])
    for _ in range(2):
        send()
    (said,) = [r for r in caplog.records if r.levelno == logging.WARNING and "WithoutCredentials" in r.getMessage()]
    assert "exempt a view that logs in" in said.getMessage()
    assert "secret" not in said.getMessage()


def test_a_session_that_a_view_begins_in_flask_is_reported() -> None:
    """O-21a: Flask sets its cookie after the view."""
    app = flask.Flask("shop")
    app.secret_key = "only for tests"
    app.post("/0")(lambda: (flask.session.update(user="ada"), ("in", 201))[1])
    listener = Listener()
    Idempotency(app, "memory://", scope=lambda request: "all", on_event=listener)
    client = WsgiClient(app, use_cookies=False)
    first, again = client.post("/0", headers=FIELDS), client.post("/0", headers=FIELDS)
    assert ("Set-Cookie" in first.headers, again.headers["Idempotent-Replayed"]) == (True, "true")
    assert events.ReplayedWithoutCredentials in listener.kinds()


# What is stored, in bytes


def test_the_note_is_a_header_that_every_version_of_the_format_reads() -> None:
    """O-21a, B-13: the note is the first header of the frame. An earlier version sends it on, and it is true there."""
    frame = encode_response(Response(201, [(b"x", b"1")], b"ran", b"set-cookie"))
    as_ever = encode_response(Response(201, [(b"idempotency-omitted", b"set-cookie"), (b"x", b"1")], b"ran"))
    assert frame == as_ever
    read = decode_response(frame)
    assert (read.headers, read.omitted) == ([(b"x", b"1")], b"set-cookie")


def test_the_names_are_those_of_the_credentials_that_are_missing() -> None:
    """O-21a: each name once, sorted, in any case."""
    live = [(b"Set-Cookie", b"a"), (b"authorization", b"b"), (b"x", b"1"), (b"SET-COOKIE", b"c")]
    small = storable(Response(201, live, b""), IdempotencyPolicy(max_response_bytes=10))
    assert omitted(small, live, ()) == b"authorization, set-cookie"
    assert omitted(small, live, ("Set-Cookie",)) == b"authorization"
    assert omitted(storable(Response(201, live, b"too long"), IdempotencyPolicy(max_response_bytes=1)), live, ()) == b""


def test_a_response_without_credentials_is_stored_as_ever() -> None:
    """O-21a, B-13: its frame is the same, byte by byte."""
    plain = Response(201, [(b"x", b"1")], b"ran")
    assert encode_response(plain) == b"\x01\x00\x00\xc9\x00\x01\x00\x00\x00\x03\x00\x01\x00\x00\x00\x01x1ran"


def test_cors_headers_are_notes_that_no_browser_reads_where_an_earlier_version_sends_them() -> None:
    """R-11, B-13: an earlier version sends all headers of a frame to every origin."""
    cors = Cors(
        b"https://app.example", [(b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", b"x")]
    )
    frame = encode_response(Response(201, [(b"x", b"1")], b"ran", b"set-cookie", cors))
    read_before = [
        (b"idempotency-omitted", b"set-cookie"),
        (b"idempotency-origin", b"https://app.example"),
        (b"idempotency-access-control-allow-origin", b"*"),
        (b"idempotency-access-control-expose-headers", b"x"),
        (b"x", b"1"),
    ]
    assert frame == encode_response(Response(201, read_before, b"ran"))
    read = decode_response(frame)
    assert (read.headers, read.omitted, read.cors) == ([(b"x", b"1")], b"set-cookie", cors)


def test_a_header_of_the_application_is_not_taken_for_a_cors_header() -> None:
    """R-11: whatever its prefix and position."""
    own = [(b"idempotency-key", b"k"), (b"Idempotency-Access", b"1")]
    cors = Cors(b"", [(b"access-control-allow-origin", b"*")])
    read = decode_response(encode_response(Response(201, own, b"ran", cors=cors)))
    assert (read.headers, read.cors) == (own, cors)
    assert decode_response(encode_response(Response(201, own, b"ran"))).headers == own


@pytest.mark.parametrize(
    ("origin", "stored"),
    [
        ([], b""),
        ([b"https://a.example"], b"https://a.example"),
        ([b"null"], b"null"),
        ([b"https://a.example", b"https://a.example"], None),
        ([b"https://a.example\x00"], None),
        ([b"h" * 513], None),
    ],
)
def test_cors_headers_are_stored_for_an_origin_that_a_browser_sends(origin: list[bytes], stored: bytes | None) -> None:
    """R-11: any other ``Origin`` costs these headers, and not the response."""
    live = Response(201, [(b"Access-Control-Allow-Origin", b"*"), (b"x", b"1")], b"ran")
    small = storable(live, IdempotencyPolicy(), [(b"origin", value) for value in origin])
    assert small.headers == [(b"x", b"1")]
    assert small.cors == (None if stored is None else Cors(stored, [(b"access-control-allow-origin", b"*")]))


@pytest.mark.parametrize(
    ("fields", "headers", "cors"),
    [
        (
            {"keep_headers": ["Access-Control-Allow-Origin"]},
            [b"access-control-allow-origin"],
            [b"access-control-max-age"],
        ),
        ({"drop_headers": ["ACCESS-CONTROL-ALLOW-ORIGIN"]}, [], [b"access-control-max-age"]),
        ({"max_response_bytes": 1}, [], None),
    ],
)
def test_the_policy_says_of_cors_headers_too_who_gets_them(fields: Any, headers: Any, cors: Any) -> None:
    """R-11, O-21: kept ones are sent to every origin, dropped ones to none; a tombstone has none."""
    live = [(b"access-control-allow-origin", b"*"), (b"access-control-max-age", b"1")]
    small = storable(Response(201, live, b"ran"), IdempotencyPolicy(**fields), [(b"origin", b"null")])
    assert [name for name, _ in small.headers] == headers
    assert (small.cors and [name for name, _ in small.cors.headers]) == cors


def test_a_hook_that_redacts_changes_nothing_of_the_cors_headers() -> None:
    """R-11: the hook does not see them, and a response that it creates has them too."""
    policy = IdempotencyPolicy(redact=lambda response: Response(response.status, [(b"x", b"2")], b"-"))
    live = Response(201, [(b"access-control-allow-origin", b"*")], b"ran")
    frame, _ = Script().run(stored_form(live, RESPONSE, lease_of(), policy))
    assert decode_response(frame).cors == Cors(b"", [(b"access-control-allow-origin", b"*")])
