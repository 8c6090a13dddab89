"""Rules by path of the plain ASGI and WSGI middleware: which rule a path has; no spelling of a path bypasses it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import pytest

from open_idempotency import IdempotencyPolicy
from open_idempotency._engine.engine import running
from open_idempotency._routes.coverage import Coverages, PathRules
from open_idempotency.asgi import IdempotencyMiddleware as AsgiMiddleware
from open_idempotency.asgi import IdempotencyRule, exempt
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.exceptions import ConfigurationError
from open_idempotency.wsgi import IdempotencyMiddleware as WsgiMiddleware
from tests.unit.builders import engine_of
from tests.unit.wsgi.wsgi_server import environ, serve

REQUIRED = {"required": True}
KEY = "8e03978e-40d5-43e8-bc93-6894a57f9324"


class Asgi:
    """The pure ASGI middleware around an application that responds ``done``."""

    def __init__(self, rules: Any, **fields: Any) -> None:
        self.active: list[str] = []
        self._middleware = AsgiMiddleware(self._app, fields.pop("backend", "memory://"), rules=rules, **fields)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self.active.append(stages_here())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    def __call__(
        self, path: str, method: str = "POST", key: str | None = None, root: str = "", body: bytes = b"", **more: str
    ) -> int:
        """Send one request, whose path is written as in a URL; return the status."""
        fields = {**more, **({} if key is None else {"idempotency-key": key})}
        headers = [(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()]
        scope = {"type": "http", "method": method, "path": root + unquote(path), "raw_path": (root + path).encode()}
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(
            self._middleware({**scope, "root_path": root, "query_string": b"", "headers": headers}, receive, send)
        )
        return int(sent[0]["status"])


class Wsgi:
    """The WSGI middleware around the same application."""

    def __init__(self, rules: Any, **fields: Any) -> None:
        self.active: list[str] = []
        self._middleware = WsgiMiddleware(self._app, fields.pop("backend", "memory://"), rules=rules, **fields)

    def _app(self, environ: Any, start_response: Any) -> list[bytes]:
        self.active.append(stages_here())
        start_response("200 OK", [])
        return [b"done"]

    def __call__(
        self, path: str, method: str = "POST", key: str | None = None, root: str = "", body: bytes = b"", **more: str
    ) -> int:
        """Send one request, whose path is written as in a URL; return the status."""
        fields = {"HTTP_" + name.upper(): value for name, value in more.items()}
        decoded = unquote(path, "latin-1")
        request = environ(body, key=key, REQUEST_METHOD=method, PATH_INFO=decoded, SCRIPT_NAME=root, **fields)
        return int(serve(self._middleware, request).status[:3])


def stages_here() -> str:
    """Whether the application may save stages, and where they go: refused, run without a record, or recorded."""
    here = running.get()
    if here is None:
        return "no"
    return "plain" if here[0].lease is None else "recorded"


both = pytest.mark.parametrize("adapter", [Asgi, Wsgi], ids=["asgi", "wsgi"])
Adapter = Callable[..., Any]


@both
def test_a_path_can_require_a_key(adapter: Adapter) -> None:
    """O-06: all other paths have the middleware's own policy."""
    send = adapter({"/payments/*": REQUIRED})
    assert [send(path) for path in ("/payments/1", "/payments", "/refunds", "/paymentsx")] == [400, 400, 200, 200]
    assert send("/payments/1", key=KEY) == 200


@both
def test_a_path_can_be_exempt(adapter: Adapter) -> None:
    """S-03: whatever the request carries; there is no request to save stages for, and the backend is not called."""
    backend = MemoryBackend()
    send = adapter({"POST /ping": exempt}, required=True, backend=backend)
    assert [send("/ping"), send("/ping", key=KEY), send("/ping", method="PATCH"), send("/other")] == [
        200,
        200,
        400,
        400,
    ]
    assert (send.active, list(backend.scan())) == (["no", "no"], [])


@both
def test_a_rule_may_be_for_one_method(adapter: Adapter) -> None:
    send = adapter({"PATCH /charges/{id}": REQUIRED})
    assert [send("/charges/1", method="PATCH"), send("/charges/1"), send("/charges", method="PATCH")] == [400, 200, 200]


