"""``key=`` on every adapter: where a key is read, what is refused, and what passes without protection."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from open_idempotency import ConfigurationError, KeyRejected, events, key_from, rules
from open_idempotency.exceptions import KeyUnknown
from open_idempotency.hooks import Request
from tests.django_project.calls import WatchedBackend
from tests.unit.key_apps import APPS, Count, Post

KEY = "evt_1PxQ4f2eZvKYlo2C0123"
MULTIPART = (
    b'--line\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\nname\r\n'
    b'--line\r\nContent-Disposition: form-data; name="name"\r\n\r\n' + KEY.encode() + b"\r\n--line--\r\n"
)
#: each source of a key: ``key=``, and a request with a key in that source
SOURCES: dict[str, tuple[Any, dict[str, Any]]] = {
    "json": (key_from("json:/data/0/id"), {"body": json.dumps({"data": [{"id": KEY}]}).encode()}),
    "header": (key_from("header:X-GitHub-Delivery"), {"body": b"{}", "X_GitHub_Delivery": KEY}),
    "query": (key_from("query:event"), {"body": b"{}", "query": f"a=1&event={KEY}"}),
    "form": (
        key_from("form:name"),
        {"body": f"a=1&name={KEY}".encode(), "content_type": "application/x-www-form-urlencoded"},
    ),
    "multipart": (key_from("form:name"), {"body": MULTIPART, "content_type": "multipart/form-data; boundary=line"}),
    "second": (key_from("header:Idempotency-Key", "json:/id"), {"body": json.dumps({"id": KEY}).encode()}),
    "callable": (lambda request: request.json()["id"], {"body": json.dumps({"id": KEY}).encode()}),
}
LEVELS = ("application", "route")


class World:
    """One application and its backend. ``level``: whether its one route or the whole application has the fields."""

    def __init__(self, adapter: str, level: str = "application", **fields: Any) -> None:
        self.count = Count()
        self.backend = WatchedBackend()
        self.events: list[events.Event] = []
        on_route = fields if level == "route" else {}
        of_all = {} if level == "route" else fields
        self.post: Post = APPS[adapter](self.backend, self.count, on_route, on_event=self.events.append, **of_all)

    @property
    def runs(self) -> int:
        return len(self.count.bodies)

    def unreadable(self) -> list[str]:
        return [event.reason for event in self.events if isinstance(event, events.KeyUnreadable)]


@pytest.fixture(autouse=True)
def own_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules are registered for the process; those of this file say that a key may be anywhere, so they are removed."""
    monkeypatch.setattr(rules, "registry", rules.RuleRegistry())


