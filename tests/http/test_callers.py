"""Whose key it is (SPEC section 5): two callers with one key never see each other's answer."""

from __future__ import annotations

from tests.http.conftest import NewCase
from tests.http.endpoints import charge
from tests.http.sites import assert_problem
from tests.http.variants import needs, on_memory_only

ADA, BOB = [("authorization", "Bearer ada")], [("authorization", "Bearer bob")]


def test_two_callers_with_one_key_run_twice(new_case: NewCase) -> None:
    """Section 5, I10: the scope is the digest of the whole Authorization field."""
    case = new_case(charge)
    assert [case.send(headers=who).json() for who in (ADA, BOB)] == [{"charge": 1}, {"charge": 2}]
    assert [case.send(headers=who).json() for who in (ADA, BOB)] == [{"charge": 1}, {"charge": 2}]
    assert len(case.runs) == 2


def test_another_callers_request_is_not_a_mismatch(new_case: NewCase) -> None:
    """Section 5: not even a 422 is seen across callers."""
    case = new_case(charge)
    case.send(headers=ADA)
    assert case.send(headers=BOB, body=b"something else").status_code == 201


def test_a_caller_and_nobody_are_two(new_case: NewCase) -> None:
    """Section 5: without credentials the same key is another one."""
    case = new_case(charge)
    assert case.send(headers=ADA).json() == {"charge": 1}
    assert case.send().json() == {"charge": 2}


@on_memory_only
def test_a_guessable_key_of_nobody_is_refused(new_case: NewCase) -> None:
    """Section 5: anonymous keys have at least 16 characters."""
    case = new_case(charge)
    assert_problem(case.send(key="k" * 15), "key-malformed", 400, retryable=True, reuse_key=False)
    assert case.commands == []
    assert case.send(key=case.key[:16]).status_code == 201


@on_memory_only
def test_a_caller_with_credentials_may_use_short_keys(new_case: NewCase) -> None:
    """Section 5: they are only guessed within the caller's own scope."""
    case = new_case(charge)
    who = [("authorization", f"Bearer {case.key}")]
    assert case.send(key="1", headers=who).status_code == 201
    assert case.send(key="1", headers=who).headers["idempotent-replayed"] == "true"


@needs("users")
def test_two_verified_users_with_one_key_run_twice(new_case: NewCase) -> None:
    """Section 5: the framework's verified identity tells them apart."""
    case = new_case(charge)
    assert case.send(headers=[("x-user", "ada")]).json() == {"charge": 1}
    assert case.send(headers=[("x-user", "bob")]).json() == {"charge": 2}
    assert case.send(headers=[("x-user", "ada")]).json() == {"charge": 1}


@needs("users")
def test_a_verified_user_may_have_a_new_token(new_case: NewCase) -> None:
    """Section 5: the identity comes before the Authorization field, so a refreshed token is the same caller."""
    case = new_case(charge)
    case.send(headers=[("x-user", "ada"), ("authorization", "Bearer one")])
    again = case.send(headers=[("x-user", "ada"), ("authorization", "Bearer two")])
    assert again.headers["idempotent-replayed"] == "true"
