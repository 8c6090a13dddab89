"""Rules of single routes under Starlette and FastAPI: how they are found, and which of several applies."""

from __future__ import annotations

from functools import partial
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Host, Mount, Route, Router

from open_idempotency import ConfigurationError, IdempotencyPolicy, NotStarted, idem
from open_idempotency import asgi as plain
from open_idempotency._core.commands import Claim
from open_idempotency.backends.memory import MemoryBackend
from open_idempotency.fastapi import IdempotencyRule
from open_idempotency.starlette import IdempotencyMiddleware, exempt, idempotent

pytestmark = pytest.mark.anyio


class WatchedBackend(MemoryBackend):
    """The memory backend, which also notes its claims."""

    def __init__(self) -> None:
        super().__init__()
        self.claims: list[Claim] = []

    def claim(self, c: Claim, /) -> Any:
        self.claims.append(c)
        return super().claim(c)


@pytest.fixture
def backend() -> WatchedBackend:
    return WatchedBackend()


async def send(
    app: Any, path: str = "/charges", *, key: str | None = None, method: str = "POST", **headers: str
) -> httpx.Response:
    """One request, in process; an error that the application raises becomes a response, as on a server."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    if key is not None:
        fields["idempotency-key"] = f'"{key}"'
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.request(method, path, headers=fields)


def new_key() -> str:
    return str(uuid4())


async def twice(app: Any, path: str = "/charges", **how: Any) -> bool:
    """Whether the second of two equal requests was a replay."""
    key = new_key()
    first, second = [await send(app, path, key=key, **how) for _ in range(2)]
    assert first.status_code == second.status_code == 200, first.text
    return second.headers.get("idempotent-replayed") == "true"


async def status(app: Any, path: str = "/charges", **how: Any) -> int:
    """The status of the response to a request without a key."""
    return (await send(app, path, **how)).status_code


async def charge(request: Request) -> Response:
    """Responds with another body each time."""
    return PlainTextResponse(uuid4().hex)


@idempotent(required=True)
async def strict(request: Request) -> Response:
    return await charge(request)


@exempt
async def free(request: Request) -> Response:
    return await charge(request)


def protected(*routes: Any, backend: Any = "memory://", **fields: Any) -> Starlette:
    """An application inside of the middleware."""
    return Starlette(routes=routes, middleware=[Middleware(IdempotencyMiddleware, backend=backend, **fields)])


def post(path: str, endpoint: Any, **options: Any) -> Route:
    return Route(path, endpoint, methods=["POST"], **options)


# The decorators, on every form of endpoint


class Charges(HTTPEndpoint):
    """A class with a rule for one method."""

    @idempotent(required=True)
    async def post(self, request: Request) -> Response:
        return await charge(request)

    async def patch(self, request: Request) -> Response:
        return await charge(request)


@idempotent(required=True)
class StrictCharges(HTTPEndpoint):
    """A class with a rule for all methods, and another rule for one of them."""

    async def post(self, request: Request) -> Response:
        return await charge(request)

    @exempt
    async def patch(self, request: Request) -> Response:
        return await charge(request)


async def served_from(shop: str, request: Request) -> Response:
    return await charge(request)


async def plain_asgi(scope: Any, receive: Any, send: Any) -> None:
    await PlainTextResponse("an application")(scope, receive, send)


FORMS = {
    "function": post("/charges", strict),
    "partial of a marked function": post("/charges", partial(idempotent(required=True)(served_from), "shop")),
    "marked partial": post("/charges", idempotent(required=True)(partial(served_from, "shop"))),
    "method of a class": Route("/charges", Charges),
    "class": Route("/charges", StrictCharges),
    "in a mount": Mount("/", routes=[post("/charges", strict)]),
    "in a mounted application": Mount("/", Starlette(routes=[post("/charges", strict)])),
    "in a mounted router": Mount("/", Router([post("/charges", strict)])),
    "behind a host": Host("{name}", Router([post("/charges", strict)])),
    "mounts in mounts": Mount("/", routes=[Mount("/", routes=[Host("test", Router([post("/charges", strict)]))])]),
    "mounted application": Mount("/", idempotent(required=True)(Starlette(routes=[post("/charges", charge)]))),
}


@pytest.mark.parametrize("form", FORMS)
async def test_an_endpoint_can_require_a_key(form: str, backend: WatchedBackend) -> None:
    """O-06: the decorator works wherever the route is."""
    app = protected(FORMS[form], backend=backend)
    response = await send(app)
    assert (response.status_code, response.json()["type"]) == (400, "urn:problem-type:open-idempotency:key-missing")
    assert backend.claims == []
    assert await twice(app)


async def test_a_method_of_a_class_has_its_own_rule() -> None:
    """A rule on the method, or on the class for methods without a rule."""
    app = protected(Route("/charges", Charges), Route("/strict", StrictCharges))
    assert await status(app, method="PATCH") == 200
    assert await status(app, "/strict", method="PATCH") == 200
    assert not await twice(app, "/strict", method="PATCH")


async def test_an_exempt_endpoint_is_not_covered(backend: WatchedBackend) -> None:
    """S-03: it runs each time, the backend is not called, and there is no request to record stages for."""
    noted: list[Any] = []

    @exempt
    async def endpoint(request: Request) -> Response:
        with pytest.raises(NotStarted) as caught:
            await idem.asave_stage("charge")
        noted.append(caught.type)
        return PlainTextResponse("free")

    app = protected(post("/charges", endpoint), backend=backend, required=True)
    assert not await twice(app)
    assert await status(app) == 200
    assert (noted, backend.claims) == ([NotStarted] * 3, [])


async def test_an_exempt_endpoint_takes_a_malformed_key() -> None:
    """H-08: the header is not parsed."""
    app = protected(post("/charges", free))
    assert await status(app, idempotency_key="") == 200


def own(**fields: Any) -> Any:
    """An endpoint with this rule."""

    @idempotent(**fields)
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse(f"{len(await request.body())} {uuid4().hex}")

    return endpoint


async def test_a_route_has_its_own_durations(backend: WatchedBackend) -> None:
    """TTL and lease."""
    app = protected(post("/charges", own(ttl=60, lease=5)), post("/other", charge), backend=backend)
    await send(app, key=new_key())
    await send(app, "/other", key=new_key())
    assert [(c.lease, c.ttl) for c in backend.claims] == [(5, 60), (30, 86_400)]


async def test_a_route_has_its_own_limit_of_requests() -> None:
    """O-07: lower or higher than the application's."""
    app = protected(
        post("/small", own(max_request_bytes=4)), post("/large", own(max_request_bytes=40)), max_request_bytes=10
    )
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        responses = [
            (await client.post(path, content=b"x" * size, headers={"idempotency-key": new_key()})).status_code
            for path, size in [("/small", 4), ("/small", 5), ("/large", 40), ("/large", 41)]
        ]
    assert responses == [200, 413, 200, 413]


