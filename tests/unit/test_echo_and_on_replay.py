"""``echo_key=`` sends the key back, and ``on_replay=`` changes replays, on every adapter."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from open_idempotency import ConfigurationError, events, key_from, rules
from open_idempotency.hooks import Request, Response
from tests.unit.key_apps import APPS, JSON
from tests.unit.test_keys_from_requests import KEY, World


@pytest.fixture(autouse=True)
def own_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules are registered for the process; those of this file say that a key may be anywhere, so they are removed."""
    monkeypatch.setattr(rules, "registry", rules.RuleRegistry())


@pytest.fixture(params=APPS)
def adapter(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_first_responses_replays_and_problems_have_the_key_as_it_was_sent(adapter: str) -> None:
    """H-21: 201, its replay and 422 have it; a problem about an invalid key has none."""
    world = World(adapter, echo_key=True, required=True)
    for written in (KEY, f'"{KEY}"'):
        assert world.post(b"{}", Idempotency_Key=written).headers["idempotency-key"] == written
    assert world.post(b"[]", Idempotency_Key=KEY).headers["idempotency-key"] == KEY
    for refused in (world.post(b"{}"), *(world.post(b"{}", Idempotency_Key=key) for key in ('"open', "short"))):
        assert (refused.status, refused.headers.get("idempotency-key")) == (400, None)
    assert world.runs == 1


def test_a_key_from_the_body_is_sent_back_bare_or_as_a_string(adapter: str) -> None:
    """H-21, H-15: the response header has the name that ``header=`` sets; the key is quoted where a bare key could not
    be parsed.
    """
    world = World(adapter, echo_key=True, key=key_from("json:/id"), header="X-Key")
    for key, shown in ((KEY, KEY), ('a "key" of 20 chars', r'"a \"key\" of 20 chars"')):
        for _ in range(2):
            assert world.post(json.dumps({"id": key}).encode()).headers["x-key"] == shown
    assert "x-key" not in world.post(b"{}").headers


def test_without_echo_key_no_response_has_the_key(adapter: str) -> None:
    """H-21: this is the default."""
    world = World(adapter)
    for _ in range(2):
        assert "idempotency-key" not in world.post(b"{}", Idempotency_Key=KEY).headers


def _renumber(response: Response, request: Request) -> Response:
    document = {**json.loads(response.body or b""), "id": request.json()["id"]}
    return replace(response, body=json.dumps(document).encode(), headers=[*response.headers, (b"x-hook", b"1")])


RPC: dict[str, Any] = {
    "key": key_from("json:/params/key"),
    "fingerprint": "json",
    "fingerprint_ignore": ["/id"],
    "on_replay": _renumber,
}


def _call(number: int) -> bytes:
    return json.dumps({"id": number, "params": {"key": KEY}}).encode()


def test_on_replay_changes_each_replay_and_never_the_first_response(adapter: str) -> None:
    """H-22: for example the JSON-RPC id of the retry; the length is recomputed, the replay mark stays, the record does
    not change.
    """
    world = World(adapter, **RPC)
    first = world.post(_call(1))
    replays = [world.post(_call(number)) for number in (22, 333)]

    assert (first.status, "id" in first.problem, "x-hook" in first.headers) == (201, False, False)
    assert [reply.problem for reply in replays] == [{**first.problem, "id": 22}, {**first.problem, "id": 333}]
    for reply in replays:
        assert reply.headers["content-length"] == str(len(reply.body))
        assert (reply.headers["content-type"], reply.headers["x-hook"]) == (JSON, "1")
        assert reply.headers["idempotent-replayed"] == "true"
    assert world.runs == 1


def _raising(response: Response, request: Request) -> Response:
    response.headers = [(b"x-broken", b"1")]
    raise LookupError("a mistake")


def _nothing(response: Response, request: Request) -> Any:
    return None


def _no_body(response: Response, request: Request) -> Response:
    return Response(200, [], None)


def _broken_header(response: Response, request: Request) -> Response:
    return replace(response, headers=[(b"x-split", b"a\r\nset-cookie: b")])


def _informational(response: Response, request: Request) -> Response:
    return replace(response, status=103)


@pytest.mark.parametrize("hook", [_raising, _nothing, _no_body, _broken_header, _informational])
def test_a_hook_that_fails_leaves_the_stored_response_and_runs_nothing_again(adapter: str, hook: Any) -> None:
    """H-23: the replay is sent as it is stored, and ``HookFailed`` reports each failure."""
    world = World(adapter, on_replay=hook)
    first = world.post(b"{}", Idempotency_Key=KEY)
    for _ in range(2):
        again = world.post(b"{}", Idempotency_Key=KEY)
        assert (again.status, again.body, again.headers["idempotent-replayed"]) == (201, first.body, "true")
        assert not {"x-broken", "x-split", "set-cookie"} & again.headers.keys()
    failed = [event for event in world.events if isinstance(event, events.HookFailed)]
    assert ([event.hook for event in failed], world.runs) == (["on_replay"] * 2, 1)


def test_on_replay_is_not_called_for_problems(adapter: str) -> None:
    """H-22: a 422 is no replay."""
    called: list[int] = []

    def note(response: Response, request: Request) -> Response:
        called.append(response.status)
        return response

    world = World(adapter, on_replay=note)
    statuses = [world.post(body, Idempotency_Key=KEY).status for body in (b"{}", b"[]", b"{}")]
    assert (statuses, called) == ([201, 422, 201], [201])


async def _later(response: Response, request: Request) -> Response:
    return response


@pytest.mark.parametrize("field", [{"on_replay": _later}, {"on_replay": "x"}, {"echo_key": "yes"}])
def test_wrong_values_are_errors_at_start(field: dict[str, Any]) -> None:
    """H-22, H-21."""
    with pytest.raises(ConfigurationError, match=next(iter(field))):
        World("asgi", **field)