@pytest.fixture(params=APPS)
def adapter(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("source", SOURCES)
def test_a_retry_with_the_key_from_its_source_is_a_replay(adapter: str, source: str, level: str) -> None:
    """H-15: in the JSON, a header, the query, a form; the view reads the whole body and runs once."""
    key, request = SOURCES[source]
    world = World(adapter, level, key=key)
    first, again = world.post(**request), world.post(**request)

    assert (first.status, again.status, again.body) == (201, 201, first.body)
    assert (first.headers.get("idempotent-replayed"), again.headers["idempotent-replayed"]) == (None, "true")
    assert world.count.bodies == [request["body"]]


def test_another_request_under_the_key_is_422(adapter: str) -> None:
    """O-05, H-15: a key from the body is a key like any other."""
    world = World(adapter, key=key_from("json:/id"))
    assert world.post(json.dumps({"id": KEY, "amount": 1}).encode()).status == 201
    assert world.post(json.dumps({"id": KEY, "amount": 2}).encode()).status == 422
    assert world.runs == 1


#: what a client sends, and why it is refused although no key is required
REFUSED = {
    "an empty key": ({"id": ""}, "empty"),
    "a long key": ({"id": "k" * 256}, "longer than 255"),
    "another character": ({"id": "schlüssel-0123456789"}, "printable ASCII"),
    "a line break": ({"id": "key-0123456789-key\n"}, "printable ASCII"),
    "a boolean": ({"id": True}, "string or an integer"),
    "a fraction": ({"id": 1.5}, "string or an integer"),
    "an object": ({"id": {"id": KEY}}, "string or an integer"),
    "a short key of an anonymous caller": ({"id": 7}, "at least 16"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_key_that_no_header_could_carry_is_400_before_any_backend_call(adapter: str, case: str) -> None:
    """H-16, H-12: the limits of a key in a header apply, also where no key is required."""
    value, why = REFUSED[case]
    world = World(adapter, key=key_from("json:/id"))
    refused = world.post(json.dumps(value).encode())

    assert (refused.status, refused.problem["type"].rpartition(":")[2]) == (400, "key-malformed")
    assert why in refused.problem["detail"]
    assert (world.runs, world.backend.verbs) == (0, [])


def test_validate_is_asked_for_keys_from_the_body_too(adapter: str) -> None:
    """H-11, H-16."""
    world = World(adapter, key=key_from("json:/id"), validate=lambda key: key.startswith("evt_"))
    assert world.post(json.dumps({"id": "other-0123456789abc"}).encode()).status == 400
    assert world.post(json.dumps({"id": KEY}).encode()).status == 201


def _refusing(request: Request) -> str | None:
    raise KeyRejected("send one call at a time")


def test_key_rejected_is_400_with_its_text_also_where_no_key_is_required(adapter: str) -> None:
    """H-17."""
    world = World(adapter, key=_refusing)
    refused = world.post(b"[]")
    assert (refused.status, refused.problem["detail"]) == (400, "send one call at a time")
    assert (world.runs, world.backend.verbs) == (0, [])


#: requests whose key cannot be read, with the limit of the body at 4,000 bytes
UNREADABLE: dict[str, dict[str, Any]] = {
    "no JSON": {"body": b'{"id": "'},
    "a repeated name": {"body": b'{"id": "a", "id": "b"}'},
    "no UTF-8": {"body": b'{"id": "\xff"}'},
    "NaN": {"body": b'{"id": NaN}'},
    "nested without an end": {"body": b"[" * 3_900},
    "another type": {"body": b"id=1", "content_type": "application/x-www-form-urlencoded"},
}
TOO_LARGE: dict[str, dict[str, Any]] = {
    "a long body": {"body": b'{"id": "' + b"k" * 9_000 + b'"}'},
    "a long body of no declared length": {"body": b'{"id": "' + b"k" * 9_000 + b'"}', "declared": False},
}


def _skip_what_is_not_there(adapter: str, request: dict[str, Any]) -> None:
    if request.get("declared") is False and adapter in ("django", "django under asgi"):
        pytest.skip("Django's test clients declare each length")


@pytest.mark.parametrize("case", [*UNREADABLE, *TOO_LARGE])
def test_what_cannot_be_read_is_refused_before_the_backend_where_a_key_is_required(adapter: str, case: str) -> None:
    """H-18: 400 ``key-missing``; 413 for a body over the limit."""
    request = {**UNREADABLE, **TOO_LARGE}[case]
    _skip_what_is_not_there(adapter, request)
    world = World(adapter, key=key_from("json:/id"), required=True, max_request_bytes=4_000)
    refused = world.post(**request)

    expected = (413, "body-too-large") if case in TOO_LARGE else (400, "key-missing")
    assert (refused.status, refused.problem["type"].rpartition(":")[2]) == expected
    assert (world.runs, world.backend.verbs) == (0, [])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", [*UNREADABLE, *TOO_LARGE])
def test_what_cannot_be_read_passes_with_its_whole_body_where_no_key_is_required(
    adapter: str, case: str, level: str, caplog: pytest.LogCaptureFixture
) -> None:
    """H-18: the view gets every byte; an event and a warning say that it ran unprotected."""
    request = {**UNREADABLE, **TOO_LARGE}[case]
    _skip_what_is_not_there(adapter, request)
    world = World(adapter, level, key=key_from("json:/id"), max_request_bytes=4_000, spool_bytes=1_500)
    with caplog.at_level(logging.WARNING, "open_idempotency"):
        passed, again = world.post(**request), world.post(**request)

    assert (passed.status, again.status) == (201, 201)
    assert world.count.bodies == [request["body"]] * 2
    assert (len(world.unreadable()), world.backend.verbs) == (2, [])
    assert any("ran without protection" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("body", [b"{}", b'{"id": null}', b"[]", b'{"data": {"id": "x"}}'])
def test_no_key_is_no_key_and_the_request_runs_as_without(adapter: str, body: bytes) -> None:
    """H-19: nothing is claimed and nothing is warned about; where a key is required, 400 ``key-missing`` names the
    source.
    """
    world = World(adapter, key=key_from("json:/id"))
    assert [world.post(body).status, world.post(body).status, world.runs] == [201, 201, 2]
    assert (world.unreadable(), world.backend.verbs) == ([], [])

    strict = World(adapter, key=key_from("json:/id"), required=True)
    refused = strict.post(body)
    assert (refused.status, refused.problem["type"].rpartition(":")[2]) == (400, "key-missing")
    assert "the JSON body at /id" in refused.problem["detail"]


def test_the_header_is_not_read_where_key_says_otherwise_and_that_is_reported(adapter: str) -> None:
    """H-20: a client that sends Idempotency-Key to such a route, without a key in the source, is not protected."""
    world = World(adapter, key=key_from("json:/id"))
    for _ in range(2):
        assert world.post(b"{}", Idempotency_Key=KEY).status == 201
    assert (world.runs, len(world.unreadable())) == (2, 2)


def test_the_header_with_another_key_does_not_count_beside_the_one_in_the_body(adapter: str) -> None:
    """H-20: senders of webhooks have a new header for each delivery of one event."""
    world = World(adapter, key=key_from("json:/id"))
    for key in ("delivery-0000000000001", "delivery-0000000000002"):
        assert world.post(json.dumps({"id": KEY}).encode(), Idempotency_Key=key).status == 201
    assert world.runs == 1


def _number(request: Request) -> Any:
    return 7


async def _later() -> str:
    return KEY


def _awaitable(request: Request) -> Any:
    return _later()


def _failing(request: Request) -> str:
    return str(request.json()["id"])


@pytest.mark.parametrize("key", [_number, _awaitable, _failing])
def test_a_callable_that_fails_never_lets_a_request_run(adapter: str, key: Any) -> None:
    """H-17: ``KeyUnknown``, which frameworks turn into a 500."""
    world = World(adapter, key=key)
    if adapter == "flask":
        assert world.post(b"{}").status == 500
    else:
        with pytest.raises(KeyUnknown, match="key= callable"):
            world.post(b"{}")
    assert (world.runs, world.backend.verbs) == (0, [])


def test_two_lines_of_one_header_or_field_are_400(adapter: str) -> None:
    """H-16: as two headers of the key are."""
    world = World(adapter, key=key_from("query:event"))
    assert world.post(b"{}", query=f"event={KEY}&event={KEY}").status == 400
    assert world.runs == 0


def test_a_quoted_header_is_the_same_key_as_the_bare_one(adapter: str) -> None:
    """H-15, H-02."""
    world = World(adapter, key=key_from("header:Idempotency-Key"))
    assert world.post(b"{}", Idempotency_Key=KEY).status == 201
    assert world.post(b"{}", Idempotency_Key=f'"{KEY}"').headers["idempotent-replayed"] == "true"
    assert world.post(b"{}", Idempotency_Key=f"{KEY}, {KEY}").status == 400


def test_a_route_without_key_keeps_its_header_beside_one_with_key() -> None:
    """H-20: other routes of the application are not affected."""
    for adapter in ("starlette", "fastapi", "flask", "django"):
        other = World(adapter, "route", key=key_from("json:/id"))  # a rule with key= is known to the process now
        assert other.post(json.dumps({"id": KEY}).encode()).status == 201
        world = World(adapter)
        assert [world.post(b"{}").status, world.post(b"{}").status, world.runs] == [201, 201, 2]
        for _ in range(2):
            assert world.post(b"{}", Idempotency_Key=KEY).status == 201
        assert world.runs == 3


@pytest.mark.parametrize(
    "source",
    ["/id", "json", "cookie:id", "header:", "header:a b", "query:", "form:", "json:id", "json:#/id", "json:/a~2", ""],
)
def test_a_source_that_names_nothing_is_an_error_at_start(source: str) -> None:
    """H-15."""
    with pytest.raises(ConfigurationError, match="key_from"):
        key_from(source)


@pytest.mark.parametrize("wrong", ["json:/id", 7, _later])
def test_a_key_that_is_no_callable_is_an_error_at_start(wrong: Any) -> None:
    """H-17."""
    with pytest.raises(ConfigurationError, match="key:"):
        World("asgi", key=wrong)