async def test_a_route_has_its_own_limit_of_responses() -> None:
    """O-11."""
    app = protected(post("/small", own(max_response_bytes=4)), post("/charges", own()))
    key = new_key()
    assert [(await send(app, "/small", key=key)).status_code for _ in range(2)] == [200, 409]
    assert await twice(app)


async def test_a_route_has_its_own_rule_of_what_is_stored() -> None:
    """A rule may set ``store=``."""
    app = protected(post("/charges", own(store=lambda response: False)), post("/other", charge))
    assert not await twice(app)
    assert await twice(app, "/other")


async def test_a_route_opts_another_method_in() -> None:
    """PUT and DELETE are covered for one route alone."""
    app = protected(
        Route("/charges", own(methods=("PUT",)), methods=["PUT", "POST"]), Route("/other", charge, methods=["PUT"])
    )
    assert await twice(app, method="PUT")
    assert not await twice(app, method="POST")
    assert not await twice(app, "/other", method="PUT")


async def test_a_route_has_a_header_of_its_own() -> None:
    """A rule may set any policy field."""
    app = protected(post("/charges", own(header="X-Request-Key", required=True)))
    assert await status(app, idempotency_key=new_key()) == 400
    key = new_key()
    responses = [await send(app, x_request_key=key) for _ in range(2)]
    assert responses[1].headers["idempotent-replayed"] == "true"


async def test_stages_run_plainly_on_a_route_without_a_key() -> None:
    """S-03: the route's own policy applies."""

    @idempotent(strict_stages=True)
    async def endpoint(request: Request) -> Response:
        await idem.asave_stage("charge")
        return PlainTextResponse("done")

    @idempotent(ttl=60)
    async def lenient(request: Request) -> Response:
        await idem.asave_stage("charge")
        return PlainTextResponse("done")

    app = protected(post("/charges", endpoint), post("/lenient", lenient))
    assert (await status(app), await status(app, "/lenient")) == (500, 200)


async def test_a_route_that_is_added_later_is_found() -> None:
    """Routes are looked up for each request."""
    app = protected(post("/other", charge))
    assert await status(app, "/other") == 200
    app.router.routes.append(post("/charges", strict))
    assert await status(app) == 400


