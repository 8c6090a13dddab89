"""Redaction: only what the hook returns is stored; the live response is never changed."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from open_idempotency import events
from open_idempotency._core.commands import Complete, Fail
from open_idempotency._core.models import Completed, Finished
from open_idempotency._core.settlement import Fate, finish
from open_idempotency._core.stored_response import RESPONSE, decode_response, unseal
from open_idempotency.encryption import EncryptionKeys
from open_idempotency.exceptions import ConfigurationError
from open_idempotency.policy import IdempotencyPolicy
from open_idempotency.redaction import Response, redact_json, tombstone
from tests.effort import times
from tests.unit.builders import RECORD, Listener, Script, attempt_of, lease_of
from tests.unit.core.admissions import Admission, name

LIVE = Response(
    201, [(b"content-type", b"application/json"), (b"set-cookie", b"a")], b'{"id":1,"card":{"number":"4111"}}'
)


class Settled:
    """A response that was settled under a policy: the stored response, and the reported events."""

    def __init__(self, response: Response, **fields: Any) -> None:
        attempt, self.script = attempt_of(**fields), Script({Complete: [Completed()], Fail: [None]})
        self.result = self.script.run(finish(attempt, response))
        assert isinstance(attempt.policy.on_event, Listener)
        self.reported = attempt.policy.on_event.seen

    @property
    def frame(self) -> bytes:
        (command,) = (c for c in self.script.asked if isinstance(c, Complete | Fail))
        assert command.response is not None
        return command.response

    @property
    def stored(self) -> Response:
        return decode_response(self.frame)


# The hook


def test_the_hooks_result_is_stored_and_the_live_response_stays() -> None:
    """The stored response is redacted; the live response is not."""
    before = copy.deepcopy(LIVE)
    settled = Settled(LIVE, redact=lambda response: Response(200, [(b"x", b"1")], b"blank"))
    assert settled.stored == Response(200, [(b"x", b"1")], b"blank")
    assert settled.result is Fate.KEPT
    assert before == LIVE


def test_a_hook_that_changes_its_argument_does_not_reach_the_live_response() -> None:
    """The hook gets a copy of the response and of its list of headers."""
    before = copy.deepcopy(LIVE)

    def blank(response: Response) -> Response:
        assert isinstance(response.headers, list)
        response.headers.clear()
        response.body = b""
        return response

    assert Settled(LIVE, redact=blank).stored == Response(201, [], b"")
    assert before == LIVE


def test_the_hook_sees_what_is_about_to_be_stored() -> None:
    """R-02: without the headers that are never stored; O-11: without a body that is too long."""
    seen: list[Response] = []

    def look(response: Response) -> Response:
        seen.append(response)
        return response

    Settled(LIVE, redact=look)
    Settled(LIVE, redact=look, max_response_bytes=3)
    small = replace(LIVE, headers=[(b"content-type", b"application/json")])
    assert seen == [small, replace(small, body=None)]


def test_what_the_hook_returns_is_held_to_the_same_rules() -> None:
    """R-02, O-11: the hook can neither store a cookie nor exceed the limit."""
    added = Response(201, [(b"set-cookie", b"a"), (b"x", b"1")], b"long" * 100)
    settled = Settled(LIVE, redact=lambda _: added, max_response_bytes=100)
    assert settled.stored == Response(201, [(b"x", b"1")], None)
    assert settled.reported == [events.Completed(events.short(RECORD), 201, False)]


def test_fields_can_be_taken_out_by_an_allow_list() -> None:
    """The hook may remove headers."""
    wanted = {b"content-type"}
    live = replace(LIVE, headers=[*LIVE.headers, (b"x-account", b"4111")])
    settled = Settled(live, redact=lambda a: replace(a, headers=[(n, v) for n, v in a.headers if n.lower() in wanted]))
    assert settled.stored.headers == [(b"content-type", b"application/json")]


def test_a_tombstone_keeps_the_status_and_fields_and_never_runs_again() -> None:
    """O-11: the body is not stored at all."""
    settled = Settled(LIVE, redact=tombstone)
    assert settled.stored == Response(201, [(b"content-type", b"application/json")], None)
    assert settled.reported == [events.Completed(events.short(RECORD), 201, False)]
    problem = Admission(Finished(settled.frame)).problem()
    assert (name(problem), problem["original_status"]) == ("not-replayable", 201)


def test_a_failed_response_that_is_to_be_replayed_is_redacted_too() -> None:
    """O-08: ``on_failed="replay"``."""
    settled = Settled(replace(LIVE, status=500), redact=redact_json("/card"), on_failed="replay")
    assert settled.stored.body == b'{"id":1,"card":null}'


def test_what_is_redacted_is_encrypted_as_well() -> None:
    """A policy may have both."""
    policy = IdempotencyPolicy(encryption=EncryptionKeys({"k": b"k" * 32}))
    settled = Settled(LIVE, redact=redact_json("/card"), encryption=policy.encryption)
    assert b'"id"' not in settled.frame
    plain = unseal(settled.frame, RESPONSE, lease_of(), policy)
    assert decode_response(plain).body == b'{"id":1,"card":null}'


def _raising(response: Response) -> Response:
    raise LookupError("card 4111")


FAULTY: dict[str, Any] = {
    "raises": _raising,
    "returns nothing": lambda response: None,
    "returns a body": lambda response: response.body,
    "a text body": lambda response: replace(response, body="4111"),
    "text fields": lambda response: replace(response, headers=[("x", "4111")]),
    "a broken field": lambda response: replace(response, headers=[(b"x", b"a\r\n4111")]),
    "no such status": lambda response: replace(response, status=42),
    "a text status": lambda response: replace(response, status="201"),
    "no fields": lambda response: replace(response, headers=None),
}


@pytest.mark.parametrize("hook", FAULTY.values(), ids=FAULTY)
def test_a_faulty_hook_leaves_a_bare_tombstone_and_an_event(hook: Any) -> None:
    """I2: the outcome is kept; neither the secret is stored nor the message of the error reported."""
    settled = Settled(LIVE, redact=hook)
    assert settled.result is Fate.KEPT
    assert settled.stored == Response(201, [], None)
    failed, completed = settled.reported
    assert isinstance(failed, events.HookFailed)
    assert failed.hook == "redact"
    assert "4111" not in repr(failed)
    assert completed == events.Completed(events.short(RECORD), 201, False)


# JSON


def redacted(body: bytes, *pointers: str, **options: Any) -> Any:
    """The body that ``redact_json`` returns."""
    return redact_json(*pointers, **options)(Response(200, [], body)).body


@pytest.mark.parametrize(
    ("pointer", "before", "after"),
    [
        ("/card", b'{"card": {"n": 1}, "id": 2}', b'{"card": null, "id": 2}'),
        ("/card/number", b'{"card":{"number":"4111","month":5}}', b'{"card":{"number":null,"month":5}}'),
        ("/cards/1", b'{"cards": [1, [2, {}], 3]}', b'{"cards": [1, null, 3]}'),
        ("/cards/*/n", b'{"cards":[{"n":1},{"m":2},{"n":[3]}]}', b'{"cards":[{"n":null},{"m":2},{"n":null}]}'),
        ("/*/n", b'{"a":{"n":1},"b":{"n":2},"c":3}', b'{"a":{"n":null},"b":{"n":null},"c":3}'),
        ("/a~1b/c~0d", b'{"a/b":{"c~d":1}}', b'{"a/b":{"c~d":null}}'),
        ("/0", b'[ "x" , "y" ]', b'[ null , "y" ]'),
        ("/n", b'\r\n\t {\t"n"\n:\r1.10e2 } \n', b'\r\n\t {\t"n"\n:\rnull } \n'),
        ("/n", b'{"n":1,"n":2,"m":1.10}', b'{"n":null,"n":null,"m":1.10}'),
        ("/n", b'{"\\u006e":"4111"}', b'{"\\u006e":null}'),
        ("/n", '{"é":"\\u00e9ü","n":"ü"}'.encode(), '{"é":"\\u00e9ü","n":null}'.encode()),
        ("/", b'{"":1}', b'{"":null}'),
    ],
)
def test_what_a_pointer_names_is_blanked_and_the_rest_stays_byte_for_byte(
    pointer: str, before: bytes, after: bytes
) -> None:
    """R-01: order, lexemes, white space and repeated members do not change."""
    assert redacted(before, pointer) == after


@pytest.mark.parametrize("pointer", ["/x", "/card/x", "/card/number/x", "/list/5", "/list/01", "/list/-", "/id/0"])
def test_a_pointer_to_nothing_changes_nothing(pointer: str) -> None:
    """R-01."""
    response = Response(200, [(b"digest", b"x")], b'{"card":{"number":"4111"},"list":[1],"id":"text"}')
    assert redact_json(pointer)(response) is response


def test_pointers_may_overlap() -> None:
    """The wider pointer counts, whichever comes first."""
    for pointers in (("/card", "/card/number"), ("/card/number", "/card")):
        assert redacted(b'{"card":{"number":1},"n":2}', *pointers) == b'{"card":null,"n":2}'


def test_something_else_than_null_can_stand_there() -> None:
    """For clients that expect a text."""
    assert redacted(b'{"card":"4111"}', "/card", instead="***") == b'{"card":"***"}'


def test_digests_of_the_body_go_with_what_they_were_made_of() -> None:
    """R-01: a replay has no header that contradicts its body."""
    live = Response(200, [(b"Content-Digest", b"sha-256=:x:"), (b"etag", b'"1"')], b'{"card":1}')
    assert redact_json("/card")(live).headers == [(b"etag", b'"1"')]


@pytest.mark.parametrize("body", [b"", None])
def test_a_response_without_a_body_stays_as_it_is(body: Any) -> None:
    """R-01: such as a 204; O-11: or a tombstone."""
    response = Response(204, [], body)
    assert redact_json("/card")(response) is response


@pytest.mark.parametrize(
    "body",
    [
        b"4111",
        b"card=4111",
        b'{"card":4111',
        b'{"card":4111}}',
        b"\xff4111",
        b"[" * 100_000,
        b"\x1f\x8b4111",
        b"{4111}",
    ],
    ids=repr,
)
def test_what_is_no_json_is_not_stored(body: bytes) -> None:
    """A body that cannot be searched is not stored; a number alone has no members, so it is stored."""
    settled = Settled(replace(LIVE, body=body), redact=redact_json("/card"))
    assert settled.stored.body == (b"4111" if body == b"4111" else None)


def test_a_compressed_body_is_not_stored() -> None:
    """Compressed bytes are not searched, even if they happen to be JSON."""
    live = replace(LIVE, headers=[(b"Content-Encoding", b"gzip")])
    assert Settled(live, redact=redact_json("/card")).stored == Response(201, [], None)


@pytest.mark.parametrize(
    ("pointers", "options"),
    [
        (("card",), {}),
        (("",), {}),
        ((1,), {}),
        ((), {}),
        (("/card",), {"instead": b"x"}),
        (("/c",), {"instead": 1e999}),
    ],
)
def test_a_bad_pointer_is_refused_at_start(pointers: Any, options: Any) -> None:
    """ConfigurationError names the field."""
    with pytest.raises(ConfigurationError, match=r"^redact: "):
        redact_json(*pointers, **options)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=12,
)


def _blank(value: Any, steps: list[str]) -> Any:
    """The expected value, by rebuilding it."""
    if not steps:
        return None
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    made = {k: _blank(v, steps[1:]) if steps[0] in (str(k), "*") else v for k, v in items}
    if isinstance(value, dict):
        return made
    return list(made.values()) if isinstance(value, list) else value


@settings(max_examples=times(50), deadline=None)
@given(
    value=values,
    steps=st.lists(st.sampled_from(["a", "b", "0", "1", "*"]), min_size=1, max_size=3),
    indent=st.sampled_from([None, 0, 2]),
)
def test_any_json_keeps_all_but_what_is_named(value: Any, steps: list[str], indent: int | None) -> None:
    """The result is compared with the rebuilt value."""
    body = json.dumps(value, indent=indent).encode()
    assert json.loads(redacted(body, "/" + "/".join(steps))) == _blank(value, steps)
