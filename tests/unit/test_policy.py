"""Each option of a policy refuses invalid values, with its name in the error."""

from __future__ import annotations

import dataclasses
import math
from datetime import timedelta
from typing import Any

import pytest

from open_idempotency.encryption import EncryptionKeys
from open_idempotency.exceptions import ConfigurationError
from open_idempotency.policy import FIELD_NAMES, IdempotencyPolicy, make_policy

KEYS = EncryptionKeys({"2026": bytes(32)})
BAD: list[tuple[str, Any]] = [
    *[("methods", bad) for bad in (["GET"], ["head"], [], "POST", [1], None, [""], ["PO ST"])],
    *[("required", bad) for bad in (None, "yes", 2)],
    *[("header", bad) for bad in ("", "Idempotency Key", "x:", "é", None, 3)],
    *[("aliases", bad) for bad in ("X-Key", ["X Key"], [None], None)],
    *[("profile", bad) for bad in ("loose", None, "Strict")],
    *[("validate", bad) for bad in ("uuid", 1)],
    *[("scope", bad) for bad in ("user", "Anonymous", "", 1, ["anonymous"])],
    *[("session_identity", bad) for bad in ("", " ", ["a", ""], [None], {"uid"}, {"uid": 1}, b"uid", 1, None)],
    *[("session_identity", bad) for bad in ("_id", ("user", "_fresh"), ["csrf_token"])],
    *[("credential_headers", bad) for bad in ("X-Key", ["X Key"], ["Cookie"], ["DPoP"], ["idempotency-key"], None)],
    *[("scope_by_host", bad) for bad in (None, "example", 2)],
    *[("scope_by_route", bad) for bad in (None, "path", 2)],
    *[("application", bad) for bad in (None, b"shop", 1)],
    *[("fingerprint", bad) for bad in ("raw", None, b"auto")],
    *[("fingerprint_headers", bad) for bad in ("X", ["X:"], None)],
    *[("fingerprint_ignore", bad) for bad in (["a"], [""], "/a", None)],
    *[("secret", bad) for bad in ("text" * 8, b"", b"short")],
    *[("lease", bad) for bad in (0, -1, 10**400, math.nan, math.inf, "30", None, True, timedelta(0))],
    *[("ttl", bad) for bad in (0, -1, math.nan, math.inf, "1d", None, False, timedelta(seconds=-1))],
    *[("error_ttl", bad) for bad in (0, -1, 86_401, math.nan, math.inf, "1h", True, timedelta(days=2))],
    *[("max_run", bad) for bad in (0, -1, math.nan, math.inf, None, 1e10)],
    *[("wait", bad) for bad in (-1, math.nan, math.inf, None, "5", 1e10, timedelta.max)],
    *[("max_wait", bad) for bad in (-0.1, math.nan, math.inf, None)],
    *[("max_waiting", bad) for bad in (-1, 1.5, True, "3")],
    *[("respond_within", bad) for bad in (-1, math.nan, math.inf, "1", None)],
    *[("record_within", bad) for bad in (-1, math.nan, math.inf, "1")],
    *[("stream_grace", bad) for bad in (-1, math.nan, math.inf, None, "5", True)],
    *[("on_failed", bad) for bad in ("rerun", None)],
    *[("on_abandoned", bad) for bad in ("replay", None)],
    *[("max_attempts", bad) for bad in (0, -1, 1.5, True, "3")],
    *[("ledger", bad) for bad in (True, 1, b"default", ["default"])],
    *[("max_live_keys", bad) for bad in (0, -1, 1.5, True, "3")],
    *[("fail_open", bad) for bad in (None, "no")],
    *[("store", bad) for bad in (True, 200)],
    *[("drop_headers", bad) for bad in ("Set-Cookie", ["a b"], [""], [1], ["x:y"], None)],
    *[
        ("keep_headers", bad)
        for bad in ("Age", ["a b"], [b"Age"], ["Connection"], ["Date"], ["TE"], ["Proxy-Status"], ["Content-Length"])
    ],
    *[("keep_headers", bad) for bad in (["Idempotent-Replayed"], ["idempotency-omitted"], ["set-cookie"])],
    ("keep_headers", ["Idempotency-Access-Control-Allow-Origin"]),
    *[("redact", bad) for bad in ("/card", True)],
    *[("encryption", bad) for bad in (b"k" * 32, {"a": b"k" * 32}, True)],
    *[("plain_records", bad) for bad in (None, True, "refused")],
    *[("max_request_bytes", bad) for bad in (-1, 1.0, None, True)],
    *[("max_response_bytes", bad) for bad in (-1, "1MB")],
    *[("max_stage_bytes", bad) for bad in (-1, None)],
    *[("spool_bytes", bad) for bad in (-1, None)],
    *[("strict_stages", bad) for bad in (None, "x")],
    *[("enabled", bad) for bad in (None, "x")],
    *[("cover", bad) for bad in (None, "all", True)],
    *[
        ("docs_url", bad)
        for bad in (1, "", "http://x\r\nset-cookie: a", "http://ü", "a b", "<x>", "http://x/{name}", "http://x/{type")
    ],
    *[("problem_headers", bad) for bad in ("Vary: Origin", {"a b": "c"}, {"a": "b\r\nc: d"}, {"Date": "now"}, None)],
    *[("render_problem", bad) for bad in ("html", 1)],
    *[("compat", bad) for bad in ("Stripe", "adyen", False, True, "")],
    *[("on_event", bad) for bad in ([], "log")],
    *[("key", bad) for bad in ("json:/id", 7, True)],
    *[("echo_key", bad) for bad in (None, "x")],
    *[("on_replay", bad) for bad in ("x", 1)],
    *[("fingerprint_parts", bad) for bad in ((), "body", None, ("path", "host"), ("body",))],
]