async def test_the_first_route_that_fits_is_the_one() -> None:
    """Routes are matched in Starlette's order, with the method."""
    app = protected(Route("/{name}", strict, methods=["PATCH"]), post("/charges", charge), post("/{name}", strict))
    assert await status(app) == 200
    assert await status(app, "/others") == 400


async def test_a_contradiction_with_the_applications_policy_runs_nothing() -> None:
    """The lease of the rule is longer than the application's TTL."""
    runs: list[int] = []

    @idempotent(lease=120)
    async def endpoint(request: Request) -> Response:
        runs.append(1)
        return PlainTextResponse("done")

    app = protected(post("/charges", endpoint), lease=5, ttl=60, max_run=60)
    assert (await status(app, key=new_key()), runs) == (500, [])


async def test_a_method_that_cannot_carry_a_rule_is_an_error() -> None:
    """The rule would be lost, so the decorator raises."""
    with pytest.raises(ConfigurationError, match="cannot carry a rule"):
        exempt(Charges(scope={"type": "http"}, receive=None, send=None).patch)


# Requests that reach no endpoint


async def test_a_redirect_to_where_a_slash_is_missing_does_not_take_the_key() -> None:
    """O-05: otherwise the redirected request would be a mismatch for its own key."""
    app = protected(post("/charges", charge))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", follow_redirects=True) as client:
        headers = {"idempotency-key": "8e03978e-40d5-43e8"}
        responses = [await client.post("/charges/", headers=headers) for _ in range(2)]
    assert [response.status_code for response in responses] == [200, 200]
    assert responses[1].headers["idempotent-replayed"] == "true"


@pytest.mark.parametrize("path", ["/nowhere", "/part/nowhere"])
async def test_a_path_without_an_endpoint_is_not_covered(path: str, backend: WatchedBackend) -> None:
    """No endpoint runs, and the path may exist later."""
    app = protected(Mount("/part", routes=[post("/charges", charge)]), backend=backend, required=True)
    assert (await status(app, path), await status(app, path, key=new_key()), backend.claims) == (404, 404, [])


class AnyMethod(Route):
    """A custom route that matches other methods where no other route matches."""

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


async def test_a_route_that_fits_but_for_the_method_is_covered() -> None:
    """The route itself may refuse the method."""
    assert await twice(protected(AnyMethod("/charges", charge, methods=["GET"])))
    assert await status(protected(AnyMethod("/charges", strict, methods=["GET"]))) == 400


async def test_a_routers_own_default_is_covered() -> None:
    """The default of a router may be an application."""
    app = protected()
    app.router.default = charge_as_application
    assert await twice(app, "/nowhere")


async def charge_as_application(scope: Any, receive: Any, send: Any) -> None:
    await PlainTextResponse(uuid4().hex)(scope, receive, send)


# Middleware of the library at several levels


def ours(backend: Any = "memory://", **fields: Any) -> list[Middleware]:
    return [Middleware(IdempotencyMiddleware, backend=backend, **fields)]


def around(place: str, backend: Any, endpoint: Any, **fields: Any) -> Any:
    """A route to ``/charges`` with a middleware of the library at this level."""
    middleware = ours(backend, **fields)
    if place == "route":
        return post("/charges", endpoint, middleware=middleware)
    if place == "mount":
        return Mount("/", routes=[post("/charges", endpoint)], middleware=middleware)
    if place == "router":
        return Mount("/", Router([post("/charges", endpoint)], middleware=middleware))
    return Mount("/", Starlette(routes=[post("/charges", endpoint)], middleware=middleware))


PLACES = pytest.mark.parametrize("place", ["route", "mount", "router", "application"])


@PLACES
async def test_a_part_of_an_application_is_covered_alone(place: str, backend: WatchedBackend) -> None:
    """A route has middleware with a policy of its own."""
    app = Starlette(routes=[post("/other", charge), around(place, backend, charge, required=True)])
    assert await status(app) == 400
    assert await twice(app)
    assert not await twice(app, "/other")


@PLACES
async def test_the_innermost_middleware_protects(place: str, backend: WatchedBackend) -> None:
    """Its policy and its backend apply from the first request on; the outer one passes the request through."""
    outer = WatchedBackend()
    app = protected(post("/other", charge), around(place, backend, charge, ttl=60), backend=outer)
    assert await twice(app)
    assert ([c.ttl for c in backend.claims], outer.claims) == ([60, 60], [])
    assert await twice(app, "/other")
    assert len(outer.claims) == 2


