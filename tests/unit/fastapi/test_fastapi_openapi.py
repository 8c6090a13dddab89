"""FastAPI's OpenAPI description of covered operations; other operations are described as before."""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Header
from hypothesis import given
from hypothesis import strategies as st
from starlette.middleware import Middleware

from open_idempotency import IdempotencyPolicy, _openapi
from open_idempotency._core.keys import parse_value
from open_idempotency._core.models import Response
from open_idempotency.exceptions import KeyRejected
from open_idempotency.fastapi import (
    IdempotencyMiddleware,
    IdempotencyRule,
    document_idempotency,
    exempt,
    idempotent,
)
from tests.unit.core.test_problems import ALL

REF = {"schema": {"$ref": "#/components/schemas/IdempotencyProblem"}}


def create(order: dict[str, Any]) -> dict[str, Any]:
    """An endpoint with a body, for which FastAPI describes a 422 of its own."""
    return order


def shop(**fields: Any) -> FastAPI:
    """An application with a description."""
    app = FastAPI()
    app.add_middleware(IdempotencyMiddleware, backend="memory://", **fields)
    document_idempotency(app)
    return app


def described(app: FastAPI, path: str = "/charges", method: str = "post") -> dict[str, Any]:
    operation: dict[str, Any] = app.openapi()["paths"][path][method]
    return operation


def header(operation: dict[str, Any], name: str = "Idempotency-Key") -> dict[str, Any] | None:
    found = [p for p in operation.get("parameters", ()) if p["in"] == "header" and p["name"].lower() == name.lower()]
    assert len(found) < 2
    return found[0] if found else None


def is_described(operation: dict[str, Any]) -> bool:
    """Whether the header and the library's responses are described; both or neither."""
    there = header(operation) is not None
    for status in ("400", "409", "413", "422", "503"):
        content = operation["responses"].get(status, {}).get("content", {})
        assert ("application/problem+json" in content) is there
    return there


@pytest.mark.parametrize("required", [True, False])
def test_a_covered_operation_has_the_header_and_our_responses(required: bool) -> None:
    """O-03, O-05, O-06: the header is required where the route requires it."""
    app = shop(required=required)
    app.add_api_route("/charges", create, methods=["POST"])
    operation = described(app)
    found = header(operation)
    assert found is not None
    assert (found["required"], found["schema"]["type"]) == (required, "string")
    for status in ("400", "409", "413", "422", "503"):
        assert operation["responses"][status]["content"]["application/problem+json"] == REF
    assert ("missing" in operation["responses"]["400"]["description"]) is required


def test_fastapis_own_validation_error_stays() -> None:
    """O-05: one status, two media types."""
    app = shop()
    app.add_api_route("/charges", create, methods=["POST"])
    response = described(app)["responses"]["422"]
    assert response["content"]["application/json"] == {"schema": {"$ref": "#/components/schemas/HTTPValidationError"}}
    assert response["description"].startswith("Validation Error. ")


def test_what_the_application_says_of_a_status_stays() -> None:
    """Nothing is overwritten."""
    app = shop()
    said = {409: {"description": "Sold out", "content": {"application/problem+json": {"example": {"a": 1}}}}}
    app.add_api_route("/charges", create, methods=["POST"], responses=said)
    response = described(app)["responses"]["409"]
    assert response["content"] == {"application/problem+json": {"example": {"a": 1}}}
    assert response["description"].startswith("Sold out. ")


def test_a_header_that_the_endpoint_declares_is_not_described_twice() -> None:
    """The parameter becomes required where the route requires a key."""

    def endpoint(idempotency_key: Annotated[str | None, Header(description="ours")] = None) -> None:
        """Reads the key."""

    app = shop(required=True)
    app.add_api_route("/charges", endpoint, methods=["POST"])
    found = header(described(app))
    assert found is not None
    assert (found["description"], found["required"]) == ("ours", True)


def test_operations_that_are_not_covered_have_none_of_it() -> None:
    """Not covered by method, or by rule; FastAPI's own 422 is unchanged."""
    app = shop()
    for method in ("POST", "PATCH", "PUT", "DELETE", "GET"):
        app.add_api_route("/charges", lambda order=None: order, methods=[method])
    app.add_api_route("/ping", exempt(lambda order=None: order), methods=["POST"])
    covered = {method for method, operation in app.openapi()["paths"]["/charges"].items() if is_described(operation)}
    assert covered == {"post", "patch"}
    assert not is_described(described(app, "/ping"))


