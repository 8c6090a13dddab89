"""Which entry of a decoded session names the caller, and which values name nobody (O-19)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any
from uuid import UUID

import pytest

from open_idempotency._core.keys import by_credentials, caller_scope, is_anonymous
from open_idempotency._core.models import Identity
from open_idempotency.exceptions import ConfigurationError, KeyRejected, ScopeUnknown
from open_idempotency.policy import SESSION_IDENTITY, IdempotencyPolicy
from open_idempotency.wsgi import IdempotencyMiddleware
from tests.unit.builders import request_of
from tests.unit.wsgi.wsgi_server import hello

KEY = "0123456789abcdef"
TOKEN = [(b"authorization", b"Bearer secret")]


def scope_of(
    session: Mapping[str, Any] | None,
    headers: list[tuple[bytes, bytes]] | None = None,
    user: str | None = None,
    tenant: str = "",
    key: str = KEY,
    **fields: Any,
) -> str:
    """The scope of a request with this session."""
    return caller_scope(
        request_of(headers=headers or []), Identity(user, tenant, session), key, IdempotencyPolicy(**fields)
    )


ANYBODY = scope_of(None)


@pytest.mark.parametrize("name", SESSION_IDENTITY)
@pytest.mark.parametrize("value", ["ann", 7, 0, UUID(int=7)])
def test_an_entry_of_a_well_known_name_names_the_caller(name: str, value: Any) -> None:
    """O-19: it identifies this caller alone; short keys, which anonymous callers must not use, are allowed."""
    ann, bob = scope_of({name: value}, key="1"), scope_of({name: "bob"}, key="1")
    assert len({ann, bob, ANYBODY}) == 3
    assert scope_of({name: value, "basket": [1], "_fresh": True, "_id": "x"}, key="1") == ann


@pytest.mark.parametrize("value", [None, "", "  ", False, True, {}, [], {"id": None, "name": "guest"}])
def test_what_a_logout_leaves_names_nobody(value: Any) -> None:
    """O-19: then the next entry counts, and then the credentials in the headers."""
    assert scope_of({"user": value}) == ANYBODY
    assert scope_of({"user": value, "uid": 7}) == scope_of({"uid": 7})
    assert by_credentials(scope_of({"user": value}, TOKEN))


def test_of_two_entries_the_first_of_the_list_counts() -> None:
    """O-19: the order within the session does not matter."""
    one = {"_user_id": "1", "user_id": 2, "user": "ann", "uid": 4, "sub": "5"}
    assert scope_of(one) == scope_of(dict(reversed(one.items()))) == scope_of({"_user_id": "1"})
    assert scope_of(one, session_identity=("sub", "uid")) == scope_of({"sub": "5"})


def test_a_number_and_its_text_are_one_caller_and_two_entries_are_two() -> None:
    """O-19: a JSON session may have turned a number into text; user 7 need not be account 7."""
    own = {"session_identity": ("user_id", "account")}
    assert scope_of({"user_id": 7}) == scope_of({"user_id": "7"})
    assert scope_of({"user_id": 7}, **own) != scope_of({"account": 7}, **own)


def test_an_enum_is_its_number() -> None:
    """O-19: the text of an enum differs between versions of Python."""

    class Id(IntEnum):
        """An enum of ids."""

        ANN = 7

    assert scope_of({"user_id": Id.ANN}) == scope_of({"user_id": 7})


def test_other_names_take_the_place_of_the_well_known_ones() -> None:
    """O-19: ``session_identity=`` replaces them."""
    assert scope_of({"account": "ann"}, session_identity="account") != ANYBODY
    assert scope_of({"user": "ann"}, session_identity="account") == ANYBODY
    assert scope_of({"user": "ann"}, session_identity=()) == ANYBODY


@pytest.mark.parametrize(
    "account",
    [
        {"sub": "1", "name": "Ann", "exp": 1},
        {"sub": "1", "iss": "https://one.example", "name": "Ann"},
        {"id": 1, "name": "Ann"},
        {"uid": 1, "name": "Ann"},
        {"pk": 1, "name": "Ann"},
        {"access_token": "t", "userinfo": {"sub": "1", "name": "Ann"}},
    ],
)
def test_an_account_is_known_by_its_id(account: dict[str, Any]) -> None:
    """O-19: extensions for OpenID store claims. The name, the token and their ages do not count."""
    renamed = {**account, "name": "Anna", "exp": 2, "access_token": "u"}
    if "userinfo" in account:
        renamed["userinfo"] = {"sub": "1", "name": "Anna"}
    assert scope_of({"user": account}) == scope_of({"user": renamed}) != ANYBODY
    other = {key: "2" if key in ("sub", "id", "uid", "pk") else value for key, value in account.items()}
    if "userinfo" in account:
        other["userinfo"] = {"sub": "2", "name": "Ann"}
    assert scope_of({"user": other}) != scope_of({"user": account})


@pytest.mark.parametrize("inside", [True, False])
def test_a_subject_is_one_of_its_issuer(inside: bool) -> None:
    """O-19: ``sub`` is unique for one issuer only (RFC 7519, section 4.1.2)."""
    claims = [{"sub": "1", "iss": issuer} for issuer in ("https://one.example", "https://two.example")]
    one, two = [scope_of({"user": each} if inside else each) for each in claims]
    assert one != two


@pytest.mark.parametrize(
    "session",
    [
        {"user": {"name": "Ann", "email": "ann@example.com"}},
        {"user": {"userinfo": {"name": "Ann"}}},
        {"user": {"id": {"$oid": "1"}}},
        {"user": ["ann"]},
        {"user": 7.5},
        {"user_id": b"7"},
        {"user": object()},
        {"user_id": 10**5000},
        {"user": {"id": -(10**5000)}},
    ],
)
def test_an_entry_that_is_no_id_is_never_a_shared_scope(session: dict[str, Any]) -> None:
    """O-19: a display name is no identity. The error names the entry and the cure, and no value."""
    with pytest.raises(ScopeUnknown, match="session_identity=") as caught:
        scope_of(session)
    (entry,) = session
    said = str(caught.value)
    assert f"entry '{entry}" in said
    assert "ann" not in said.lower()


def test_the_order_of_what_names_a_caller() -> None:
    """O-19: ``scope=``, the verified user, the session, the credentials, nobody."""
    session = {"user_id": 7}
    assert scope_of(session, TOKEN, "ann", scope=lambda _: "x") == "custom:x"
    assert scope_of(session, TOKEN, "ann") == "user:ann"
    assert scope_of(session, TOKEN) == scope_of(session)
    assert by_credentials(scope_of({}, TOKEN))
    assert is_anonymous(scope_of({}))


def test_kinds_of_caller_never_collide() -> None:
    """O-19: callers of different kinds may have equal names."""
    named = scope_of({"user_id": "7"})
    kinds = {named, scope_of(None, user=named), scope_of(None, scope=lambda _: named), scope_of({"user_id": named})}
    assert len(kinds) == 4


def test_whom_a_session_names_is_another_one_in_another_tenant() -> None:
    """O-16, O-19: a browser may send one session to several tenants."""
    assert len({scope_of({"user_id": 7}, tenant=tenant) for tenant in ("", "one", "two")}) == 3


def test_a_name_that_no_encoding_has_is_a_caller_all_the_same() -> None:
    """O-19: JSON can hold half of a surrogate pair."""
    scope_of({"user": "\ud800"}).encode()


@pytest.mark.parametrize("known", [{"user": "ann"}, {"headers": TOKEN}, {"session": {"user_id": 7}}, {}])
def test_all_callers_are_one_where_that_is_meant(known: dict[str, Any]) -> None:
    """O-19b: with ``scope="anonymous"`` all callers share one scope, and keys must be unguessable."""
    session = known.pop("session", None)
    assert scope_of(session, scope="anonymous", **known) == ANYBODY
    with pytest.raises(KeyRejected, match="16"):
        scope_of(session, scope="anonymous", key="k" * 15, **known)


def test_all_callers_of_a_tenant_are_not_those_of_another() -> None:
    """O-16, O-19b."""
    assert scope_of(None, scope="anonymous", tenant="one") != scope_of(None, scope="anonymous", tenant="two")


@pytest.mark.parametrize(
    "options", [{"session_identity": "account"}, {"rules": {"/pay": {"session_identity": "account"}}}]
)
def test_what_cannot_have_an_effect_is_refused_at_start(options: dict[str, Any]) -> None:
    """O-19: the plain WSGI middleware gets no decoded session."""
    with pytest.raises(ConfigurationError, match=r"session_identity: WSGI .* scope="):
        IdempotencyMiddleware(hello, "memory://", **options)
