"""The caller of a key: two callers with one key never see each other's response."""

from __future__ import annotations

from open_idempotency import events
from tests.http.behaviours import Call, Run
from tests.http.conftest import NewCase
from tests.http.endpoints import Declined, Steps, charge
from tests.http.sites import Case, assert_problem
from tests.http.variants import needs, on_memory_only

ADA, BOB = [("authorization", "Bearer ada")], [("authorization", "Bearer bob")]


def test_two_callers_with_one_key_run_twice(new_case: NewCase) -> None:
    """I10: the scope is the digest of the whole Authorization field."""
    case = new_case(charge)
    assert [case.send(headers=who).json() for who in (ADA, BOB)] == [{"charge": 1}, {"charge": 2}]
    assert [case.send(headers=who).json() for who in (ADA, BOB)] == [{"charge": 1}, {"charge": 2}]
    assert len(case.runs) == 2


def test_two_callers_with_api_keys_run_twice(new_case: NewCase) -> None:
    """O-15: credentials in other headers distinguish callers too, and so does having none."""
    case = new_case(charge)
    callers = [[("x-api-key", "ann's")], [("x-api-key", "bob's")], [("private-token", "ann's")], []]
    assert [case.send(headers=who).json() for who in callers] == [{"charge": n} for n in (1, 2, 3, 4)]
    assert [case.send(headers=who).json() for who in callers] == [{"charge": n} for n in (1, 2, 3, 4)]
    assert len(case.runs) == 4


def test_another_callers_request_is_not_a_mismatch(new_case: NewCase) -> None:
    """A caller does not even get a 422 because of another caller's request."""
    case = new_case(charge)
    case.send(headers=ADA)
    assert case.send(headers=BOB, body=b"something else").status_code == 201


def test_a_caller_and_nobody_are_two(new_case: NewCase) -> None:
    """An anonymous caller with the same key has another record."""
    case = new_case(charge)
    assert case.send(headers=ADA).json() == {"charge": 1}
    assert case.send().json() == {"charge": 2}


@on_memory_only
def test_a_guessable_key_of_nobody_is_refused(new_case: NewCase) -> None:
    """H-12: anonymous keys have at least 16 characters; their quotes do not count."""
    case = new_case(charge)
    assert_problem(case.send(key="k" * 15), "key-malformed", 400, retryable=False)
    assert case.commands == []
    assert case.send(key=case.key[:16]).status_code == 201


@on_memory_only
def test_a_caller_with_credentials_may_use_short_keys(new_case: NewCase) -> None:
    """Such keys could be guessed only within the caller's own scope."""
    case = new_case(charge)
    who = [("authorization", f"Bearer {case.key}")]
    assert case.send(key="1", headers=who).status_code == 201
    assert case.send(key="1", headers=who).headers["idempotent-replayed"] == "true"


@needs("users")
def test_two_verified_users_with_one_key_run_twice(new_case: NewCase) -> None:
    """The framework's verified identity distinguishes them."""
    case = new_case(charge)
    assert case.send(headers=[("x-user", "ada")]).json() == {"charge": 1}
    assert case.send(headers=[("x-user", "bob")]).json() == {"charge": 2}
    assert case.send(headers=[("x-user", "ada")]).json() == {"charge": 1}


@needs("users")
def test_a_verified_user_may_have_a_new_token(new_case: NewCase) -> None:
    """The identity takes precedence over the Authorization header, so a refreshed token is the same caller."""
    case = new_case(charge)
    case.send(headers=[("x-user", "ada"), ("authorization", "Bearer one")])
    again = case.send(headers=[("x-user", "ada"), ("authorization", "Bearer two")])
    assert again.headers["idempotent-replayed"] == "true"


