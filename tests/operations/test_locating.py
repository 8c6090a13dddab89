"""From a key and its caller to the record: by policies, by rules of routes, and in the backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpResponse
from fastapi import FastAPI
from flask import Flask
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from open_idempotency import IdempotencyPolicy, adapter, asgi, fastapi, operations, starlette, wsgi
from open_idempotency._core.keys import About, caller_of, caller_scope, record_id
from open_idempotency._core.models import Identity, Request
from open_idempotency.backend import Claim, Record
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.django import idempotent as django_idempotent
from open_idempotency.exceptions import ConfigurationError, KeyRejected
from open_idempotency.flask import Idempotency, idempotent
from tests.django_project.calls import project

KEY = "8e03978e-40d5-43e8-bc93-6894a57f9324"


def _id(
    policy: IdempotencyPolicy,
    identity: Identity,
    *headers: tuple[bytes, bytes],
    path: bytes = b"/",
    method: str = "POST",
) -> str:
    """The id of the record that a request makes."""
    request = Request(method, path, b"", headers, None)
    return record_id(caller_scope(request, identity, KEY, policy), KEY, request, policy).hex()


def _ids(of: object, **who: Any) -> list[str]:
    return [each.record for each in operations.locate(of, KEY, **who)]


CALLERS: dict[str, tuple[dict[str, Any], dict[str, Any], Identity, tuple[tuple[bytes, bytes], ...]]] = {
    "a user": ({}, {"user": 7}, Identity("7"), ()),
    "a user of a tenant": ({}, {"user": "7", "tenant": "acme"}, Identity("7", "acme"), ()),
    "a session": ({}, {"session": {"user_id": 7}}, Identity(None, "", {"user_id": 7}), ()),
    "a bearer": ({}, {"authorization": "Bearer a"}, Identity(None), ((b"authorization", b"Bearer a"),)),
    "an api key": ({}, {"headers": {"X-API-Key": "k"}}, Identity(None), ((b"x-api-key", b"k"),)),
    "both": (
        {},
        {"authorization": "Bearer a", "headers": {"X-API-Key": "k"}},
        Identity(None),
        ((b"x-api-key", b"k"), (b"authorization", b"Bearer a")),
    ),
    "nobody": ({}, {}, Identity(None), ()),
    "everybody": ({"scope": "anonymous"}, {"user": "7"}, Identity("7"), ()),
    "a named service": ({"application": "shop"}, {"user": "7"}, Identity("7"), ()),
    "a secret": ({"secret": b"s" * 32}, {"user": "7"}, Identity("7"), ()),
    "a host": (
        {"scope_by_host": True},
        {"user": "7", "host": "a.example"},
        Identity("7"),
        ((b"host", b"a.example"),),
    ),
}


@pytest.mark.parametrize("name", CALLERS)
def test_a_record_is_located_as_a_request_locates_it(name: str) -> None:
    """P-03, O-14: every kind of caller, with tenants, hosts, application names and secrets."""
    fields, who, identity, headers = CALLERS[name]
    policy = IdempotencyPolicy(**fields)
    assert _ids(policy, **who)[0] == _id(policy, identity, *headers)


def test_the_result_of_a_scope_callable_names_the_caller() -> None:
    """P-03: the callable is not called, since there is no request."""
    policy = IdempotencyPolicy(scope=lambda request: "org-1")
    assert _ids(policy, scope="org-1") == [_id(policy, Identity(None))]
    with pytest.raises(operations.CallerNeeded, match="scope=") as refused:
        operations.locate(policy, KEY, user="7")
    assert operations.exit_code_of(refused.value) is operations.ExitCode.USAGE
    with pytest.raises(operations.CallerNeeded, match="no scope= callable"):
        operations.locate(IdempotencyPolicy(), KEY, scope="org-1")


def test_a_user_may_be_known_by_the_session_alone() -> None:
    """P-03: those records are listed too, after that of the framework's user."""
    located = operations.locate(IdempotencyPolicy(session_identity=("uid",)), KEY, user="7")
    assert [each.caller for each in located] == ["user", "session uid"]
    policy = IdempotencyPolicy(session_identity=("uid",))
    assert located[1].record == _id(policy, Identity(None, "", {"uid": 7}))