@both
def test_a_path_opts_another_method_in(adapter: Adapter) -> None:
    """PUT and DELETE are covered for one path alone."""
    send = adapter({"/charges/{id}": {"methods": ["PUT"], "required": True}})
    assert [send("/charges/1", method="PUT"), send("/charges/1"), send("/other", method="PUT")] == [400, 200, 200]
    assert send.active == ["no", "no"]


@both
def test_a_path_has_a_header_of_its_own(adapter: Adapter) -> None:
    """A rule may set any policy field."""
    send = adapter({"/hooks/*": {"header": "X-Request-Key", "required": True}})
    assert [send("/hooks/a", key=KEY), send("/hooks/a", x_request_key=KEY)] == [400, 200]


@both
def test_a_request_body_is_bounded_by_its_paths_own_limit(adapter: Adapter) -> None:
    """O-07."""
    send = adapter({"/small": {"max_request_bytes": 0}}, max_request_bytes=10)
    assert [send("/small", key=KEY, body=b"five!"), send("/other", key=KEY, body=b"five!")] == [413, 200]


@both
def test_get_has_no_rule(adapter: Adapter) -> None:
    """GET is never covered."""
    assert adapter({"/*": REQUIRED})("/payments", method="GET") == 200


@both
def test_the_mount_point_is_no_part_of_the_path(adapter: Adapter) -> None:
    """With ``root_path`` and SCRIPT_NAME; rules are written like the application's own routes."""
    send = adapter({"/payments/*": REQUIRED})
    assert [send("/payments/1", root="/api"), send("/api/payments/1"), send("/payments", root="/api/v1")] == [
        400,
        200,
        400,
    ]


def test_a_root_path_that_a_server_has_taken_off_is_no_part_either() -> None:
    """Some servers include the root path in the path, some do not."""
    rules = PathRules({"/payments": REQUIRED}, Coverages(engine_of()))
    assert rules.find("POST", "/payments", b"/payments", "/api")
    assert rules.find("POST", "/api/payments", b"/api/payments", "/api")
    assert not rules.find("POST", "/apix/payments", b"/apix/payments", "/api")


# No spelling bypasses a rule

REQUIRED_ANYWAY = [
    "/payments/", "//payments", "/payments//", "/PAYMENTS", "/Payments/1", "/payments%2F1", "/payments%2f1",
    "/%70ayments", "/./payments", "/x/../payments", "/payments/./1", "/%2e/payments", "/x/%2e%2e/payments",
    "/x%2f..%2fpayments",
    "/payments%252F1", "/%2570ayments", "/payments%5C1", "/payments\\1", "/..//payments/x", "/payments/%",
]  # fmt: skip


@both
@pytest.mark.parametrize("path", REQUIRED_ANYWAY)
def test_an_odd_spelling_does_not_escape_a_required_key(adapter: Adapter, path: str) -> None:
    """O-06: however the application reads the path."""
    assert adapter({"/payments/*": REQUIRED})(path) == 400


NOT_EXEMPT = [
    "/hooks/../payments", "/hooks/%2e%2e/payments", "/hooks%2f..%2fpayments", "/hooks/..%2fpayments", "/HOOKS/x",
    "/hooks/%252e%252e/payments", "/hooks/..%5Cpayments", "/hooks/..\\payments",
]  # fmt: skip


@both
@pytest.mark.parametrize("path", NOT_EXEMPT)
def test_an_odd_spelling_does_not_borrow_an_exemption(adapter: Adapter, path: str) -> None:
    """Of two readings of a path, the one that protects more applies."""
    assert adapter({"/hooks/*": exempt}, required=True)(path) == 400
    assert adapter({"/hooks/*": {"required": False}}, required=True)(path) == 400


def test_an_encoded_slash_may_be_one_character_of_a_segment() -> None:
    """An application that routes the raw path does not treat ``/hooks%2Fx`` as ``/hooks/x``."""
    assert Asgi({"/hooks/*": exempt}, required=True)("/hooks%2Fx") == 400
    assert Asgi({"/{name}": REQUIRED})("/a%2Fb") == 400


