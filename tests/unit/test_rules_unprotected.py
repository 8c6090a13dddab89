"""Rules in an application without a middleware or extension that reads them; ``enabled=False``; ``cover="marked"``."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.routing import APIRoute
from flask import Flask
from flask.views import MethodView
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from open_idempotency import NotStarted, adapter, asgi, idem, wsgi
from open_idempotency._engine import engine
from open_idempotency._flask import survey as flask_unprotected
from open_idempotency._starlette import at_call
from open_idempotency.exceptions import ConfigurationError
from open_idempotency.fastapi import IdempotencyMiddleware, IdempotencyRule, exempt, idempotent
from open_idempotency.flask import Idempotency
from open_idempotency.flask import idempotent as flask_idempotent
from open_idempotency.hooks import Request as CoreRequest
from open_idempotency.hooks import Response as CoreResponse
from tests.unit.starlette.test_starlette_rules import Hiding
from tests.unit.starlette.test_starlette_start import reported

KEY = {"Idempotency-Key": "8e03978e-40d5-43e8-bc93-6894a57f9324"}


def send(app: Any, method: str = "POST", headers: dict[str, str] | None = None) -> httpx.Response:
    """One request to ``/charges``; errors of the application are raised."""

    async def sent() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.request(method, "/charges", headers=headers)

    return asyncio.run(sent())


def marked(**fields: Any) -> Any:
    """An endpoint of Starlette with a rule of its own."""

    @idempotent(**fields)
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("done")

    return endpoint


async def charge(request: Request) -> Response:
    return PlainTextResponse("done")


def of_fastapi() -> str:
    return "done"


@idempotent
class Charges(HTTPEndpoint):
    """A class-based endpoint that is marked as a whole."""

    async def post(self, request: Request) -> Response:
        return PlainTextResponse("done")


class Controller:
    """A class whose methods are endpoints."""

    @idempotent
    def pay(self) -> str:
        return "done"


@idempotent
class MarkedController:
    """A class whose methods are endpoints, each with a rule."""

    def pay(self) -> str:
        return "done"


class OwnRoute(APIRoute):
    """A route class that wraps its request handler."""

    def get_route_handler(self) -> Any:
        inner = super().get_route_handler()

        async def handle(request: Any) -> Any:
            return await inner(request)

        return handle


def of_router(**options: Any) -> FastAPI:
    app, router = FastAPI(), APIRouter(**options)
    router.add_api_route("/charges", of_fastapi, methods=["POST", "GET"])
    app.include_router(router)
    return app


def fastapi_app(endpoint: Any = of_fastapi, *dependencies: Any, **options: Any) -> FastAPI:
    app = FastAPI(**options)
    app.add_api_route("/charges", endpoint, methods=["POST", "GET"], dependencies=list(dependencies))
    return app


def starlette_app(endpoint: Any, **options: Any) -> Starlette:
    methods = None if isinstance(endpoint, type) else ["POST", "GET"]
    return Starlette(routes=[Route("/charges", endpoint, methods=methods)], **options)


RULE = Depends(IdempotencyRule(ttl=60))
UNPROTECTED: dict[str, Callable[[], Any]] = {
    "function": lambda: starlette_app(marked()),
    "class": lambda: starlette_app(Charges),
    "in a mount": lambda: Starlette(routes=[Mount("/", starlette_app(marked()))]),
    "mounted application": lambda: Starlette(routes=[Mount("/", idempotent(starlette_app(charge)))]),
    "plain middleware": lambda: asgi.IdempotencyMiddleware(starlette_app(marked()), "memory://", header="X-Other"),
    "FastAPI's function": lambda: fastapi_app(idempotent(lambda: "done")),
    "a method of a controller": lambda: fastapi_app(Controller().pay),
    "a marked controller": lambda: fastapi_app(MarkedController().pay),
    "a dependency": lambda: fastapi_app(of_fastapi, RULE),
    "an application's dependency": lambda: fastapi_app(dependencies=[RULE]),
    "a router's dependency": lambda: of_router(dependencies=[RULE]),
    "a route class of one's own": lambda: of_router(dependencies=[RULE], route_class=OwnRoute),
}


@pytest.mark.parametrize("form", UNPROTECTED)
def test_a_key_for_an_endpoint_whose_rule_nobody_reads_is_an_error(form: str) -> None:
    """O-25: the error has the route and the line to add. Requests without a key, and GET, pass."""
    app = UNPROTECTED[form]()
    with pytest.raises(ConfigurationError, match=r"POST /(charges)?.* add app\.add_middleware\(IdempotencyMiddleware"):
        send(app, headers=KEY)
    assert send(app).status_code == 200
    assert send(app, "GET", KEY).status_code in (200, 405)


def test_a_required_key_that_nobody_asks_for_is_an_error() -> None:
    """O-25: with and without a key."""
    for app in (starlette_app(marked(required=True)), fastapi_app(idempotent(required=True)(lambda: "done"))):
        for headers in (None, KEY):
            with pytest.raises(ConfigurationError, match="no IdempotencyMiddleware reads it"):
                send(app, headers=headers)


def test_only_what_the_rule_covers_is_an_error() -> None:
    """O-25: the rule's own header and methods decide."""
    app = starlette_app(marked(header="X-Key", methods=["GET-ONCE"]))
    assert send(app, headers=KEY).status_code == 200
    own = starlette_app(marked(header="X-Key"))
    assert send(own, headers=KEY).status_code == 200
    with pytest.raises(ConfigurationError):
        send(own, headers={"X-Key": KEY["Idempotency-Key"]})