def test_another_application_name_may_be_given() -> None:
    """P-03: for a service whose policy cannot be imported."""
    assert _ids(IdempotencyPolicy(), user="7", application="shop") == [
        each.record for each in operations.locate(IdempotencyPolicy(application="shop"), KEY, user="7")
    ]


@pytest.mark.parametrize(("key", "words"), [("", "empty"), ("k" * 300, "255"), ('"a', "RFC 9651"), ("short", "16")])
def test_what_is_no_key_is_refused(key: str, words: str) -> None:
    """P-03: as in a request; a short key needs a caller."""
    with pytest.raises(KeyRejected, match=words):
        operations.locate(IdempotencyPolicy(), key)


# Applications


def _endpoint(request: Any) -> PlainTextResponse:
    return PlainTextResponse("")


def _pay(request: Any) -> PlainTextResponse:
    return PlainTextResponse("")


def _starlette() -> Any:
    paid = starlette.idempotent(application="payments")(_pay)
    api = [Route("/pay/{id:int}", paid, methods=["POST"]), Route("/plain", _endpoint, methods=["POST"])]
    app = Starlette(routes=[Mount("/api", routes=api)])
    app.add_middleware(starlette.IdempotencyMiddleware, backend="memory://")
    return app


def _fastapi() -> Any:
    app = FastAPI()
    app.add_middleware(fastapi.IdempotencyMiddleware, backend="memory://")
    router = fastapi_router()
    app.include_router(router, prefix="/api")
    return app


def fastapi_router() -> Any:
    """A router with both routes."""
    from fastapi import APIRouter, Depends

    router = APIRouter()

    @router.post("/pay/{id}", dependencies=[Depends(fastapi.IdempotencyRule(application="payments"))])
    async def pay(id: int) -> None: ...

    @router.post("/plain")
    async def plain() -> None: ...

    return router


def _flask() -> Any:
    app = Flask(__name__)
    app.add_url_rule("/api/pay/<int:id>", "pay", idempotent(application="payments")(_pay), methods=["POST"])
    app.add_url_rule("/api/plain", "plain", _endpoint, methods=["POST"])
    Idempotency(app, backend="memory://")
    return app


def _asgi() -> Any:
    rules = {"/api/pay/*": {"application": "payments"}}

    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    return asgi.IdempotencyMiddleware(app, "memory://", rules=rules)


def _wsgi() -> Any:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        return []

    return wsgi.IdempotencyMiddleware(app, "memory://", rules={"/api/pay/*": {"application": "payments"}})


APPLICATIONS: dict[str, Callable[[], Any]] = {
    "starlette": _starlette,
    "fastapi": _fastapi,
    "flask": _flask,
    "asgi": _asgi,
    "wsgi": _wsgi,
}
PLAIN, PAYMENTS = IdempotencyPolicy(), IdempotencyPolicy(application="payments")


@pytest.mark.parametrize("name", APPLICATIONS)
def test_the_rule_of_a_route_counts_where_its_path_is_given(name: str) -> None:
    """P-03: without a path, each route's record is a candidate."""
    app = APPLICATIONS[name]()
    credentials = {"authorization": "Bearer a"}
    sent = (b"authorization", b"Bearer a")
    of_plain, of_payments = (_id(policy, Identity(None), sent) for policy in (PLAIN, PAYMENTS))
    assert _ids(app, path="/api/pay/7?x=1", **credentials) == [of_payments]
    assert _ids(app, path="/api/plain", **credentials) == [of_plain]
    assert set(_ids(app, **credentials)) == {of_plain, of_payments}
    assert operations.policy_of(app) == operations.engine_of(app).policy


@pytest.mark.parametrize("name", ["starlette", "fastapi", "flask"])
def test_a_path_that_no_route_covers_is_an_error(name: str) -> None:
    """P-03: the error names the path."""
    with pytest.raises(ConfigurationError, match="POST /api/nothing is covered by no route"):
        operations.locate(APPLICATIONS[name](), KEY, method="POST", path="/api/nothing")


def test_an_applications_object_in_django_is_its_handler() -> None:
    """P-03: settings, rules of views and rules by path."""
    rules = {"/1": {"application": "by path"}}
    paid = django_idempotent(application="payments")(lambda request: HttpResponse())
    with project(paid, lambda request: HttpResponse(), IDEMPOTENCY_RULES=rules):
        app = WSGIHandler()
        found = {path: _ids(app, user="7", path=path)[0] for path in ("/0", "/1")}
        every = _ids(app, user="7")
    by_path = IdempotencyPolicy(application="by path")
    expected = {"/0": _id(PAYMENTS, Identity("7")), "/1": _id(by_path, Identity("7"))}
    assert found == expected
    assert set(expected.values()) <= set(every)