@PLACES
async def test_what_an_outer_middleware_requires_is_not_asked_of_an_inner_ones_route(place: str) -> None:
    """Only the innermost one decides."""
    app = protected(post("/other", charge), around(place, "memory://", charge), required=True)
    assert await status(app) == 200
    assert await status(app, "/other") == 400


@PLACES
async def test_an_exempt_endpoint_wins_over_every_middleware(place: str, backend: WatchedBackend) -> None:
    app = protected(around(place, backend, free, required=True), backend=backend, required=True)
    assert await status(app) == 200
    assert not await twice(app)
    assert backend.claims == []


@PLACES
async def test_an_endpoints_rule_adds_to_its_own_middleware(place: str, backend: WatchedBackend) -> None:
    """The decorator's fields are applied to the innermost middleware's policy."""
    app = Starlette(routes=[around(place, backend, strict, ttl=60)])
    assert await status(app) == 400
    await send(app, key=new_key())
    assert [c.ttl for c in backend.claims] == [60]


async def test_two_in_one_list_protect_once() -> None:
    outer, inner = WatchedBackend(), WatchedBackend()
    app = Starlette(routes=[post("/charges", charge)], middleware=[*ours(outer), *ours(inner)])
    assert await twice(app)
    assert (len(outer.claims), len(inner.claims)) == (0, 2)


class Hiding:
    """A middleware that does not expose the application that it wraps."""

    def __init__(self, app: Any) -> None:
        self._hidden = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._hidden(scope, receive, send)


async def test_a_middleware_that_hides_what_it_wraps_does_not_hide_the_routes() -> None:
    """The routes are found on the application."""
    app = Starlette(routes=[post("/charges", strict)], middleware=[*ours(), Middleware(Hiding)])
    assert await status(app) == 400
    assert await status(Starlette(routes=[Mount("/part", app)]), "/part/charges") == 400


async def test_an_application_that_cannot_be_seen_into_is_covered_as_a_whole() -> None:
    """Fail safe: every request is covered."""
    hidden = Hiding(Starlette(routes=[post("/charges", charge)]))
    assert await twice(protected(Mount("/part", hidden)), "/part/charges")
    mount = Mount("/part", hidden, middleware=ours())
    assert await twice(Starlette(routes=[mount, post("/part/charges", free)]), "/part/charges")


async def test_what_an_outer_adapter_protects_is_left_alone(backend: WatchedBackend) -> None:
    """The plain ASGI middleware does not look at routes, so it protects, and the inner one lets the request pass."""
    app = plain.IdempotencyMiddleware(protected(post("/charges", charge), backend=backend), "memory://")
    assert await twice(app)
    assert backend.claims == []


async def test_an_inner_middleware_that_cannot_be_seen_lets_pass_what_is_protected(backend: WatchedBackend) -> None:
    """One request never has two claims."""
    hidden = Hiding(protected(post("/charges", charge), backend=backend))
    outer = WatchedBackend()
    assert await twice(protected(Mount("/part", hidden), backend=outer), "/part/charges")
    assert (len(outer.claims), backend.claims) == (2, [])


async def test_a_middleware_around_an_application_finds_its_routes() -> None:
    """The middleware wraps the application without ``add_middleware``."""
    app = IdempotencyMiddleware(Starlette(routes=[post("/charges", strict)]), "memory://")
    assert await status(app) == 400


async def test_get_requests_and_other_protocols_are_not_looked_at() -> None:
    """GET is never covered, whatever the route's rule."""
    app = protected(Route("/charges", strict, methods=["GET", "POST"]))
    assert await status(app, method="GET") == 200


# FastAPI


def shop(*dependencies: Any, backend: Any = "memory://", **fields: Any) -> FastAPI:
    app = FastAPI(dependencies=[Depends(d) for d in dependencies])
    app.add_middleware(IdempotencyMiddleware, backend=backend, **fields)
    return app


def number() -> str:
    """An endpoint."""
    return uuid4().hex


async def test_a_fastapi_endpoint_can_require_a_key_or_be_exempt() -> None:
    """O-06: the decorators are below the route decorator."""
    app = shop()

    @app.post("/charges")
    @idempotent(required=True)
    def create() -> str:
        return number()

    @app.post("/ping")
    @exempt
    async def ping() -> str:
        return number()

    assert (await status(app), await status(app, "/ping")) == (400, 200)
    assert await twice(app)
    assert not await twice(app, "/ping")


async def test_a_dependency_gives_its_route_a_rule(backend: WatchedBackend) -> None:
    """The dependency is in the route's list, or in the endpoint's signature."""
    app = shop(backend=backend)
    app.add_api_route("/charges", number, methods=["POST"], dependencies=[Depends(IdempotencyRule(ttl=60))])

    def create(rule: None = Depends(IdempotencyRule(required=True))) -> str:
        return number()

    app.add_api_route("/other", create, methods=["POST"])
    assert await twice(app)
    assert backend.claims[0].ttl == 60
    assert await status(app, "/other") == 400