@pytest.mark.parametrize(("name", "bad"), BAD, ids=[f"{name}={bad!r}" for name, bad in BAD])
def test_a_bad_value_is_refused_at_start_naming_the_field(name: str, bad: Any) -> None:
    """ConfigurationError is raised at start and names the field."""
    fields = {"fingerprint": "json"} if name == "fingerprint_ignore" else {}
    with pytest.raises(ConfigurationError, match=rf"^{name}: "):
        IdempotencyPolicy(**{**fields, name: bad})


def test_cookies_are_no_credentials_and_the_error_says_why() -> None:
    """O-15: cookies change between two tries of one caller."""
    with pytest.raises(ConfigurationError, match=r"Cookie .*change between two tries.* scope="):
        IdempotencyPolicy(credential_headers=["Authorization", "cookie"])


def test_every_field_is_checked() -> None:
    """The table above contains every field."""
    assert {name for name, _ in BAD} == FIELD_NAMES


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"ttl": 10.0}, "ttl"),
        ({"ttl": 60.0, "error_ttl": 61.0}, "error_ttl"),
        ({"lease": 60.0, "ttl": 59.0}, "ttl"),
        ({"max_run": 29.0}, "max_run"),
        ({"record_within": 86_401.0}, "record_within"),
        ({"fingerprint_ignore": ("/a",)}, "fingerprint_ignore"),
        ({"fingerprint_ignore": ("/a",), "fingerprint": "none"}, "fingerprint_ignore"),
        ({"plain_records": "accept"}, "plain_records"),
        ({"keep_headers": ("Age",), "drop_headers": ("X", "AGE")}, "keep_headers"),
        ({"keep_headers": ("Authorization",)}, "keep_headers"),
        ({"keep_headers": ("Set-Cookie",), "encryption": KEYS, "plain_records": "write"}, "keep_headers"),
    ],
)
def test_fields_that_contradict_each_other_are_refused_naming_one(fields: dict[str, Any], named: str) -> None:
    """Such as a TTL below the lease."""
    with pytest.raises(ConfigurationError, match=f"^{named}: "):
        IdempotencyPolicy(**fields)


def test_the_defaults_are_those_of_the_specification() -> None:
    policy = IdempotencyPolicy()
    assert (policy.lease, policy.ttl, policy.max_run) == (30.0, 86_400.0, 3_600.0)
    assert policy.methods == {"POST", "PATCH"}
    assert (policy.header, policy.profile, policy.fingerprint) == ("Idempotency-Key", "lenient", "auto")
    assert (policy.on_failed, policy.on_abandoned, policy.fail_open) == ("resume", "resume", False)