def test_a_rule_that_the_protecting_middleware_does_not_read_is_warned_about(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O-25: the plain ASGI middleware protects, without the rule's fields; the warning comes once for each route."""
    monkeypatch.setattr(at_call, "_warned", set[str]())
    for endpoint in (starlette_app(marked(ttl=60)), fastapi_app(idempotent(ttl=60)(lambda: "done"))):
        app = asgi.IdempotencyMiddleware(endpoint, "memory://")
        with reported(caplog, logging.WARNING) as said:
            assert [send(app, headers={"Idempotency-Key": uuid4().hex}).status_code for _ in range(2)] == [200, 200]
        (warning,) = said
        assert warning.startswith("POST /charges has a rule")
        at_call._warned.clear()


def test_an_exemption_that_the_protecting_middleware_does_not_read_is_warned_about(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R-15: on servers without a lifespan; a rule that changes nothing is not reported."""
    monkeypatch.setattr(at_call, "_warned", set[str]())
    for endpoint, warnings in ((exempt(charge_anew()), 1), (idempotent(charge_anew()), 0), (marked(required=False), 0)):
        app = asgi.IdempotencyMiddleware(starlette_app(endpoint), "memory://")
        with reported(caplog, logging.WARNING) as said:
            assert send(app, headers={"Idempotency-Key": uuid4().hex}).status_code == 200
        assert [warning.startswith("POST /charges has a rule (@idempotent, @exempt") for warning in said] == (
            [True] * warnings
        )
        at_call._warned.clear()


def charge_anew() -> Any:
    """An endpoint of Starlette without a rule."""

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("done")

    return endpoint


def started(app: Any) -> None:
    """Run the lifespan, and raise its error."""
    with TestClient(app):
        pass


def in_plain(app: Any) -> Any:
    """The application wrapped in the plain ASGI middleware."""
    return asgi.IdempotencyMiddleware(app, "memory://")


def with_plain(app: Any) -> Any:
    """The application with the plain ASGI middleware in its own list."""
    app.add_middleware(asgi.IdempotencyMiddleware, backend="memory://")
    return app


@pytest.mark.parametrize("around", [in_plain, with_plain])
@pytest.mark.parametrize(
    ("endpoint", "rule"),
    [(exempt(charge_anew()), "exempt"), (marked(ttl=60, required=True), r"idempotent\(ttl=, required=\)")],
    ids=["exempt", "idempotent"],
)
def test_rules_inside_the_middleware_for_plain_asgi_are_an_error_at_start(
    around: Callable[[Any], Any], endpoint: Any, rule: str
) -> None:
    """R-15: the error names the endpoint, the rule, and the middleware that reads it."""
    message = rf"POST /charges \(.*endpoint\): {rule}.*Use open_idempotency\.starlette\.IdempotencyMiddleware"
    with pytest.raises(ConfigurationError, match=message):
        started(around(starlette_app(endpoint)))
    with pytest.raises(ConfigurationError, match=r"POST /deep/charges"):
        started(around(Starlette(routes=[Mount("/deep", starlette_app(endpoint))])))


def test_a_rule_of_a_router_inside_the_middleware_for_plain_asgi_is_an_error_at_start() -> None:
    """R-15: a dependency of FastAPI, which each route of the router has."""
    router = APIRouter(dependencies=[Depends(IdempotencyRule(required=True))])
    router.post("/charges")(lambda: "done")
    app = FastAPI()
    app.include_router(router)
    with pytest.raises(ConfigurationError, match=r"POST /charges .*: idempotent\(required=\)"):
        started(in_plain(app))


@pytest.mark.parametrize(
    "app",
    [
        asgi.IdempotencyMiddleware(starlette_app(idempotent(charge_anew())), "memory://"),
        asgi.IdempotencyMiddleware(starlette_app(marked(ttl=60)), "memory://", ttl=60),
        asgi.IdempotencyMiddleware(starlette_app(exempt(charge_anew())), "memory://", rules={"/charges": asgi.exempt}),
        asgi.IdempotencyMiddleware(starlette_app(marked(ttl=60)), "memory://", enabled=False),
        IdempotencyMiddleware(starlette_app(marked(ttl=60)), backend="memory://"),
    ],
    ids=["no field", "the policy's own field", "exempt by path", "switched off", "Starlette's"],
)
def test_a_rule_that_changes_nothing_is_no_error_at_start(app: Any) -> None:
    """R-15: nor is a rule that the middleware reads."""
    started(app)


_UNREAD = """
import asyncio, sys
from starlette.applications import Starlette
from starlette.routing import Route
from open_idempotency.asgi import IdempotencyMiddleware, exempt

@exempt
async def ping(request): ...

app = IdempotencyMiddleware(Starlette(routes=[Route("/ping", ping, methods=["POST"])]), "memory://")

async def receive():
    return {"type": "lifespan.startup"}

async def send(message):
    print(message["type"], message.get("message", ""))

asyncio.run(app({"type": "lifespan"}, receive, send))
"""


def test_a_program_that_never_loads_the_adapter_for_starlette_gets_the_same_error() -> None:
    """R-15: the application imports only ``open_idempotency.asgi``."""
    ended = subprocess.run([sys.executable, "-c", _UNREAD], capture_output=True, text=True, timeout=60, check=False)
    assert ended.stdout.startswith("lifespan.startup.failed rules of endpoints have no effect")
    assert "POST /ping (ping): exempt" in ended.stdout


def test_plain_asgi_loads_neither_starlette_nor_its_adapter() -> None:
    """R-15: rules are looked for only if Starlette is imported."""
    program = """
import sys
from open_idempotency.asgi import IdempotencyMiddleware, exempt

async def app(scope, receive, send): ...

app = IdempotencyMiddleware(exempt(app), "memory://", rules={"/ping": exempt})
app.check_start({"type": "lifespan"})
print([name for name in sys.modules if "starlette" in name])
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.strip() == "[]"


def test_an_exempt_endpoint_needs_no_middleware() -> None:
    """O-25: nor does an endpoint without a rule."""
    for endpoint in (exempt(lambda: "done"), of_fastapi):
        assert send(fastapi_app(endpoint), headers=KEY).status_code == 200


def test_a_middleware_of_the_route_reads_its_rule(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O-25: also a middleware that another layer hides, for which a warning replaces the error."""
    monkeypatch.setattr(at_call, "_warned", set[str]())
    own: Any = Middleware(IdempotencyMiddleware, backend="memory://")
    for layers, warnings in (([own], 0), ([Middleware(Hiding), own], 1)):
        app = Starlette(routes=[Route("/charges", marked(), methods=["POST"], middleware=layers)])
        with reported(caplog, logging.WARNING) as said:
            replayed = [send(app, headers=KEY).headers.get("idempotent-replayed") for _ in range(2)]
        assert replayed == [None, "true"]
        assert len(said) == warnings


def test_a_dependency_that_nothing_can_read_is_an_error_when_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """O-25: the rule was imported from elsewhere, and this package's module for FastAPI is not loaded."""
    asyncio.run(IdempotencyRule(required=True)())
    for name in ("fastapi", "starlette"):
        monkeypatch.delitem(sys.modules, f"open_idempotency.{name}")
    with pytest.raises(ConfigurationError, match=r"from open_idempotency\.fastapi"):
        asyncio.run(IdempotencyRule(required=True)())


# Flask


def view(**fields: Any) -> Any:
    """A marked view."""

    @flask_idempotent(**fields)
    def charge_here() -> str:
        return "done"

    return charge_here


class Posting(MethodView):
    """A class with one marked method."""

    @flask_idempotent
    def post(self) -> str:
        return "done"

    def get(self) -> str:
        return "done"


@flask_idempotent
class MarkedView(MethodView):
    """A class that is marked as a whole."""

    def post(self) -> str:
        return "done"

    def get(self) -> str:
        return "done"


def flask_app(charge_view: Any, **config: Any) -> Flask:
    app = Flask("shop")
    app.testing = True
    app.config.update(config)
    app.add_url_rule("/charges", "charges", charge_view, methods=["POST", "GET"])
    return app


def marked_late() -> Any:
    """A function that is marked after its route was added."""

    def late() -> str:
        return "done"

    flask_idempotent(late)
    return late


VIEWS: dict[str, Callable[[], Any]] = {
    "function": view,
    "marked above the route": marked_late,
    "method": lambda: Posting.as_view("posting"),
    "class": lambda: MarkedView.as_view("marked"),
    "view function of a class": lambda: flask_idempotent(Posting.as_view("posting")),
}


@pytest.mark.parametrize("form", VIEWS)
def test_a_key_for_a_view_whose_rule_nobody_reads_is_an_error(form: str) -> None:
    """O-25: the error has the route and the line to add. Requests without a key, and GET, pass."""
    client = flask_app(VIEWS[form]()).test_client()
    with pytest.raises(ConfigurationError, match=r'POST /charges: .* add Idempotency\(app, backend="\.\.\."\)'):
        client.post("/charges", headers=KEY)
    assert [client.post("/charges").status_code, client.get("/charges", headers=KEY).status_code] == [200, 200]


@pytest.mark.parametrize(
    ("ruled", "warnings"),
    [(view(ttl=60), 1), (exempt(view()), 1), (view(), 0), (view(required=False), 0)],
    ids=["a field", "exempt", "no field", "the policy's own field"],
)
def test_a_rule_of_a_view_that_the_middleware_for_wsgi_does_not_read_is_warned_about(
    ruled: Any, warnings: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R-15: once for each route, as WSGI has no start."""
    monkeypatch.setattr(flask_unprotected, "_warned", set[str]())
    app = flask_app(ruled)
    app.wsgi_app = wsgi.IdempotencyMiddleware(app.wsgi_app, "memory://")  # type: ignore[method-assign]  # as Flask documents it
    with reported(caplog, logging.WARNING) as said:
        for _ in range(2):
            key = {"Idempotency-Key": uuid4().hex}
            assert app.test_client().post("/charges", headers=key).status_code == 200
    assert len(said) == warnings
    assert all("POST /charges: the view has a rule" in warning for warning in said)


def test_a_required_key_that_no_extension_asks_for_is_an_error() -> None:
    """O-25: in Flask."""
    with pytest.raises(ConfigurationError, match="the application has no extension"):
        flask_app(view(required=True)).test_client().post("/charges")


def test_an_application_with_the_extension_does_not_pass_the_check() -> None:
    """O-25: the wrapper of Flask's method is only for applications without the extension."""
    app = with_extension(flask_app(view()), backend="memory://")
    called: list[str] = []

    def note(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            called.append(frame.f_code.co_name)

    client = app.test_client()
    sys.setprofile(note)
    try:
        assert client.post("/charges").status_code == 200
    finally:
        sys.setprofile(None)
    assert "charge_here" in called
    assert "dispatch_or_refuse" not in called


# enabled=False


@pytest.fixture
def not_yet_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reset the warning that this process logs once."""
    monkeypatch.setattr(engine, "_said_off", False)


def stage() -> str:
    return str(idem.run("charge", lambda: "done"))


async def astage(request: Request) -> Response:
    return PlainTextResponse(str(await idem.arun("charge", lambda: "done")))


async def plain_app(scope: Any, receive: Any, send: Any) -> None:
    await (await astage(Request(scope)))(scope, receive, send)


def wsgi_app(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [stage().encode()]


def of_wsgi(app: Any) -> Any:
    from werkzeug.test import Client

    return lambda: Client(app).post("/charges", headers=KEY)


def with_extension(app: Flask, **fields: Any) -> Flask:
    Idempotency(app, **fields)
    return app


def adapted() -> Any:
    request = CoreRequest("POST", b"/charges", b"", [(b"idempotency-key", b'"8e03978e-40d5-43e8-bc93"')], None)
    response = adapter.Adapter(enabled=False).handle(request, b"", lambda: CoreResponse(200, [], stage().encode()))
    return httpx.Response(response.status, headers=list(response.headers))


def adapted_async() -> Any:
    request = CoreRequest("POST", b"/charges", b"", [(b"idempotency-key", b'"8e03978e-40d5-43e8-bc93"')], None)

    async def handler() -> CoreResponse:
        return CoreResponse(200, [], (await idem.arun("charge", lambda: "done")).encode())

    response = asyncio.run(adapter.AsyncAdapter(enabled=False).handle(request, b"", handler))
    return httpx.Response(response.status, headers=list(response.headers))


def off(app: Any) -> Any:
    """The application in a middleware that is switched off, and a function that sends it one keyed request."""
    return sending(IdempotencyMiddleware(app, enabled=False, required=True, strict_stages=True))


def sending(app: Any) -> Any:
    """A function that sends an application one keyed request."""
    return lambda: send(app, headers=KEY)


OFF: dict[str, Callable[[], Any]] = {
    "asgi": lambda: sending(asgi.IdempotencyMiddleware(plain_app, enabled=False)),
    "wsgi": lambda: of_wsgi(wsgi.IdempotencyMiddleware(wsgi_app, enabled=False)),
    "starlette": lambda: off(starlette_app(idempotent(required=True)(astage))),
    "fastapi": lambda: off(fastapi_app(idempotent(lambda: stage()), RULE)),
    "flask": lambda: of_wsgi(with_extension(flask_app(flask_idempotent(lambda: stage())), enabled=False)),
    "flask's config": lambda: of_wsgi(
        with_extension(flask_app(flask_idempotent(required=True)(lambda: stage()), IDEMPOTENCY_ENABLED=False))
    ),
    "flask's config without the extension": lambda: of_wsgi(flask_app(view(required=True), IDEMPOTENCY_ENABLED=False)),
    "wsgi around flask": lambda: of_wsgi(wsgi.IdempotencyMiddleware(flask_app(view(required=True)), enabled=False)),
    "adapter": lambda: adapted,
    "async adapter": lambda: adapted_async,
}


@pytest.mark.parametrize("adapter_name", OFF)
@pytest.mark.usefixtures("not_yet_said")
def test_what_is_switched_off_protects_nothing_and_says_so_once(
    adapter_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """O-25: requests run each time, as without a key: stages run plainly, and no key is required."""
    with reported(caplog, logging.WARNING) as said:
        request = OFF[adapter_name]()
        replies = [request() for _ in range(2)]
    assert [reply.status_code for reply in replies] == [200, 200]
    assert "idempotent-replayed" not in replies[1].headers
    (warning,) = said
    assert warning.startswith("enabled=False switches idempotency off in this process")


@pytest.mark.usefixtures("not_yet_said")
def test_a_second_application_that_is_switched_off_does_not_say_it_again(caplog: pytest.LogCaptureFixture) -> None:
    """O-25: there is one warning for each process."""
    with reported(caplog, logging.WARNING) as said:
        for _ in range(3):
            asgi.IdempotencyMiddleware(plain_app, enabled=False)
    assert len(said) == 1


def test_what_is_switched_off_still_reports_rules_without_an_effect() -> None:
    """O-24, O-25: wrong rules are found in tests, too."""
    client = with_extension(flask_app(view(methods=["PUT"])), enabled=False).test_client()
    with pytest.raises(ConfigurationError, match="methods="):
        client.get("/charges")


# cover="marked"


async def stages(request: Any) -> Response:
    """Whether the request is covered."""
    try:
        await idem.asave_stage("charge")
    except NotStarted:
        return PlainTextResponse("not covered")
    return PlainTextResponse("covered")


def marked_only(*routes: Any, **fields: Any) -> Any:
    return Starlette(
        routes=list(routes),
        middleware=[Middleware(IdempotencyMiddleware, backend="memory://", cover="marked", **fields)],
    )


def replays(request: Callable[[], Any]) -> bool:
    """Whether the second of two requests with one key is a replay."""
    first, second = request(), request()
    assert first.status_code == second.status_code == 200
    return second.headers.get("Idempotent-Replayed") == "true"


@pytest.mark.parametrize("required", [False, True])
def test_only_marked_routes_are_covered_in_starlette(required: bool) -> None:
    """O-26: another route passes with a key and without one, and has no stages."""
    unmarked = marked_only(
        Route("/charges", stages, methods=["POST"]), Route("/x", marked(), methods=["POST"]), required=required
    )
    assert not replays(lambda: send(unmarked, headers=KEY))
    assert (send(unmarked).text, send(unmarked, headers=KEY).text) == ("not covered", "not covered")

    @idempotent
    async def covered_stages(request: Any) -> Response:
        return await stages(request)

    covered = marked_only(Route("/charges", covered_stages, methods=["POST"]), required=required)
    assert replays(lambda: send(covered, headers=KEY))
    assert send(covered).status_code == (400 if required else 200)


def test_only_marked_routes_are_covered_in_fastapi() -> None:
    """O-26: by a dependency."""
    for dependencies, covered in (([], False), ([RULE], True)):
        app = fastapi_app(of_fastapi, *dependencies)
        app.add_middleware(IdempotencyMiddleware, backend="memory://", cover="marked")
        assert replays(lambda app=app: send(app, headers=KEY)) is covered


@pytest.mark.parametrize(("path", "covered"), [("/charges", True), ("/others", False)])
def test_only_paths_with_a_rule_are_covered(path: str, covered: bool) -> None:
    """O-26: in plain ASGI and WSGI, in Starlette and in Flask."""
    rules = {path: {"ttl": 60}}
    fields: Any = {"backend": "memory://", "cover": "marked", "rules": rules}
    on_asgi = asgi.IdempotencyMiddleware(charge_as_application, **fields)
    assert replays(lambda: send(on_asgi, headers=KEY)) is covered
    assert send(on_asgi).text == ("covered" if covered else "not covered")
    assert replays(of_wsgi(wsgi.IdempotencyMiddleware(lambda e, s: (s("200 OK", []), [b""])[1], **fields))) is covered
    starlette = marked_only(Route("/charges", stages, methods=["POST"]), rules=rules)
    assert replays(lambda: send(starlette, headers=KEY)) is covered
    assert send(starlette).text == ("covered" if covered else "not covered")
    assert replays(of_wsgi(with_extension(flask_app(lambda: "done"), **fields))) is covered


async def charge_as_application(scope: Any, receive: Any, send: Any) -> None:
    await (await stages(Request(scope)))(scope, receive, send)


def test_only_marked_views_are_covered_in_flask() -> None:
    """O-26: by the decorator."""
    for charged, covered in ((lambda: "done", False), (view(), True)):
        app = with_extension(flask_app(charged), backend="memory://", cover="marked")
        assert replays(of_wsgi(app)) is covered


def test_what_cannot_be_marked_is_an_error_at_once() -> None:
    """O-26: adapters without decorators, and without rules by path."""
    for make in (
        lambda: asgi.IdempotencyMiddleware(plain_app, "memory://", cover="marked"),
        lambda: wsgi.IdempotencyMiddleware(wsgi_app, "memory://", cover="marked"),
        lambda: adapter.Adapter("memory://", cover="marked"),
        lambda: adapter.AsyncAdapter("memory://", cover="marked"),
    ):
        with pytest.raises(ConfigurationError, match='cover: "marked" covers nothing here'):
            make()


def test_nothing_marked_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    """O-26: once, at start or by the first request."""
    app, unmarked = marked_only(Route("/charges", marked(methods=["PUT"]), methods=["GET", "PUT"])), flask_app(stage)
    with_extension(unmarked, backend="memory://", cover="marked")
    with reported(caplog, logging.WARNING) as said:
        send(app, "PUT")
    assert said == []
    with reported(caplog, logging.WARNING) as said:
        send(marked_only(Route("/charges", charge, methods=["POST"])))
        unmarked.test_client().get("/nowhere")
        for _ in range(2):
            unmarked.config["TESTING"] = unmarked.testing = False
            unmarked.test_client().post("/charges", headers=KEY)
    assert [each.partition(":")[0] for each in said] == ['cover="marked" covers nothing'] * 2


@pytest.mark.parametrize("field", ["cover", "enabled"])
def test_a_rule_cannot_set_what_belongs_to_the_application(field: str) -> None:
    """O-25, O-26: the error is raised where the rule is defined."""
    for make in (
        idempotent,
        IdempotencyRule,
        lambda **said: asgi.IdempotencyMiddleware(plain_app, "memory://", rules={"/": said}),
    ):
        with pytest.raises(ConfigurationError, match=f"{field}: belongs to the whole application"):
            make(**{field: False})


def test_flask_has_rules_by_path() -> None:
    """O-06: as the other adapters have, by argument and by configuration; a decorator is nearer than a path."""
    rules = {"/charges": {"required": True}}
    by_argument = with_extension(flask_app(lambda: "done"), backend="memory://", rules=rules)
    by_config = with_extension(flask_app(lambda: "done", IDEMPOTENCY_RULES=rules), backend="memory://")
    nearer = with_extension(flask_app(view(required=False)), backend="memory://", rules=rules)
    assert [app.test_client().post("/charges").status_code for app in (by_argument, by_config, nearer)] == [
        400,
        400,
        200,
    ]
    with pytest.raises(ConfigurationError, match="GET can never be covered"):
        Idempotency(Flask("shop"), backend="memory://", rules={"GET /x": {"ttl": 60}})