@both
def test_ordinary_spellings_are_exempt(adapter: Adapter) -> None:
    """Ordinary percent-encoding is accepted."""
    send = adapter({"/hooks/*": exempt}, required=True)
    assert [send(path) for path in ("/hooks", "/hooks/", "/hooks/a%20b", "/hooks/caf%C3%A9", "/hooks/Ab")] == [200] * 5


@both
def test_a_path_beyond_ascii_is_written_decoded(adapter: Adapter) -> None:
    send = adapter({"/café/{id}": REQUIRED})
    assert [send("/caf%C3%A9/1"), send("/CAF%C3%89/1"), send("/cafe/1")] == [400, 400, 200]


def test_a_path_of_any_length_is_looked_at_in_bounded_depth() -> None:
    """A path is not split deeper than the deepest pattern."""
    rules = PathRules({"/{a}/{b}/*": REQUIRED}, Coverages(engine_of()))
    assert rules.find("POST", "/a" * 50_000)
    assert not rules.find("POST", "/" * 50_000)


# Which of several rules applies


def fields(rules: dict[str, Any], path: str, method: str = "POST", **policy: Any) -> IdempotencyPolicy | None:
    """The policy of a path; None where it is exempt."""
    coverages = Coverages(engine_of(**policy))
    coverage = coverages.by(PathRules(rules, coverages).find(method, path))
    return coverage and coverage.policy


def test_the_most_specific_rule_decides_and_adds_to_the_wider_ones() -> None:
    """The order in which the rules are written does not matter."""
    rules = {
        "POST /payments/refunds": {"wait": 4},
        "/payments/refunds": {"wait": 3, "ttl": 60},
        "/payments/{kind}": {"wait": 2, "ttl": 50, "lease": 20},
        "/payments/*": {"wait": 1, "required": True},
    }
    assert _four(fields(rules, "/payments/refunds")) == (4, 60, 20, True)
    assert _four(fields(rules, "/payments/refunds", "PATCH")) == (3, 60, 20, True)
    assert _four(fields(rules, "/payments/others")) == (2, 50, 20, True)
    assert _four(fields(rules, "/payments/a/b")) == (1, 86_400, 30, True)
    assert _four(fields(rules, "/")) == (0, 86_400, 30, False)


def _four(policy: IdempotencyPolicy | None) -> tuple[float, float, float, bool]:
    assert policy is not None
    return policy.wait, policy.ttl, policy.lease, policy.required


def test_the_earlier_segment_counts_more() -> None:
    """For two patterns that overlap."""
    rules = {"/a/*": {"wait": 1}, "/{any}/b": {"wait": 2}}
    policy = fields(rules, "/a/b")
    assert policy is not None
    assert policy.wait == 1


def test_an_exemption_ends_what_was_said_farther_out() -> None:
    """A rule within the exemption covers again, with the middleware's own policy."""
    rules = {"/*": REQUIRED, "/hooks/*": exempt, "/hooks/paid": {"wait": 2}}
    assert fields(rules, "/hooks/x") is None
    policy = fields(rules, "/hooks/paid")
    assert policy is not None
    assert (policy.required, policy.wait) == (False, 2.0)


def test_a_rule_object_says_its_fields_by_name() -> None:
    """FastAPI takes the same object as a dependency."""
    policy = fields({"/charges": IdempotencyRule(ttl=60)}, "/charges")
    assert policy is not None
    assert policy.ttl == 60
    assert fields({"/charges": IdempotencyRule(exempt=True)}, "/charges") is None


# Wrong rules are reported at start