@needs("users")
def test_an_attempt_ends_in_the_scope_in_which_it_began(new_case: NewCase) -> None:
    """O-14: the view may set another user; the response and the stages stay its caller's."""

    def endpoint(call: Call) -> Steps:
        yield Run("reserve", lambda: call.script.notes.append("reserved"))
        assert call.become is not None
        call.become("bob")
        yield Run("charge", lambda: call.script.notes.append("charged"))
        if len(call.script.runs) == 1:
            raise Declined
        return (yield from charge(call))

    case, ada, bob = new_case(endpoint), [("x-user", "ada")], [("x-user", "bob")]
    assert [case.send(headers=ada).status_code for _ in range(2)] == [500, 201]
    assert case.send(headers=ada).headers["idempotent-replayed"] == "true"
    assert case.script.notes == ["reserved", "charged"]
    case.site.client.cookies.clear()  # a session that was begun for Bob knows the record
    assert "idempotent-replayed" not in case.send(headers=bob).headers
    assert len(case.runs) == 3


@on_memory_only
def test_callers_known_by_a_token_alone_are_warned_about_once(new_case: NewCase) -> None:
    """With its next token such a caller is a new one, and runs again."""
    case = new_case(charge, "advised")
    assert [case.send(headers=who).json() for who in (ADA, BOB, ADA)] == [{"charge": 1}, {"charge": 2}, {"charge": 1}]
    assert [type(event) for event in case.events].count(events.CredentialScoped) == 1


def log_in(case: Case, name: str | None) -> None:
    """Log this user in by the session; None: no session."""
    case.site.client.cookies.clear()
    if name is not None:
        assert case.send("GET", f"/login/{name}", key=None).status_code == 200


@needs("sessions")
def test_two_users_of_a_session_with_one_key_run_twice(new_case: NewCase) -> None:
    """O-19: the session distinguishes them; the framework's authentication does not know them."""
    case, callers = new_case(charge), ["ada", "bob", None]
    for _ in range(2):
        for number, name in enumerate(callers, 1):
            log_in(case, name)
            assert case.send().json() == {"charge": number}
    assert len(case.runs) == len(callers)


@needs("sessions")
def test_a_verified_user_comes_before_the_session(new_case: NewCase) -> None:
    """O-19: the session may name another user."""
    case = new_case(charge)
    for name in ("ada", "bob"):
        log_in(case, name)
        assert case.send(headers=[("x-user", "eve")]).json() == {"charge": 1}


@on_memory_only
def test_cookies_that_name_nobody_are_warned_about_once(new_case: NewCase) -> None:
    """O-19a: the warning has their names, and never their values."""
    case = new_case(charge, "advised of cookies")
    for value in ("sid=secret; csrftoken=1", "sid=other"):
        assert case.send(headers=[("cookie", value)]).json() == {"charge": 1}
    (event,) = [each for each in case.events if isinstance(each, events.CallerUnidentified)]
    assert (event.cookies, event.entries) == (("sid",), ())


def test_callers_who_are_meant_to_be_one_share_a_response(new_case: NewCase) -> None:
    """O-19b: whatever they send, with an unguessable key; nothing is warned about."""
    case = new_case(charge, "anonymous")
    callers = [ADA, BOB, [("x-user", "ada")], [("cookie", "sid=1")], []]
    assert [case.send(headers=who).json() for who in callers] == [{"charge": 1}] * len(callers)
    assert_problem(case.send(key="k" * 15, headers=ADA), "key-malformed", 400, retryable=False)
    advice = (events.CredentialScoped, events.CallerUnidentified)
    assert not any(isinstance(event, advice) for event in case.events)


def test_by_route_a_key_is_good_for_several_endpoints(new_case: NewCase) -> None:
    """With ``scope_by_route`` each endpoint has its own response for the key, instead of a 422 (O-05)."""
    case = new_case(charge, "by route")
    routes = [("POST", "/charges"), ("POST", "/refunds"), ("PATCH", "/charges")]
    assert [case.send(*route).json() for route in routes] == [{"charge": 1}, {"charge": 2}, {"charge": 3}]
    again = [case.send(*route) for route in routes]
    assert [response.json() for response in again] == [{"charge": 1}, {"charge": 2}, {"charge": 3}]
    assert {response.headers["idempotent-replayed"] for response in again} == {"true"}


def test_by_route_a_key_is_still_good_for_one_request_there(new_case: NewCase) -> None:
    """O-05: body and query are compared as always."""
    case = new_case(charge, "by route")
    case.send()
    for change in ({"body": b"other"}, {"path": "/charges?currency=EUR"}):
        assert_problem(case.send(**change), "key-reused", 422, retryable=False)
    assert len(case.runs) == 1