def test_an_adapters_object_is_an_application_too() -> None:
    """P-03: for a framework without an adapter of its own."""
    assert _ids(adapter.Adapter("memory://", application="payments"), user="7")[0] == _id(PAYMENTS, Identity("7"))


def test_what_is_not_protected_is_an_error() -> None:
    """P-03: the error says what to name; two middlewares are ambiguous."""
    with pytest.raises(ConfigurationError, match="object is protected by no"):
        operations.locate(object(), KEY)
    twice = Starlette(routes=[Mount("/a", _asgi()), Mount("/b", _asgi())])
    with pytest.raises(ConfigurationError, match="2 IdempotencyMiddlewares"):
        operations.engine_of(twice)


# In the backend


def _claimed(
    backend: MemoryBackend, number: int, caller: str, key: str = KEY, policy: IdempotencyPolicy = PLAIN
) -> bytes:
    """A record of a caller, as a request makes it."""
    from open_idempotency._core.keys import key_of

    request = Request("POST", b"/", b"", [], None)
    found = record_id(caller, key, request, policy)
    owner = number.to_bytes(16, "big")
    about = About("POST", "/orders", caller_of(caller, policy), "web:1", key_of(key, policy))
    backend.claim(Claim(found, b"f", owner, 30.0, 60.0, about=about.encode(owner)))
    return found


def test_a_key_that_one_caller_used_is_found_by_itself() -> None:
    """P-04: without knowing the caller."""
    backend = MemoryBackend()
    mine = _claimed(backend, 1, "user:7")
    _claimed(backend, 2, "user:8", key="another key of at least 16")
    assert operations.find_key(backend, PLAIN, f'"{KEY}"').record_id == mine


def test_a_key_that_several_callers_used_lists_them_and_asks_whose() -> None:
    """P-04: with route and caller of each, and the exit code for several."""
    backend = MemoryBackend()
    ids = {_claimed(backend, number, f"user:{number}").hex() for number in (7, 8)}
    with pytest.raises(
        operations.SeveralRecords, match=r"2 records have this key.*POST /orders, caller.*Name the caller"
    ) as many:
        operations.find_key(backend, PLAIN, KEY)
    assert set(many.value.record_ids) == ids
    assert operations.exit_code_of(many.value) is operations.ExitCode.SEVERAL
    assert operations.find_key(backend, PLAIN, KEY, user=7).record_id.hex() in ids


def test_a_key_without_a_record_is_an_error_that_says_where_it_was_looked_for() -> None:
    """P-04: with the beginning of each candidate id."""
    with pytest.raises(operations.RecordUnknown, match=r"looked for [0-9a-f]{12} \(credentials\)"):
        operations.find_key(MemoryBackend(), PLAIN, KEY, authorization="Bearer a")
    with pytest.raises(operations.RecordUnknown, match="never used"):
        operations.find_key(MemoryBackend(), PLAIN, KEY)


def test_a_record_of_an_earlier_version_is_found_by_its_anonymous_caller() -> None:
    """P-04: such a record does not contain its key."""
    backend = MemoryBackend()
    located = operations.locate(PLAIN, KEY)[0]
    backend.claim(Claim(located.record_id, b"f", b"o" * 16, 30.0, 60.0))
    assert operations.find_key(backend, PLAIN, KEY).record_id == located.record_id


def test_the_records_of_a_caller_are_found_by_what_names_it() -> None:
    """P-05: for all keys, and no other caller's records."""
    backend = MemoryBackend()
    mine = {_claimed(backend, number, "user:7", f"key number {number:08}") for number in range(3)}
    _claimed(backend, 9, "user:8")
    found: list[Record] = list(operations.records_of(backend, PLAIN, user=7))
    assert {record.record_id for record in found} == mine
    with pytest.raises(operations.CallerNeeded, match="whose records"):
        list(operations.records_of(backend, PLAIN))


def test_what_is_known_of_a_caller_is_not_shown() -> None:
    """P-05: no output or log contains credentials."""
    who = operations.Who(authorization="Bearer secret", headers={"X-API-Key": "secret"})
    assert "secret" not in repr(who)