def test_without_a_middleware_nothing_is_described() -> None:
    """Only covered routes are described."""
    app = FastAPI()
    app.add_api_route("/charges", create, methods=["POST"])
    before = app.openapi()
    document_idempotency(app)
    assert app.openapi() == before
    assert "IdempotencyProblem" not in app.openapi()["components"]["schemas"]


def test_rules_of_routes_and_routers_are_described() -> None:
    """The description says what the middleware does."""
    app = shop()
    router = APIRouter(prefix="/api", dependencies=[Depends(IdempotencyRule(required=True))])
    router.add_api_route("/charges", create, methods=["POST"])
    puts = idempotent(methods=["PUT"])(lambda order=None: order)
    router.add_api_route("/puts", puts, methods=["PUT"])
    router.add_api_route("/puts", puts, methods=["POST"])
    router.add_api_route("/named", idempotent(header="X-Key")(lambda order=None: order), methods=["POST"])
    app.include_router(router)
    app.include_router(router, prefix="/free", dependencies=[])
    found = header(described(app, "/api/charges"))
    assert found is not None
    assert found["required"] is True
    assert header(described(app, "/api/named"), "x-key") is not None
    assert is_described(described(app, "/api/puts", "put"))
    assert not is_described(described(app, "/api/puts"))
    assert is_described(described(app, "/free/api/charges"))


def test_a_route_that_is_not_shown_stays_so() -> None:
    """A route with ``include_in_schema=False`` is no error."""
    app = shop()
    app.add_api_route("/charges", create, methods=["POST"], include_in_schema=False)
    assert app.openapi()["paths"] == {}


def test_of_two_routes_with_one_path_the_described_one_counts() -> None:
    """FastAPI describes the later route."""
    app = shop()
    app.add_api_route("/charges", create, methods=["POST"], operation_id="one")
    app.add_api_route("/charges", exempt(lambda: None), methods=["POST"], operation_id="two")
    operation = described(app)
    assert (operation["operationId"], is_described(operation)) == ("two", False)


def test_a_policy_speaks_for_a_middleware_outside() -> None:
    """``policy=`` describes an application that another application's middleware covers."""
    app = FastAPI()
    document_idempotency(app, IdempotencyPolicy(required=True))
    app.add_api_route("/charges", create, methods=["POST"])
    found = header(described(app))
    assert found is not None
    assert found["required"] is True


def test_the_innermost_middleware_is_described() -> None:
    """The innermost middleware protects."""
    inner = Middleware(IdempotencyMiddleware, "memory://", policy=IdempotencyPolicy(header="X-Inner"), required=True)
    app = FastAPI(middleware=[Middleware(IdempotencyMiddleware, "memory://"), inner])
    document_idempotency(app)
    app.add_api_route("/charges", create, methods=["POST"])
    found = header(described(app), "X-Inner")
    assert found is not None
    assert found["required"] is True
    assert header(described(app)) is None


def test_problems_of_a_renderer_have_no_schema_of_ours() -> None:
    """``render_problem=`` may return any body."""
    app = shop(render_problem=lambda problem: Response(problem.status, [], b"no"))
    app.add_api_route("/charges", create, methods=["POST"])
    operation = described(app)
    assert header(operation) is not None
    assert set(operation["responses"]["422"]["content"]) == {"application/json"}
    assert "content" not in operation["responses"]["409"]


def test_responses_in_stripes_shape_have_stripes_statuses() -> None:
    """With ``compat="stripe"`` a reused key gets 400, and errors are no problem documents."""
    app = shop(compat="stripe")
    app.add_api_route("/charges", create, methods=["POST"])
    responses = described(app)["responses"]
    assert "another request" in responses["400"]["description"]
    assert "malformed" in responses["400"]["description"]
    assert "another request" not in responses["422"]["description"]
    assert "content" not in responses["400"]


def asked(app: FastAPI, method: str, path: str, body: Any = None) -> Any:
    """The description that the application serves, in process."""

    async def request() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.request(method, path, json=body)

    return asyncio.run(request()).json()


def test_the_description_is_served_and_grows_with_the_routes() -> None:
    """FastAPI caches the description."""
    app = shop()
    app.add_api_route("/charges", create, methods=["POST"])
    assert is_described(asked(app, "GET", "/openapi.json")["paths"]["/charges"]["post"])
    assert app.openapi() is app.openapi()
    app.openapi_schema = None
    app.add_api_route("/orders", create, methods=["POST"])
    assert is_described(described(app, "/orders"))