@pytest.mark.parametrize(
    "name",
    ["lease", "ttl", "error_ttl", "max_run", "wait", "max_wait", "respond_within", "record_within", "stream_grace"],
)
def test_a_timedelta_becomes_float_seconds(name: str) -> None:
    """Options take a timedelta or seconds; the policy has float seconds."""
    fields: dict[str, Any] = {"lease": 1, name: timedelta(minutes=2)}
    fields.setdefault("ttl", 600)
    value = getattr(IdempotencyPolicy(**fields), name)
    assert (value, type(value)) == (120.0, float)


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({}, 3_600.0),
        ({"ttl": 60}, 60.0),
        ({"error_ttl": timedelta(minutes=5)}, 300.0),
        ({"ttl": 7_200, "error_ttl": 7_200}, 7_200.0),
    ],
)
def test_errors_are_stored_for_an_hour_or_for_error_ttl(fields: dict[str, Any], kept: float) -> None:
    """B-26: never for longer than a success."""
    assert IdempotencyPolicy(**fields).ttl_of_errors == kept


def test_methods_are_upper_case_inside() -> None:
    assert IdempotencyPolicy(methods=["post", "Put"]).methods == {"POST", "PUT"}


@pytest.mark.parametrize(("given", "kept"), [("account", ("account",)), (["a", "b"], ("a", "b")), ((), ())])
def test_the_entries_of_a_session_become_a_tuple(given: Any, kept: tuple[str, ...]) -> None:
    """O-19: one name, or several in an order; with no name no session is read."""
    assert IdempotencyPolicy(session_identity=given).session_identity == kept


def test_a_scope_in_words_is_refused_with_what_to_do() -> None:
    """O-19b: ``scope=`` takes a callable, or the word "anonymous"."""
    with pytest.raises(ConfigurationError, match=r"^scope: 'user_id' names no caller; pass a callable .* 'anonymous'"):
        IdempotencyPolicy(scope="user_id")


def test_lists_become_tuples() -> None:
    """A policy is immutable, and shares no list with its arguments."""
    names = ["X-Key"]
    policy = IdempotencyPolicy(aliases=names)
    names.append("X-Other")
    assert policy.aliases == ("X-Key",)


def test_a_policy_cannot_be_changed() -> None:
    """It is a frozen dataclass."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        IdempotencyPolicy().lease = 1.0


def test_replace_changes_some_fields_and_leaves_the_policy() -> None:
    """Rules use ``replace`` for any policy field."""
    policy = IdempotencyPolicy(wait=2)
    changed = policy.replace(ttl=timedelta(hours=1))
    assert (changed.ttl, changed.wait, policy.ttl) == (3600.0, 2.0, 86_400.0)


def test_replace_validates_the_result() -> None:
    with pytest.raises(ConfigurationError, match=r"^lease: "):
        IdempotencyPolicy().replace(lease=0)


@pytest.mark.parametrize(
    ("name", "near"), [("leese", "lease"), ("on_fail", "on_failed"), ("max_request_byte", "max_re")]
)
def test_an_unknown_field_is_refused_with_the_nearest_name(name: str, near: str) -> None:
    """The error suggests a known field."""
    with pytest.raises(ConfigurationError, match=f"^{name}: no such policy field; did you mean {near}"):
        make_policy(None, {name: 1})


def test_an_unknown_field_like_no_other_is_refused_with_all_names() -> None:
    with pytest.raises(ConfigurationError, match=r"^zzzz: no such policy field; known: aliases, application, "):
        IdempotencyPolicy().replace(zzzz=1)


def test_fields_override_a_given_policy() -> None:
    """Every adapter takes policy fields as keywords, a whole policy, or both."""
    assert make_policy(IdempotencyPolicy(wait=2, lease=9), {"lease": 10}) == IdempotencyPolicy(wait=2, lease=10)


def test_a_policy_that_is_none_of_ours_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"^policy: "):
        make_policy({"lease": 3}, {})


def test_the_secret_is_not_shown() -> None:
    assert "hunter" not in repr(IdempotencyPolicy(secret=b"hunter2hunter2hunter2"))


def test_a_bad_secret_is_not_shown_in_the_error() -> None:
    with pytest.raises(ConfigurationError) as caught:
        IdempotencyPolicy(secret=b"hunter2")
    assert "hunter" not in str(caught.value)