async def test_a_dependency_gives_all_routes_of_a_router_a_rule() -> None:
    """With prefixes, and with nested routers."""
    app, outer = shop(), APIRouter(prefix="/api", dependencies=[Depends(IdempotencyRule(required=True))])
    inner = APIRouter(prefix="/v1")
    inner.add_api_route("/charges", number, methods=["POST"])
    inner.add_api_route("/ping/{name}", exempt(lambda: uuid4().hex), methods=["POST"])
    outer.include_router(inner)
    app.include_router(outer)
    app.add_api_route("/charges", number, methods=["POST"])
    assert await status(app, "/api/v1/charges") == 400
    assert await twice(app, "/api/v1/charges")
    assert await status(app, "/api/v1/ping/me") == 200
    assert await status(app) == 200


async def test_a_router_can_be_exempt_where_it_is_included() -> None:
    app, router = shop(required=True), APIRouter()
    router.add_api_route("/charges", number, methods=["POST"])
    app.include_router(router, prefix="/free", dependencies=[Depends(IdempotencyRule(exempt=True))])
    app.include_router(router)
    assert (await status(app, "/free/charges"), await status(app)) == (200, 400)


async def test_nearer_rules_add_to_farther_ones(backend: WatchedBackend) -> None:
    """Application, router, route, endpoint; a field keeps its value unless a nearer rule sets it."""
    app = shop(IdempotencyRule(ttl=3600, lease=9), backend=backend)
    router = APIRouter(dependencies=[Depends(IdempotencyRule(ttl=1800, required=True))])
    router.add_api_route("/charges", idempotent(ttl=60)(lambda: uuid4().hex), methods=["POST"])
    app.include_router(router)
    assert await status(app) == 400
    await send(app, key=new_key())
    assert [(c.ttl, c.lease) for c in backend.claims] == [(60, 9)]


async def test_a_rule_within_an_exempt_router_covers_its_route_alone() -> None:
    """The nearest rule decides, and inherits nothing from rules outside of the exemption."""
    app = shop(IdempotencyRule(required=True))
    router = APIRouter(dependencies=[Depends(IdempotencyRule(exempt=True))])
    router.add_api_route("/charges", idempotent(lambda: uuid4().hex), methods=["POST"])
    router.add_api_route("/ping", number, methods=["POST"])
    app.include_router(router)
    assert await twice(app)
    assert not await twice(app, "/ping")
    assert await status(app) == 200


async def test_a_rule_in_a_fastapi_sub_application_counts() -> None:
    """The application is mounted, also within an included router."""
    part = FastAPI()
    part.add_api_route("/charges", number, methods=["POST"], dependencies=[Depends(IdempotencyRule(required=True))])
    app = shop()
    app.mount("/part", part)
    assert await status(app, "/part/charges") == 400
    assert await status(protected(Mount("/part", part)), "/part/charges") == 400


async def test_a_starlette_route_in_an_included_router_has_its_rule() -> None:
    app, router = shop(), APIRouter()
    router.routes.append(post("/charges", strict))
    app.include_router(router, prefix="/part")
    assert await status(app, "/part/charges") == 400


async def test_a_route_of_a_router_that_is_added_later_is_found() -> None:
    """Either FastAPI looks into included routers for each request, or it has not copied the route."""
    app, router = shop(), APIRouter(dependencies=[Depends(IdempotencyRule(required=True))])
    app.include_router(router)
    assert await status(app) == 404
    app.add_api_route("/charges", number, methods=["POST"], dependencies=[Depends(IdempotencyRule(required=True))])
    assert await status(app) == 400


@pytest.mark.parametrize("fields", [{"requird": True}, {"exempt": True, "ttl": 60}])
async def test_a_wrong_dependency_is_an_error_at_once(fields: dict[str, Any]) -> None:
    """An unknown field, or fields for a route that is not covered."""
    with pytest.raises(ConfigurationError, match=r"requird|ttl"):
        IdempotencyRule(**fields)


async def test_a_whole_policy_takes_rules_too(backend: WatchedBackend) -> None:
    """Rules change its fields."""
    app = protected(post("/charges", own(ttl=60)), backend=backend, policy=IdempotencyPolicy(lease=7))
    await send(app, key=new_key())
    assert [(c.ttl, c.lease) for c in backend.claims] == [(60, 7)]