WRONG = [
    ({"/x": {"requird": True}}, r"rules\['/x'\]: requird: .* did you mean required"),
    ({"/x": {"ttl": -1}}, r"rules\['/x'\]: ttl: must be more than 0"),
    ({"/x": {"ttl": 1}}, r"rules\['/x'\]: ttl: 1.0 s is shorter than lease"),
    ({"/x": True}, r"rules\['/x'\]: expected a dictionary of policy fields, an IdempotencyRule or exempt, got True"),
    ({"/a/*": {"ttl": 60}, "/a/b": {"lease": 61}}, r"rules\['/a/\*'\] with rules\['/a/b'\]|rules\['/a/b'\]: ttl"),
    ({"/a/*": {"ttl": 60}, "/{x}/b": {"lease": 61}}, r"rules\['/a/\*'\] with rules\['/\{x\}/b'\]: ttl"),
    ({"x": REQUIRED}, "the path has to begin with a slash"),
    ({"": REQUIRED}, "the path has to begin with a slash"),
    ({"/x//y": REQUIRED}, "an empty or dotted segment"),
    ({"/x/../y": REQUIRED}, "an empty or dotted segment"),
    ({"/x*": REQUIRED}, "'x\\*': a segment is text"),
    ({"/*/x": REQUIRED}, "'\\*': a segment is text"),
    ({"/<int:id>": REQUIRED}, "a segment is text or '{name}'"),
    ({"/{id:int}": REQUIRED}, "a segment is text or '{name}'"),
    ({"/caf%C3%A9": REQUIRED}, "write the path decoded"),
    ({"/x?y": REQUIRED}, "write the path decoded, without a query"),
    ({"/x": REQUIRED, "/x/": REQUIRED}, r"rules\['/x/'\]: fits the same paths as rules\['/x'\]"),
    ({"/x/{a}": REQUIRED, "/x/{b}": REQUIRED}, "fits the same paths"),
    ({"/x": REQUIRED, "/X": REQUIRED}, "fits the same paths"),
    ({"GET /x": REQUIRED}, "GET can never be covered"),
    ({"PUT /x": REQUIRED}, r"PUT is not covered; add methods=\['PUT'\]"),
    ({"P*T /x": REQUIRED}, "'P\\*T' is no HTTP method"),
    ({b"/x": REQUIRED}, "expected a path such as '/payments/\\*'"),
    ([("/x", REQUIRED)], "rules: expected a dictionary of paths"),
]


@both
@pytest.mark.parametrize(("rules", "complaint"), WRONG, ids=lambda case: str(case)[:40])
def test_a_wrong_rule_is_named_at_once(adapter: Adapter, rules: Any, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        adapter(rules)


def test_rules_that_never_meet_do_not_contradict() -> None:
    """Only rules that can apply together are validated together."""
    PathRules(
        {"/a/*": {"ttl": 60}, "/b": {"lease": 61}, "POST /c": {"ttl": 60}, "PATCH /c": {"lease": 61}}, coverages()
    )
    PathRules({"/{x}/b": {"ttl": 60}, "/a/*": {"lease": 61}, "/a/b": {"lease": 5}}, coverages())


def coverages() -> Coverages:
    """The coverages of a default policy."""
    return Coverages(engine_of())


# Two middlewares, one inside the other


@both
def test_an_inner_middleware_with_another_header_leaves_the_request_alone(adapter: Adapter) -> None:
    """The outer one protects, so stages belong to its attempt, and an exemption inside has no effect on it."""
    inner = adapter({"/ping": exempt}, header="X-Other", backend="memory://")
    backend = MemoryBackend()
    outer = adapter(None, backend=backend)
    outer._middleware.app = inner._middleware
    assert [outer("/charges", key=KEY), outer("/ping", key=KEY + "2")] == [200, 200]
    assert inner.active == ["recorded", "recorded"]
    assert len(list(backend.scan())) == 2


def test_what_is_remembered_of_a_path_is_not_said_of_another_spelling() -> None:
    """One decoded path has two spellings; each is looked up again after both are cached."""
    app = Asgi({"/payments/{id}": REQUIRED})
    assert [app(path) for path in ("/payments/a/b", "/payments/a%2Fb") * 2] == [200, 400, 200, 400]


def test_a_path_of_any_length_has_its_rule() -> None:
    """A path that is too long for the cache is looked up each time."""
    app = Asgi({"/payments/{id}": REQUIRED})
    assert [app("/payments/" + "x" * length) for length in (10, 240, 250, 5_000)] == [400] * 4