def test_the_schema_is_that_of_a_problem() -> None:
    """RFC 9457: RFC 9457: a problem as it is sent has the described members, with their types."""
    app = shop(required=True)
    app.add_api_route("/charges", create, methods=["POST"])
    schema = app.openapi()["components"]["schemas"]["IdempotencyProblem"]
    sent = asked(app, "POST", "/charges", {})
    types = {"string": str, "integer": int, "boolean": bool}
    described_types = {name: types[said["type"]] for name, said in schema["properties"].items()}
    assert described_types == {name: type(value) for name, value in sent.items()}
    assert schema["required"] == list(sent)


# The description of keys, and of headers of responses


def described_key(**fields: Any) -> dict[str, Any]:
    """The parameter that describes the key."""
    operation: dict[str, Any] = {}
    _openapi.document(operation, IdempotencyPolicy(**fields), {})
    (parameter,) = operation["parameters"]
    found: dict[str, Any] = parameter
    return found


PATTERNS = {profile: described_key(profile=profile)["schema"]["pattern"] for profile in ("lenient", "strict")}


@pytest.mark.parametrize("profile", PATTERNS)
@given(st.data())
def test_a_key_that_the_description_allows_is_taken(profile: str, data: st.DataObject) -> None:
    """H-14: a client generated from the description is never refused for the form of its keys."""
    written = data.draw(st.from_regex(PATTERNS[profile], fullmatch=True).filter(lambda text: "\n" not in text))
    assert parse_value(written.encode(), profile)


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40), st.booleans())
def test_a_key_as_clients_send_it_is_allowed_where_it_is_taken(key: str, quoted: bool) -> None:
    """H-14: bare, or in quotes, which the profile ``strict`` requires."""
    written = f'"{key}"' if quoted else key
    for profile, pattern in PATTERNS.items():
        try:
            parse_value(written.encode(), profile)
        except KeyRejected:
            assert not re.fullmatch(pattern, written)
        else:
            # Parameters are accepted, and no client sends any.
            assert re.fullmatch(pattern, written) or ";" in written


@pytest.mark.parametrize("profile", PATTERNS)
def test_the_examples_of_keys_are_keys(profile: str) -> None:
    """H-14: quoted and bare; only quoted in the profile ``strict``."""
    examples = {name: each["value"] for name, each in described_key(profile=profile)["examples"].items()}
    assert set(examples) == ({"quoted", "bare"} if profile == "lenient" else {"quoted"})
    assert len({parse_value(value.encode(), profile) for value in examples.values()}) == 1


def test_the_key_is_described_as_what_the_other_documents_say() -> None:
    """H-12, H-14: a key of an anonymous caller needs 16 characters."""
    assert "Without credentials it needs at least 16 characters" in described_key()["description"]


def test_a_replay_is_distinguished_by_a_header_that_is_described() -> None:
    """H-14: on responses of the application; Retry-After on the problems that may be retried."""
    app = shop(max_live_keys=5)
    app.add_api_route("/charges", create, methods=["POST"], status_code=201)
    responses = described(app)["responses"]
    assert set(responses) == {"201", "400", "409", "413", "422", "429", "503"}
    assert set(responses["201"]["headers"]) == {"Idempotent-Replayed", "Idempotency-Status"}
    for status in ("409", "429", "503"):
        assert responses[status]["headers"]["Retry-After"]["schema"]["type"] == "integer"
    for status in ("400", "413", "422"):
        assert "headers" not in responses[status]


def test_headers_that_the_application_describes_stay() -> None:
    """H-14: nothing is overwritten."""
    app = shop()
    said: Any = {201: {"headers": {"idempotent-replayed": {"description": "Again"}}}}
    app.add_api_route("/charges", create, methods=["POST"], status_code=201, responses=said)
    headers = described(app)["responses"]["201"]["headers"]
    assert headers["idempotent-replayed"] == {"description": "Again"}
    assert set(headers) == {"idempotent-replayed", "Idempotency-Status"}


def test_a_response_that_is_described_elsewhere_stays() -> None:
    """H-14: other operations share it by a reference."""
    operation = {"responses": {"201": {"$ref": "#/a"}, "503": {"$ref": "#/b"}}}
    _openapi.document(operation, IdempotencyPolicy(), {})
    assert (operation["responses"]["201"], operation["responses"]["503"]) == ({"$ref": "#/a"}, {"$ref": "#/b"})


def test_the_description_names_every_status_of_a_problem_that_any_application_may_get() -> None:
    """H-14: 429 comes with a quota, 401 and 403 with the application's ``scope=``, and 500 with its transaction."""
    ours = {str(status) for _, _, status in ALL} - {"401", "403", "500"}
    operation: dict[str, Any] = {}
    _openapi.document(operation, IdempotencyPolicy(max_live_keys=1), {})
    assert ours <= set(operation["responses"])
